"""What a task is to the runner."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from triattn_local.engine.contexts import Context, Model
from triattn_local.errors import UsageError

from ..answers import generate, has_number
from ..texts import read_text

Metrics = Mapping[str, float | str]
"""numbers that are averaged, and texts for whoever reads the lines"""

Open = Callable[[int], Context]
"""makes a fresh context for a method under test, given the number of logical tokens that it will see"""


@dataclass(frozen=True)
class Metric:
    """A column of the table."""

    name: str
    about: str
    better: Literal["less", "more"]
    is_share: bool = False
    """share of right answers among the cases"""
    of: str | None = None
    """what the number of answers in a case is called among its metrics; None: a case is one answer"""


@dataclass(frozen=True)
class Case:
    """One thing to do, the same for every method."""

    task: str
    name: str
    n_tokens: int
    """logical tokens that are in the cache when quality is looked at: what a kept fraction is a fraction of"""
    data: Any = None
    """the task's own"""
    axis: float | None = None
    """how hard it is, where a task has a measure for that: depth of the needle, levels to go back"""


@dataclass(frozen=True)
class Size:
    """How much of a task is run. None: the task's own default."""

    n_tokens: int | None = None
    n_cases: int | None = None
    texts: Sequence[str] | None = None
    """kinds of text, or paths"""
    problems: Path | None = None
    """JSON lines with problem and answer"""
    n_samples: int = 1
    """answers drawn for each problem"""
    temperature: float = 0.0
    n_facts: int | None = None
    """in one text, where a task has several"""
    seed: int = 0
    """another one: other facts in other places, of the same kind and size"""


class Task(Protocol):
    """One way to measure what forgetting costs."""

    name: str
    about: str
    metrics: tuple[Metric, ...]
    main: str
    """the metric that is plotted"""

    def cases(self, model: Model, size: Size) -> list[Case]:
        """What to run, the same for the same model and size."""

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        """One case in one context.

        budget_tokens 0: full attention, which comes first and may leave what the others are compared with in the file
        `reference`.
        """


MAX_NUMBER = 32
"""tokens of an answer that is to be a number only"""


def ask_number(model: Model, case: Case, open_context: Open) -> Metrics:
    """The answer to a case whose data are its prompt, the right number, and those that it could be taken for."""
    prompt, expected, forbidden = case.data
    with open_context(len(prompt) + MAX_NUMBER) as context:
        answer = model.vocabulary.detokenize(generate(context, prompt, MAX_NUMBER))
    return {"found": float(has_number(answer, expected, forbidden)), "expected": expected, "answer": answer}


def pieces(model: Model, kinds: Sequence[str], n_cases: int, n_tokens: int) -> Iterator[tuple[str, list[int]]]:
    """Name and tokens of each case: a piece of each text in turn, then the next piece of each; raises as ``cut``."""
    for i in range(n_cases):
        kind, offset = kinds[i % len(kinds)], i // len(kinds)
        yield f"{Path(kind).name}-{offset}", cut(model, read_text(kind), n_tokens, offset, kind)


def cut(model: Model, text: str, n_tokens: int, offset: int, where: str) -> list[int]:
    """n_tokens tokens of a text, the offset-th piece of that length, with the model's BOS in front.

    Raises
    ------
    UsageError
        The text is too short.
    """
    tokens = model.vocabulary.tokenize(text, add_special=False)
    bos = model.vocabulary.tokenize("")
    n = n_tokens - len(bos)
    piece = tokens[offset * n : (offset + 1) * n]
    if len(piece) < n:
        raise UsageError(
            f"holds {len(tokens)} tokens, {(offset + 1) * n} are needed", where=where, fix="give a smaller --tokens"
        )
    return bos + piece
