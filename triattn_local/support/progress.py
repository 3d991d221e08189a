"""How long work tells how far it is: one protocol for work in stages, one type for what is counted inside a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

Unit = Literal["bytes", "tokens", "steps"]

Count = Callable[[int, int], None]
"""called with what is done and what there is in all"""


class Progress(Protocol):
    """Called with the stage, what is done of it and what there is in all: 0 or None for a stage that is not counted.

    The unit is said where a work has stages of several.
    """

    def __call__(self, stage: str, done: int, total: int | None, unit: Unit | None = None) -> None: ...


def silent(stage: str, done: int, total: int | None, unit: Unit | None = None) -> None:
    """A Progress that shows nothing."""
    del stage, done, total, unit
