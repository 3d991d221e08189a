"""Long generation far past the budget: does the text begin to turn in circles, does the model still stand behind it?

The text is drawn with eviction on; then full attention reads it and says how likely it finds it. Compare with full
attention's own text: a small model repeats itself with a whole cache too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from triattn_local.config import SamplingConfig
from triattn_local.engine.contexts import Context, Model

from ..answers import generate
from ..texts import KINDS
from .base import Case, Metric, Metrics, Open, Size, pieces
from .nll import log_sum_exp

DEFAULT_TOKENS = 2048
PROMPT_TOKENS = 256
DEFAULT_CASES = 3
TEMPERATURE = 0.8
_REPEAT = 8
_GRAM = 4


class Drift:
    name = "drift"
    about = "a long text written past the budget"
    metrics: tuple[Metric, ...] = (
        Metric("self_nll", "NLL of the text under full attention, nats a token", "less"),
        Metric("repeated", f"share of its tokens that end a sequence of {_REPEAT} seen before", "less"),
        Metric("distinct", f"distinct sequences of {_GRAM} tokens among all", "more"),
    )
    main = "self_nll"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        kinds = list(size.texts or KINDS[:DEFAULT_CASES])
        n_prompt = min(PROMPT_TOKENS, n_tokens // 2)
        res = []
        for i, (name, prompt) in enumerate(pieces(model, kinds, size.n_cases or len(kinds), n_prompt)):
            sampling = SamplingConfig(temperature=size.temperature or TEMPERATURE, seed=i)
            res.append(Case(self.name, name, n_tokens, (prompt, sampling)))
        return res

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        prompt, sampling = case.data
        with open_context(case.n_tokens) as context:
            answer = generate(context, prompt, case.n_tokens - len(prompt), sampling, ignore_eos=True)
        with model.context(None, case.n_tokens) as full:
            self_nll = _self_nll(full, prompt, answer)
        return {
            "self_nll": self_nll,
            "repeated": repeated(answer, _REPEAT),
            "distinct": distinct(answer, _GRAM),
            "answer": model.vocabulary.detokenize(answer[-64:]),
        }


def _self_nll(full: Context, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Mean NLL of the answer after the prompt, in nats a token."""
    last = full.prefill(prompt)[None].copy()
    total = 0.0
    for i in range(0, len(answer), full.n_batch):
        batch = answer[i : i + full.n_batch]
        logits = full.decode(batch, n_logits=len(batch))
        seen = np.concatenate([last, logits[:-1]])
        total += float((log_sum_exp(seen)[:, 0] - seen[np.arange(len(batch)), batch]).sum())
        last = logits[-1:].copy()
    return total / len(answer)


def repeated(tokens: Sequence[int], n: int) -> float:
    """Share of the n-grams that came before."""
    seen: set[tuple[int, ...]] = set()
    n_again = 0
    n_grams = max(len(tokens) - n + 1, 0)
    for i in range(n_grams):
        gram = tuple(tokens[i : i + n])
        n_again += gram in seen
        seen.add(gram)
    return n_again / max(n_grams, 1)


def distinct(tokens: Sequence[int], n: int) -> float:
    """Distinct n-grams among all."""
    n_grams = max(len(tokens) - n + 1, 0)
    return len({tuple(tokens[i : i + n]) for i in range(n_grams)}) / max(n_grams, 1)
