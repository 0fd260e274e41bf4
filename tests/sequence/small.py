"""A small setting of every synthetic task, by the name of the task."""

from __future__ import annotations

from typing import Any

from sequence.tasks.continuous_mqar import ContinuousMQAR
from sequence.tasks.copying import Copying
from sequence.tasks.induction import Induction
from sequence.tasks.mad import Mad
from sequence.tasks.mqar import MQAR, CompositionalMQAR, ForgettingMQAR
from sequence.tasks.pointer import Pointer
from sequence.tasks.state_tracking import StateTracking
from sequence.tasks.tokens import TokenTask

_MODEL: dict[str, Any] = {"dim": 8, "depth": 1}
_ROWS: dict[str, Any] = {"vocabulary": 32, "length": 24, "pairs": 4, "train_examples": 64, "eval_examples": 48}

SMALL: dict[str, TokenTask] = {
    "mqar": MQAR(**_ROWS, **_MODEL),
    "mqar-compositional": CompositionalMQAR(**_ROWS, **_MODEL),
    "mqar-forgetting": ForgettingMQAR(**_ROWS, **_MODEL, updates=2),
    "mqar-continuous": ContinuousMQAR(
        vocabulary=64, pairs=4, vector_dim=8, train_examples=64, eval_examples=48, **_MODEL
    ),
    "mad": Mad(kind="noisy_recall", length=32, train_examples=64, eval_examples=48, **_MODEL),
    "induction": Induction(length=12, train_examples=64, eval_examples=48, **_MODEL),
    "state_tracking": StateTracking(length=12, eval_examples=48, **_MODEL),
    "copying": Copying(shortest=3, longest=6, length=24, eval_examples=48, **_MODEL),
    "pointer": Pointer(vocabulary=6, size=4, train_examples=64, eval_examples=48, **_MODEL),
}
