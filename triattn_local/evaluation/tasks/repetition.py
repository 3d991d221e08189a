"""Long answers at a temperature: does the text turn in circles sooner when parts of it are forgotten?

Several seeds each, since one text that loops says little. Full attention is no more than another method here: small
models repeat themselves with a whole cache too.
"""

from __future__ import annotations

from pathlib import Path

from triattn_local.config import SamplingConfig
from triattn_local.engine.contexts import Model

from ..answers import generate
from ..texts import KINDS, read_text
from .base import Case, Metric, Metrics, Open, Size, cut
from .drift import PROMPT_TOKENS, repeated

DEFAULT_TOKENS = 4352
DEFAULT_CASES = 5
TEMPERATURE = 0.6
_REPEAT = 8


class Repetition:
    name = "repetition"
    about = "long texts written at a temperature of 0.6, one a seed: how much of them is said again"
    metrics: tuple[Metric, ...] = (
        Metric("repeated", f"share of its sequences of {_REPEAT} tokens that came before", "less"),
        Metric("repeated_late", "the same in the last quarter alone", "less"),
    )
    main = "repeated"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        kinds = list(size.texts or KINDS[:1])
        n_prompt = min(PROMPT_TOKENS, n_tokens // 2)
        res = []
        for i in range(size.n_cases or DEFAULT_CASES):
            kind = kinds[i % len(kinds)]
            prompt = cut(model, read_text(kind), n_prompt, 0, kind)
            sampling = SamplingConfig(temperature=size.temperature or TEMPERATURE, seed=1000 * size.seed + i)
            res.append(Case(self.name, f"{Path(kind).name}-{i}", n_tokens, (prompt, sampling)))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        prompt, sampling = case.data
        with open_context(case.n_tokens) as context:
            answer = generate(context, prompt, case.n_tokens - len(prompt), sampling, ignore_eos=True)
        return {
            "repeated": repeated(answer, _REPEAT),
            "repeated_late": repeated(answer[-len(answer) // 4 :], _REPEAT),
            "answer": model.vocabulary.detokenize(answer[-64:]),
        }
