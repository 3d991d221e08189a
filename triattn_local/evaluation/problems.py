"""Problems with answers that can be checked, made by a program: the same for the same seed.

`worked` solves them at length, in the manner of a reasoning model: held-out text for the NLL task, and what shows a
small model in the prompt how it is done.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_NAMES = ("alpha", "beta", "gamma", "delta", "kappa", "lambda", "omega", "sigma", "theta", "zeta")


@dataclass(frozen=True)
class Problem:
    """A question with its answer."""

    question: str
    solution: str
    """worked, ending with the answer in \\boxed{}"""
    answer: str


def column_sum(rng: random.Random, n_terms: int) -> Problem:
    """A sum of two-digit numbers with a running total."""
    terms = [rng.randint(11, 99) for _ in range(n_terms)]
    lines, total = [f"Start with {terms[0]}."], terms[0]
    for term in terms[1:]:
        lines.append(f"Add {term}: {total} + {term} = {total + term}.")
        total += term
    return Problem(
        f"What is {' + '.join(map(str, terms))}?",
        " ".join(lines) + f" The answer is \\boxed{{{total}}}.",
        str(total),
    )


def chain(rng: random.Random, n_steps: int) -> Problem:
    """Variables defined by earlier ones, not always by the last: early values are wanted late."""
    names = rng.sample(_NAMES, min(n_steps, len(_NAMES)))
    values = {names[0]: rng.randint(2, 9)}
    given, lines = [f"{names[0]} = {values[names[0]]}"], [f"{names[0]} is {values[names[0]]}."]
    for name in names[1:]:
        source = rng.choice(list(values))
        sign = rng.choice(["+", "-"])
        by = rng.randint(2, 30)
        values[name] = values[source] + (by if sign == "+" else -by)
        given.append(f"{name} = {source} {sign} {by}")
        lines.append(
            f"{name} is {source} {sign} {by}. {source} is {values[source]}, so {name} is "
            f"{values[source]} {sign} {by} = {values[name]}."
        )
    last = names[-1]
    return Problem(
        f"{'; '.join(given)}. What is {last}?",
        " ".join(lines) + f" The answer is \\boxed{{{values[last]}}}.",
        str(values[last]),
    )


def worked(seed: int, n_chars: int) -> str:
    """Worked problems in a row, with a look back at an earlier one now and then."""
    rng = random.Random(seed)
    parts: list[str] = []
    answers: list[tuple[int, str]] = []
    number = 0
    while sum(map(len, parts)) < n_chars:
        number += 1
        problem = column_sum(rng, rng.randint(4, 9)) if rng.random() < 0.5 else chain(rng, rng.randint(4, 9))
        parts.append(f"Problem {number}. {problem.question}\n\n{problem.solution}\n\n")
        if answers and rng.random() < 0.4:
            earlier, answer = rng.choice(answers)
            parts.append(
                f"Compare with problem {earlier}, where the answer was {answer}: "
                f"{answer} and {problem.answer} differ by {abs(int(answer) - int(problem.answer))}.\n\n"
            )
        answers.append((number, problem.answer))
    return "".join(parts)
