"""CUDA graphs for the gradient computation: one launch instead of several hundred kernels a step.

At batch 32 a GPU waits for the host most of the time. The gradient computation is the same for every step of a task
(it decides nothing and draws nothing), so it is captured once per combination of batch sizes and replayed. Every
decision (masks, memory, data removal) stays outside the graph. Steps of a size seen fewer than ``WARM`` times, such as
an epoch's last batch, run as usual.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sparcl.learners.base import Replay
    from sparcl.trainer import Run

WARM = 3
KEEP = 4


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    loss: Tensor
    logits: Tensor
    term_gradients: dict[str, dict[str, Tensor]]


class StepGraph:
    """Captures and replays :func:`sparcl.trainer.compute_gradients` for one run on a CUDA device."""

    def __init__(self, run: Run):
        self._run = run
        self.reset()

    def reset(self) -> None:
        """Forget all graphs; called when a task begins (its loss looks at other logits, its optimizer is new)."""
        self._seen: dict[tuple, int] = {}
        self._captured: dict[tuple, _Captured] = {}

    def backward(self, images: Tensor, labels: Tensor, replays: list[Replay], per_term: bool) -> tuple[Tensor, Tensor]:
        """Do what :func:`sparcl.trainer.backward` does, by graph where the sizes have been seen often enough."""
        from sparcl.trainer import compute_gradients

        flat = [images, labels, *(tensor for replay in replays for tensor in replay)]
        key = (per_term, *(tuple(tensor.shape) for tensor in flat))
        self._seen[key] = self._seen.get(key, 0) + 1
        if key not in self._captured:
            if self._seen[key] <= WARM or len(self._captured) >= KEEP:
                return compute_gradients(self._run, images, labels, replays, per_term)
            self._captured[key] = self._capture(flat, len(replays), per_term)
        captured = self._captured[key]
        for static, tensor in zip(captured.inputs, flat, strict=True):
            static.copy_(tensor)
        captured.graph.replay()
        self._run.term_gradients = captured.term_gradients
        return captured.loss.clone(), captured.logits.clone()

    def _capture(self, flat: list[Tensor], replays: int, per_term: bool) -> _Captured:
        from sparcl.trainer import compute_gradients

        run = self._run
        inputs = [tensor.clone() for tensor in flat]
        drawn = [tuple(inputs[2 + 3 * i : 5 + 3 * i]) for i in range(replays)]
        buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute_gradients(run, inputs[0], inputs[1], drawn, per_term)
        torch.cuda.current_stream().wait_stream(stream)
        for name, buffer in run.model.named_buffers():
            buffer.copy_(buffers[name])
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss, logits = compute_gradients(run, inputs[0], inputs[1], drawn, per_term)
        return _Captured(graph, inputs, loss, logits, run.term_gradients)
