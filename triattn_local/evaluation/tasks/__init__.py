"""The tasks, by name: one module each."""

from __future__ import annotations

from triattn_local.errors import UsageError

from .base import Case, Metric, Metrics, Size, Task
from .drift import Drift
from .facts import Facts
from .memory import FUNCTION, RESTATED, STATE, TRACE
from .needles import Needles
from .niah import HOPS, KEYS, SINGLE
from .nll import Nll
from .reasoning import Reasoning
from .recursion import Recursion
from .repetition import Repetition

_ALL: tuple[Task, ...] = (
    Nll(), SINGLE, KEYS, HOPS, Needles(), Facts(), RESTATED, FUNCTION, STATE, TRACE, Recursion(), Reasoning(), Drift(),
    Repetition(),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ALL}

__all__ = ["TASKS", "Case", "Metric", "Metrics", "Size", "Task", "pick_tasks"]


def pick_tasks(names: str) -> tuple[Task, ...]:
    """Tasks of a comma-separated list, "all" and "niah" (all needles) among them, in the order of the registry."""
    wanted: set[str] = set()
    for name in (part.strip() for part in names.split(",")):
        if name == "all":
            wanted.update(TASKS)
        elif name == "niah":
            wanted.update(task for task in TASKS if task.startswith("niah-"))
        elif name in TASKS:
            wanted.add(name)
        else:
            raise UsageError(
                f"there is no task {name!r}", where="--tasks", fix=f"take some of {', '.join([*TASKS, 'niah', 'all'])}"
            )
    return tuple(task for task in TASKS.values() if task.name in wanted)
