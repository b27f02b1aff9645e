"""What all methods of a comparison share: the switches of the protocol itself.

Two cells that differ in one of these are not comparable, so tables never mix them without saying so.
"""

from __future__ import annotations

from sparcl.parameters import Parameterized, parameter


class Protocol(Parameterized):
    """Protocol switches; each default follows the paper, each alternative names who does it."""

    name = "protocol"
    label = "protocol"
    single_head: bool = parameter(True, "take the stream loss over the current task's classes alone (SparCL)")
    replay_start: str = parameter(
        "second-task",
        "when replay begins: with the second task (SparCL's code) or as soon as the memory holds anything (mammoth)",
        choices=("second-task", "immediately"),
    )
    last_batch: str = parameter(
        "spread",
        "where an epoch's images fill no whole number of batches: spread them over batches of nearly equal size, keep "
        "an incomplete last one, or drop it (SparCL's code)",
        choices=("spread", "keep", "drop"),
    )
    momentum: float = parameter(0.0, "momentum of SGD", low=0, high=0.999)
    weight_decay: float = parameter(0.0, "L2 weight decay of SGD", low=0)
    bn_momentum: float = parameter(0.1, "share of a batch in batch normalization's running statistics", low=0, high=1)
    freeze_bn_bias: bool = parameter(False, "keep batch-norm biases at 0, as the released SparCL code does by accident")

    def steps(self, samples: int, batch_size: int) -> int:
        """Return the steps of an epoch over ``samples``."""
        return samples // batch_size if self.last_batch == "drop" else -(-samples // batch_size)

    def bounds(self, samples: int, batch_size: int, step: int) -> tuple[int, int]:
        """Return where a step's batch starts and ends among an epoch's ``samples``."""
        if self.last_batch != "spread":
            return step * batch_size, min((step + 1) * batch_size, samples)
        size, larger = divmod(samples, self.steps(samples, batch_size))
        start = step * size + min(step, larger)
        return start, start + size + (step < larger)
