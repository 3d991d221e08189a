"""Held-out text streamed past the budget: the next token's distribution with all of the past, and without parts of it.

All figures are means over the tokens of the text from the budget on, where something may be missing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triattn_local.engine.contexts import Context, Model

from ..texts import KINDS
from .base import Case, Metric, Metrics, Open, Size, pieces

DEFAULT_TOKENS = 4096
N_TOP = 256
"""tokens of full attention's distribution that the KL divergence tells apart; the rest is one more"""


class Nll:
    name = "nll"
    about = "text streamed past the budget: NLL and KL divergence of the next token"
    metrics: tuple[Metric, ...] = (
        Metric("nll_diff", "nats a token above full attention", "less"),
        Metric("kl", f"KL divergence from full attention, its {N_TOP} likeliest tokens told apart, nats", "less"),
        Metric("top1", "share of tokens where the likeliest next token is full attention's", "more"),
    )
    main = "nll_diff"

    def cases(self, model: Model, size: Size) -> list[Case]:
        n_tokens = size.n_tokens or DEFAULT_TOKENS
        kinds = list(size.texts or KINDS)
        made = pieces(model, kinds, size.n_cases or len(kinds), n_tokens)
        return [Case(self.name, name, n_tokens, tokens) for name, tokens in made]

    def run(self, model: Model, case: Case, budget_tokens: int, open_context: Open, reference: Path) -> Metrics:
        tokens: list[int] = case.data
        with open_context(case.n_tokens) as context:
            if budget_tokens == 0:
                full = _read_full(context, tokens)
                full.save(reference)
                return {"nll": float(full.nll.mean()), "nll_diff": 0.0, "kl": 0.0, "top1": 1.0}
            full = _Full.load(reference)
            return _compare(context, tokens, budget_tokens, full)


class _Full:
    """Full attention's view of every next token: row i is of tokens[i + 1]."""

    def __init__(self, nll: NDArray[np.float32], ids: NDArray[np.int32], logp: NDArray[np.float32]) -> None:
        self.nll = nll
        """[n_tokens - 1]"""
        self.ids = ids
        """[n_tokens - 1, N_TOP] likeliest first"""
        self.logp = logp
        """[n_tokens - 1, N_TOP]"""

    def save(self, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, nll=self.nll, ids=self.ids, logp=self.logp)

    @classmethod
    def load(cls, path: Path) -> _Full:
        with np.load(path) as file:
            return cls(file["nll"], file["ids"], file["logp"])


def log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """[n, n_vocab] -> [n, 1]"""
    top = logits.max(axis=1, keepdims=True)
    parts = logits - top
    np.exp(parts, out=parts)
    res: NDArray[np.float32] = top + np.log(parts.sum(axis=1, keepdims=True))  # pairwise: float32 is enough
    return res


def _read_full(context: Context, tokens: list[int]) -> _Full:
    nll, ids, logp = [], [], []
    n_last = len(tokens) - 1
    for i in range(0, n_last, context.n_batch):
        batch = tokens[i : min(i + context.n_batch, n_last)]
        logits = context.decode(batch, n_logits=len(batch))
        norm = log_sum_exp(logits)
        rows = np.arange(len(batch))[:, None]
        top = np.argpartition(logits, -N_TOP, axis=1)[:, -N_TOP:]
        order = np.argsort(-logits[rows, top], axis=1, kind="stable")
        top = top[rows, order]
        ids.append(top.astype(np.int32))
        logp.append(logits[rows, top] - norm)
        nll.append(norm[:, 0] - logits[rows[:, 0], tokens[i + 1 : i + 1 + len(batch)]])
    return _Full(np.concatenate(nll), np.concatenate(ids), np.concatenate(logp))


def _compare(context: Context, tokens: list[int], first: int, full: _Full) -> Metrics:
    """Means over the tokens from position `first` on."""
    nll: list[NDArray[np.float32]] = []
    kl: list[NDArray[np.float32]] = []
    top1: list[NDArray[np.bool_]] = []
    n_last = len(tokens) - 1
    n_step = min(context.n_batch, context.n_recall or context.n_batch)  # a text that is written gets its recalls
    for i in range(0, n_last, n_step):
        batch = tokens[i : min(i + n_step, n_last)]
        n_rows = min(max(i + len(batch) - (first - 1), 0), len(batch))  # row of position p speaks of p + 1
        logits = context.decode(batch, n_logits=n_rows)
        if n_rows == 0:
            continue
        at = slice(i + len(batch) - n_rows, i + len(batch))
        rows = np.arange(n_rows)
        norm = log_sum_exp(logits)
        nll.append(norm[:, 0] - logits[rows, tokens[at.start + 1 : at.stop + 1]])
        kl.append(kl_divergence(full.logp[at], logits[rows[:, None], full.ids[at]] - norm))
        top1.append(logits.argmax(axis=1) == full.ids[at, 0])
    mean = float(np.concatenate(nll).mean())
    return {
        "nll": mean,
        "nll_diff": mean - float(full.nll[first - 1 :].mean()),
        "kl": float(np.concatenate(kl).mean()),
        "top1": float(np.concatenate(top1).mean()),
    }


def kl_divergence(logp: NDArray[np.float32], logq: NDArray[np.float32]) -> NDArray[np.float32]:
    """KL(p | q) of distributions given by some log probabilities [n, n_top] and one outcome more for the rest: [n]"""
    p, q = np.exp(logp.astype(np.float64)), np.exp(logq.astype(np.float64))
    rest_p = np.maximum(1.0 - p.sum(axis=1), 1e-12)
    rest_q = np.maximum(1.0 - q.sum(axis=1), 1e-12)
    res: NDArray[np.float64] = (p * (logp - logq)).sum(axis=1) + rest_p * np.log(rest_p / rest_q)
    return res.astype(np.float32)
