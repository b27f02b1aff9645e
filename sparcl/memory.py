"""Replay memory: reservoir sampling over the stream of presentations (Vitter 1985, algorithm R)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def quotas(capacity: int, tasks: int) -> list[int]:
    """Return how many of ``capacity`` samples each of ``tasks`` tasks may hold; they differ by at most 1."""
    return [capacity // tasks + (task < capacity % tasks) for task in range(tasks)]


@dataclass(frozen=True)
class ReplayBatch:
    """A draw from the memory: images (N, C, H, W) uint8, labels (N,), logits at insertion (N, classes), tasks (N,)."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    tasks: Tensor


class ReservoirMemory:
    """At most ``capacity`` samples, each presentation so far being held with the same probability.

    Every presentation counts (an image seen in five epochs is presented five times), as in DER and SparCL. Stored are
    the un-augmented image, the label, the model's logits at insertion and the task's index.
    """

    def __init__(self, capacity: int, shape: tuple[int, int, int], classes: int, device: torch.device | str = "cpu"):
        self.capacity = capacity
        self.seen = 0
        self.images = torch.zeros((capacity, *shape), dtype=torch.uint8, device=device)
        self.labels = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.logits = torch.zeros((capacity, classes), dtype=torch.float32, device=device)
        self.tasks = torch.zeros(capacity, dtype=torch.int64, device=device)
        self.positions = torch.full((capacity,), -1, dtype=torch.int64, device=device)

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def slots(self, count: int, generator: torch.Generator) -> dict[int, int]:
        """Return ``{slot: row}`` for the next ``count`` presentations: where each kept row goes.

        The i-th presentation (counted from 1) fills slot i while there is room, then replaces a uniformly drawn
        slot with probability capacity / i. Of two rows that fall on one slot the later stays.
        """
        positions = torch.arange(self.seen, self.seen + count, dtype=torch.float64)
        drawn = (torch.rand(count, generator=generator, dtype=torch.float64) * (positions + 1)).long()
        chosen = torch.where(positions < self.capacity, positions.long(), drawn).tolist()
        return {slot: row for row, slot in enumerate(chosen) if slot < self.capacity}

    @torch.no_grad()
    def add(
        self,
        images: Tensor,
        labels: Tensor,
        logits: Tensor,
        task: int,
        generator: torch.Generator,
        positions: Tensor | None = None,
    ) -> None:
        """Present a batch: images (N, C, H, W) uint8, labels (N,), logits (N, classes), positions in the task (N,)."""
        places = self.slots(len(images), generator)
        self.seen += len(images)
        if not places:
            return
        device = self.images.device
        slots = torch.tensor(list(places), device=device)
        rows = torch.tensor(list(places.values()), device=device)
        self.images[slots] = images[rows]
        self.labels[slots] = labels[rows]
        self.logits[slots] = logits[rows].float()
        self.tasks[slots] = task
        self.positions[slots] = -1 if positions is None else positions[rows]

    @torch.no_grad()
    def fill(self, images: Tensor, labels: Tensor, logits: Tensor | None, tasks: Tensor) -> None:
        """Hold these samples (at most ``capacity``) and no others; for memories that are no reservoir."""
        count = len(labels)
        self.seen = count
        for name, value in (("images", images), ("labels", labels), ("logits", logits), ("tasks", tasks)):
            if value is not None:
                getattr(self, name)[:count] = value
        self.positions.fill_(-1)

    def draw(self, count: int, generator: torch.Generator, allowed: Tensor | None = None) -> ReplayBatch:
        """Draw up to ``count`` samples uniformly, without replacement within the draw.

        ``allowed`` is a bool mask of the slots (capacity,) that may be drawn; all filled ones by default.
        """
        order = torch.randperm(len(self), generator=generator).to(self.images.device)
        chosen = (order if allowed is None else order[allowed[order]])[:count]
        return ReplayBatch(self.images[chosen], self.labels[chosen], self.logits[chosen], self.tasks[chosen])

    def state(self) -> dict[str, Any]:
        """Return the contents and how many presentations were seen, for a checkpoint."""
        return {
            "seen": self.seen, "images": self.images, "labels": self.labels, "logits": self.logits,
            "tasks": self.tasks, "positions": self.positions,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        self.seen = state["seen"]
        for name in ("images", "labels", "logits", "tasks", "positions"):
            getattr(self, name).copy_(state[name])
