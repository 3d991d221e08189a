"""Many facts in one text, all asked for in one answer: a head that has forgotten any of them is found out.

The right answer is put into the model's mouth token by token, and each token of a number is looked at: is it the one
that the model would have written there? So one slip does not spoil the rest, and the figure is exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triattn_local.engine.contexts import Model

from ..asking import log_softmax, read
from ..haystack import chat, codes, fit, generator, places, sentences, spread, weave
from ..texts import read_text
from .base import Case, Metric, Metrics, Open, Size

DEFAULT_TOKENS = 3000
DEFAULT_CASES = 3
DEFAULT_FACTS = 12
HAYSTACKS = ("novel", "speech", "manual")


class Facts:
    name = "facts"
    about = "many facts in a text, asked for in one JSON answer, which is given token by token"
    metrics: tuple[Metric, ...] = (
        Metric("right", "share of number tokens that are the likeliest", "more", is_share=True, of="n_facts"),
        Metric("whole", "share of facts of which every token is", "more", is_share=True, of="n_facts"),
        Metric("of_full", "number tokens right, as a share of full attention's", "more"),
        Metric("fact_nll", "NLL of the number tokens, nats a token", "less"),
    )
    main = "right"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        n_facts = size.n_facts or DEFAULT_FACTS
        kinds = list(size.texts or HAYSTACKS)
        res = []
        for i in range(size.n_cases or DEFAULT_CASES):
            kind = kinds[i % len(kinds)]
            rng = generator(self.name, i, seed=size.seed)
            names, numbers = places(rng, n_facts), codes(rng, n_facts)
            needles = [f"The access code of {name} is {number}." for name, number in zip(names, numbers, strict=True)]
            asked = rng.sample(range(n_facts), n_facts)  # not in the order of the text
            ask = (
                "\n\nWrite the access codes of all places as one JSON object, in this order: "
                f"{', '.join(names[k] for k in asked)}. Write the JSON object only."
            )
            answer = json.dumps({names[k]: numbers[k] for k in asked})
            expected = model.vocabulary.tokenize(answer, add_special=False)

            def prompt(parts: Sequence[str], needles: list[str] = needles, ask: str = ask) -> list[int]:
                text = weave(parts, spread(len(needles)), needles)
                return chat(model, [{"role": "user", "content": text + ask}])

            parts = fit(sentences(read_text(kind), rng, kind), prompt, n_tokens - len(expected), kind)
            spans = _spans(model, expected, [numbers[k] for k in asked])
            res.append(Case(self.name, f"{Path(kind).name}-{i}", n_tokens, (prompt(parts), expected, spans)))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        prompt, expected, spans = case.data
        looked_at = {at for span in spans for at in span}
        right, nll = {}, []
        with open_context(len(prompt) + len(expected)) as context:
            logits = read(context, prompt)
            for at, token in enumerate(expected):
                if at in looked_at:
                    right[at] = int(logits.argmax()) == token
                    nll.append(-log_softmax(logits.astype(np.float64))[token])
                logits = context.decode([token], n_logits=1)[0]
        n_right = sum(right.values())
        if budget_tokens == 0:
            with reference.open("wb") as file:
                np.savez(file, n_right=n_right)
        with np.load(reference) as file:
            n_full = int(file["n_right"])
        return {
            "right": n_right / len(right),
            "whole": sum(all(right[at] for at in span) for span in spans) / len(spans),
            "of_full": n_right / max(n_full, 1),
            "fact_nll": float(np.mean(nll)),
            "n_facts": len(spans),
            "n_number_tokens": len(right),
            "n_right": n_right,
        }


def _spans(model: Model, tokens: list[int], numbers: list[str]) -> list[list[int]]:
    """Of each number, the tokens that it lies in."""
    ends = [len(model.vocabulary.detokenize(tokens[: i + 1])) for i in range(len(tokens))]
    starts = [0, *ends[:-1]]
    text, at, res = model.vocabulary.detokenize(tokens), 0, []
    for number in numbers:
        at = text.index(number, at)
        stop = at + len(number)
        res.append([i for i, (a, b) in enumerate(zip(starts, ends, strict=True)) if a < stop and b > at])
        at = stop
    return res
