"""Texts with something put into them: parts of a longer text, inserts at given depths, cut to a number of tokens."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from triattn_local.engine.contexts import Model
from triattn_local.errors import UsageError

PLACES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Quito", "Riga", "Tunis", "Perth", "Turin", "Leeds", "Bern",
    "Dakar", "Sofia", "Osaka", "Porto", "Seoul", "Tampa", "Malmo", "Izmir", "Delhi", "Kyoto", "Minsk", "Paris",
    "Rabat", "Accra", "Busan", "Genoa", "Haifa", "Koblenz", "Lyon", "Milan", "Nantes", "Omaha", "Prague", "Rome",
)  # fmt: skip
"""what the facts of a text are about, each once"""


def generator(*of: object, seed: int) -> random.Random:
    """The random numbers of one case: others for another seed."""
    return random.Random(" ".join(map(str, [*of, *([f"seed {seed}"] if seed else [])])))


def places(rng: random.Random, n: int) -> list[str]:
    """n different places.

    Raises
    ------
    UsageError
        There are not so many.
    """
    if n > len(PLACES):
        raise UsageError(f"{n} facts are more than the {len(PLACES)} that can be told apart", where="--facts")
    return rng.sample(PLACES, n)


def codes(rng: random.Random, n: int, n_digits: int = 4) -> list[str]:
    """n different numbers of n_digits digits."""
    return [str(code) for code in rng.sample(range(10 ** (n_digits - 1), 10**n_digits), n)]


def spread(n: int, first: float = 0.04, last: float = 0.92) -> list[float]:
    """n depths, evenly over the text."""
    return [first + (last - first) * (i + 0.5) / n for i in range(n)]


def sentences(text: str, rng: random.Random, where: str) -> list[str]:
    """Sentences of a text from somewhere in its first quarter on, each with its full stop.

    Raises
    ------
    UsageError
        It has none.
    """
    start = text.find(". ", rng.randrange(max(len(text) // 4, 1)))
    if start < 0:
        raise UsageError("has no sentences", where=where, fix="give other --texts")
    return [sentence + "." for sentence in text[start + 2 :].split(". ")]


def weave(parts: Sequence[str], depths: Sequence[float], inserts: Sequence[str], joint: str = " ") -> str:
    """The parts in a row, with each insert between two of them, where that share of the characters has passed."""
    total = sum(map(len, parts))
    places = sorted(zip(depths, inserts, strict=True), key=lambda place: place[0])
    res, n, k = [], 0, 0
    for part in parts:
        while k < len(places) and places[k][0] * total <= n:
            res.append(places[k][1])
            k += 1
        res.append(part)
        n += len(part)
    return joint.join([*res, *(insert for _, insert in places[k:])])


def fit(parts: Sequence[str], text: Callable[[Sequence[str]], list[int]], n_tokens: int, where: str) -> Sequence[str]:
    """As many of the parts as make a prompt of at most n_tokens.

    Parameters
    ----------
    text : callable
        The whole prompt's tokens with these parts.

    Raises
    ------
    UsageError
        There are too few parts, or the prompt is too long without any.
    """
    n = bisect_right(range(1, len(parts) + 1), n_tokens, key=lambda n: len(text(parts[:n])))
    n_least = len(text(parts[:n]))
    if n_least > n_tokens:
        raise UsageError(f"what is asked alone has {n_least} tokens", where=where, fix="give a larger --tokens")
    if n == len(parts):
        raise UsageError(f"the text has {n_least} tokens, {n_tokens} are needed", where=where, fix="give other --texts")
    return parts[:n]


def chat(model: Model, messages: Sequence[dict[str, Any]]) -> list[int]:
    """A conversation's tokens, up to where the answer begins."""
    return model.vocabulary.tokenize(model.vocabulary.apply_chat_template(messages), parse_special=True)
