"""Several needles in one text, each asked for on its own: one reading, as many questions as needles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triattn_local.engine.contexts import Model

from ..answers import has_number
from ..asking import each_prompt, greedy
from ..haystack import chat, codes, fit, generator, places, sentences, spread, weave
from ..texts import read_text
from .base import MAX_NUMBER, Case, Metric, Metrics, Open, Size
from .facts import DEFAULT_FACTS, DEFAULT_TOKENS, HAYSTACKS

DEFAULT_CASES = 3
_N_DIGITS = 6


class Needles:
    name = "needles"
    about = "several facts in one text, each asked for on its own"
    metrics: tuple[Metric, ...] = (
        Metric("found", "share of questions answered with the right number", "more", is_share=True, of="n_facts"),
    )
    main = "found"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        n_facts = size.n_facts or DEFAULT_FACTS
        kinds = list(size.texts or HAYSTACKS)
        res = []
        for i in range(size.n_cases or DEFAULT_CASES):
            kind = kinds[i % len(kinds)]
            rng = generator(self.name, i, seed=size.seed)
            names, numbers = places(rng, n_facts), codes(rng, n_facts, _N_DIGITS)
            needles = [f"The secret number of {name} is {number}." for name, number in zip(names, numbers, strict=True)]

            def prompt(parts: Sequence[str], name: str = names[0], needles: list[str] = needles) -> list[int]:
                text = weave(parts, spread(len(needles)), needles)
                ask = f"\n\nQuestion: What is the secret number of {name}? Answer with the number only."
                return chat(model, [{"role": "user", "content": text + ask}])

            parts = fit(sentences(read_text(kind), rng, kind), prompt, n_tokens - MAX_NUMBER, kind)
            prompts = [prompt(parts, name) for name in names]
            res.append(Case(self.name, f"{Path(kind).name}-{i}", n_tokens, (prompts, numbers)))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        prompts, numbers = case.data
        said = []
        with open_context(max(map(len, prompts)) + MAX_NUMBER) as context:
            for _, logits in each_prompt(context, prompts):
                said.append(model.vocabulary.detokenize(greedy(context, logits, MAX_NUMBER)))
        found = [
            has_number(answer, number, [other for other in numbers if other != number])
            for answer, number in zip(said, numbers, strict=True)
        ]
        return {
            "found": sum(found) / len(found),
            "n_facts": len(found),
            "by_depth": "".join("x" if ok else "." for ok in found),
            "expected": " | ".join(numbers),
            "answer": " | ".join(said),
        }
