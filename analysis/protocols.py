"""The protocols that published figures come from: which classes the stream's loss is over, and when replay begins.

DER's code, whose figures SparCL's tables repeat for every dense method, takes the loss over all classes and replays at
once; SparCL's takes it over the current task's classes and replays from the second task. What the paper's RigL and SNIP
used is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD, REPLAY = "protocol.single_head", "protocol.replay_start"
LOSS: Mapping[bool | str, str] = {True: "loss over the task's classes", False: "loss over all classes"}
START: Mapping[bool | str, str] = {"second-task": "replay from the second task", "immediately": "replay at once"}
OWN, DER = (True, "second-task"), (False, "immediately")
"""Loss and replay of SparCL's code, and of DER's."""

WITHOUT_HEAD = {"icarl", "joint"}
"""Methods whose loss the setting does not change: iCaRL's own, and one task with all classes."""


def of(params: Mapping[str, Any]) -> tuple[bool, str]:
    """Return loss and replay of a run, by its parameters."""
    return params[HEAD], params[REPLAY]


def loss(learner: str, is_single_head: bool) -> str:
    """Return what a learner's loss on the stream is over; empty where the setting does not change it."""
    if learner in WITHOUT_HEAD:
        return ""
    return "loss over the classes seen" if learner == "lwf" and not is_single_head else LOSS[is_single_head]


def text(protocol: tuple[bool, str]) -> str:
    """Return ``loss over all classes, replay at once``."""
    return f"{LOSS[protocol[0]]}, {START[protocol[1]]}"
