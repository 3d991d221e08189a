"""A needle in a haystack: facts inside a long text, asked for after it.

The question comes when rounds have already chosen what to keep, without knowing it. One fact, one of several of the
same form, or one that must be followed to another.
"""

from __future__ import annotations

import random
from pathlib import Path

from triattn_local.engine.contexts import Model
from triattn_local.errors import UsageError

from ..haystack import chat, generator, sentences
from ..texts import read_text
from .base import Case, Metric, Metrics, Open, Size, ask_number

DEFAULT_TOKENS = 3000
DEFAULT_CASES = 12
DEPTHS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)

_HAYSTACKS = ("novel", "speech", "manual")
_CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Quito", "Riga", "Tunis", "Perth", "Turin", "Leeds", "Bern")
_NAMES = ("Marta", "Edwin", "Sofia", "Anton", "Clara", "Hugo", "Irene", "Jonas", "Laura", "Oscar", "Petra", "Viktor")
_N_KEYS = 4


class Niah:
    metrics: tuple[Metric, ...] = (
        Metric("found", "share of the questions answered with the right number", "more", is_share=True),
    )
    main = "found"

    def __init__(self, kind: str, about: str) -> None:
        self.kind = kind
        self.name = f"niah-{kind}"
        self.about = about

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        kinds = list(size.texts or _HAYSTACKS)
        res = []
        for i in range(size.n_cases or DEFAULT_CASES):
            depth, seed = DEPTHS[i % len(DEPTHS)], i // len(DEPTHS)
            rng = generator(self.name, i, seed=size.seed)
            kind = kinds[i % len(kinds)]
            text = read_text(kind)
            needles, question, answer, forbidden = self._facts(rng)
            depths = [depth, *((depth + (k + 1) / len(needles)) % 1.0 for k in range(len(needles) - 1))]
            prompt = _prompt(model, sentences(text, rng, kind), needles, depths, question, n_tokens)
            res.append(Case(self.name, f"depth-{depth:g}-seed-{seed}", n_tokens, (prompt, answer, forbidden), depth))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        return ask_number(model, case, open_context)

    def _facts(self, rng: random.Random) -> tuple[list[str], str, str, list[str]]:
        """Needles, the question, its answer, and what would be a wrong answer."""
        numbers = [str(n) for n in rng.sample(range(1_000_000, 10_000_000), _N_KEYS)]
        cities = rng.sample(_CITIES, _N_KEYS)
        names = rng.sample(_NAMES, _N_KEYS)
        if self.kind == "hops":
            needles = [f"The keeper of {cities[0]} is called {names[0]}."]
            needles += [f"The secret number of {names[i]} is {numbers[i]}." for i in range(2)]
            question = f"What is the secret number of the keeper of {cities[0]}?"
            return needles, question, numbers[0], numbers[1:]
        n = _N_KEYS if self.kind == "keys" else 1
        needles = [f"The secret number of {cities[i]} is {numbers[i]}." for i in range(n)]
        return needles, f"What is the secret number of {cities[0]}?", numbers[0], numbers[1:]


def _prompt(
    model: Model,
    parts: list[str],
    needles: list[str],
    depths: list[float],
    question: str,
    n_tokens: int,
) -> list[int]:
    """The text with the needles between its sentences, and the question after it: n_tokens or a few less."""
    vocabulary = model.vocabulary
    ask = f"\n\nQuestion: {question} Answer with the number only."
    n_around = len(chat(model, [{"role": "user", "content": " ".join(needles) + ask}])) + 16
    counts, n = [], 0
    for sentence in parts:
        n_here = len(vocabulary.tokenize(sentence + " ", add_special=False))
        if n + n_here > n_tokens - n_around:
            break
        n += n_here
        counts.append(n)
    else:
        raise UsageError(
            f"a haystack of {n_tokens} tokens needs a longer text than {n} tokens", fix="give a smaller --tokens"
        )
    parts = parts[: len(counts)]
    places = sorted(
        ((sum(c <= depth * n for c in counts), needle) for depth, needle in zip(depths, needles, strict=True)),
        reverse=True,
    )
    for place, needle in places:
        parts.insert(place, needle)
    return chat(model, [{"role": "user", "content": " ".join(parts) + ask}])


SINGLE = Niah("single", "a fact in a long text, asked for after it")
KEYS = Niah("keys", f"one of {_N_KEYS} facts of the same form")
HOPS = Niah("hops", "a fact that must be followed to another")
