"""What all methods of a comparison share: the switches of the protocol itself.

Two cells that differ in one of these are not comparable, so tables never mix them without saying so.
"""

from __future__ import annotations

from typing import ClassVar

from sparcl.policies import Component, Parameter


class Protocol(Component):
    """Protocol switches; each default follows the paper, each alternative names who does it."""

    name = "protocol"
    label = "protocol"
    parameters: ClassVar = {
        "single_head": Parameter(True, "take the stream loss over the current task's classes alone (SparCL)"),
        "replay_start": Parameter("second-task", "when replay begins: with the second task (SparCL's code) or as soon "
                                  "as the memory holds anything (mammoth)", choices=("second-task", "immediately")),
        "drop_last": Parameter(False, "drop an epoch's incomplete last batch (SparCL's code)"),
        "momentum": Parameter(0.0, "momentum of SGD", low=0, high=0.999),
        "weight_decay": Parameter(0.0, "L2 weight decay of SGD", low=0),
        "freeze_bn_bias": Parameter(False, "keep batch-norm biases at 0, as the released SparCL code does by accident"),
    }  # fmt: skip

    def steps(self, samples: int, batch_size: int) -> int:
        """Return the steps of an epoch over ``samples``."""
        return samples // batch_size if self.drop_last else -(-samples // batch_size)
