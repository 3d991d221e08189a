"""Questions with a right answer and wrong ones: right is whichever the model finds likelier than all the others.

Exact and cheap, and it works for models that are too weak to write the answer: nothing is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triattn_local.engine.contexts import Model

from ..asking import each_prompt, log_likelihoods
from .base import Case, Metric, Metrics, Open, Size


@dataclass(frozen=True)
class Question:
    """What is asked at the end of a text."""

    prompt: Sequence[int]
    """the text and the question, up to where the answer begins"""
    choices: Sequence[Sequence[int]]
    """the right answer first"""


Make = Callable[[Model, Size, int, int], list[Question]]
"""model, size, number of the case, tokens -> questions of one text"""


class Choice:
    main = "right"

    def __init__(self, name: str, about: str, n_choices: int, make: Make, n_tokens: int, n_cases: int) -> None:
        self.name, self.about = name, about
        self.n_choices = n_choices
        """how many answers each question has: chance is one in so many"""
        self._make, self._n_tokens, self._n_cases = make, n_tokens, n_cases
        self.metrics: tuple[Metric, ...] = (
            Metric(
                "right",
                f"share of questions whose right answer is the likeliest of {n_choices}",
                "more",
                is_share=True,
                of="n_questions",
            ),
            Metric("margin", "log likelihood of the right answer minus the likeliest wrong one's, nats", "more"),
        )

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or self._n_tokens
        return [
            Case(self.name, f"text-{i}", n_tokens, self._make(model, size, i, n_tokens))
            for i in range(size.n_cases or self._n_cases)
        ]

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        questions: list[Question] = case.data
        margins = []
        with open_context(max(len(q.prompt) + max(map(len, q.choices)) for q in questions)) as context:
            for i, logits in each_prompt(context, [q.prompt for q in questions]):
                scores = log_likelihoods(context, logits, questions[i].choices)
                margins.append(float(scores[0] - scores[1:].max()))
        return {
            "right": sum(margin > 0 for margin in margins) / len(margins),
            "margin": float(np.mean(margins)),
            "n_questions": len(margins),
            "margins": " ".join(f"{margin:+.2f}" for margin in margins),
        }
