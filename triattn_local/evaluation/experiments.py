"""Ways to rank beyond the paper, tried through the real cache: each takes the place of the engine's in every round.

What became of them is in docs/LOG.md. They are slow, Python between the rounds, and are kept so that anybody can
measure them again, on another model: ``eval --methods experiments``. What helped is in the engine.

A ranking gets the sets of a ``per-layer-head`` round in the order layer by layer, KV head by KV head, and writes their
scores [n_set, n_candidates]. Scores of query heads are those of the engine, before the z-score.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
from numpy.typing import NDArray

from triattn_local.engine import native
from triattn_local.errors import UsageError
from triattn_local.model.metadata import read_stats
from triattn_local.model.model_info import read_model_info
from triattn_local.model.scoring import (
    STD_FLOOR,
    RopeParams,
    future_offsets,
    future_query,
    group_max,
    norm_weights,
    score_norm,
    score_trig,
    zscore,
)

if TYPE_CHECKING:
    from triattn_local.engine.contexts import Context

Floats = NDArray[np.float64]
Rank = Callable[["Context", native.Round], Floats]
"""returns new scores [n_set, n_candidates]"""


def ranking(rank: Rank) -> Callable[[Context], None]:
    """What a Method does to a fresh context to be ranked by `rank`."""

    def attach(context: Context) -> None:
        def write(this: native.Round) -> None:
            this.scores[:] = rank(context, this)

        context.rank_with(write)

    return attach


# ------------------------------------------------------- what rankings look at


@functools.lru_cache(maxsize=8)
def _sets(ctx: int) -> tuple[tuple[int, int], ...]:
    """(layer, KV head) of each set."""
    layers = native.get_layers(ctx)
    n_head_kv = native.get_stats(ctx)[0].n_head_kv
    return tuple((il, head) for il in layers for head in range(n_head_kv))


def head_scores(context: Context, n_set: int) -> Floats:
    """Scores of single query heads, [n_set, n_group, n_candidates]; logits, before attention's scale."""
    sets = _sets_of(context, n_set)
    n_group = context.model.n_head // (n_set // len({il for il, _ in sets}))
    return np.array(
        [[native.get_scores(context.handle, il, head * n_group + g)[0] for g in range(n_group)] for il, head in sets],
        dtype=np.float64,
    )


def keys(context: Context, this: native.Round) -> Floats:
    """K rows of the candidates after RoPE, [n_set, n_candidates, head_dim]"""
    return _rows(context, this, is_v=False)


def values(context: Context, this: native.Round) -> Floats:
    """V rows of the candidates, [n_set, n_candidates, head_dim_v]"""
    return _rows(context, this, is_v=True)


def _rows(context: Context, this: native.Round, is_v: bool) -> Floats:
    """As they lie in the cache: a quantised one holds them turned by a Hadamard matrix, which keeps lengths."""
    type_number, _ = native.get_rows_info(context.handle, is_v=is_v)
    kind = gguf.GGMLQuantizationType(type_number)
    res = []
    for il, head in _sets_of(context, len(this.scores)):
        raw = native.get_rows(context.handle, il, head, this.cells, is_v=is_v)
        rows = raw.view(np.float16) if kind == gguf.GGMLQuantizationType.F16 else gguf.dequantize(raw, kind)
        res.append(rows.astype(np.float64))
    return np.array(res)


def value_norms(context: Context, this: native.Round) -> Floats:
    """|v|, [n_set, n_candidates]"""
    return np.asarray(np.linalg.norm(values(context, this), axis=-1))


def value_deviations(context: Context, this: native.Round) -> Floats:
    """|v - mean of v|, [n_set, n_candidates]: a value like all others is no loss"""
    v = values(context, this)
    return np.asarray(np.linalg.norm(v - v.mean(axis=1, keepdims=True), axis=-1))


def output_norms(context: Context, this: native.Round) -> Floats:
    """|W_o v|, the mean over the query heads of a KV head, [n_set, n_candidates]; for caches that are not quantised"""
    v = values(context, this)
    res = []
    for (il, head), rows in zip(_sets_of(context, len(v)), v, strict=True):
        w = _output_weights(context.model.path)[il]
        n_group = w.shape[1] // (rows.shape[1] * native.get_stats(context.handle)[0].n_head_kv)
        parts = w.reshape(w.shape[0], -1, rows.shape[1])[:, head * n_group : (head + 1) * n_group]
        res.append(np.mean([np.linalg.norm(rows @ parts[:, g].T, axis=1) for g in range(n_group)], axis=0))
    return np.array(res)


@functools.lru_cache(maxsize=1)
def _output_weights(path: Path) -> dict[int, NDArray[np.float32]]:
    """W_o of each layer, [n_embd, n_head * head_dim_v]"""
    res = {}
    for tensor in gguf.GGUFReader(path).tensors:
        match = re.fullmatch(r"blk\.(\d+)\.attn_output\.weight", tensor.name)
        if match:
            res[int(match[1])] = gguf.dequantize(tensor.data, tensor.tensor_type)
    return res


def _sets_of(context: Context, n_set: int) -> tuple[tuple[int, int], ...]:
    sets = _sets(context.handle)
    if len(sets) != n_set:
        raise UsageError("experiments rank the sets of the mode per-layer-head", where="--mode")
    return sets


def attention_mass(context: Context, n_set: int) -> Floats:
    """Expected share of attention, [n_set, n_candidates]: softmax of each query head's scores over the candidates,
    summed over the query heads of a KV head."""
    logits = head_scores(context, n_set) / math.sqrt(context.model.head_dim)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return np.asarray(p.sum(axis=1))


# ------------------------------------------------------------------- rankings


def mass(context: Context, this: native.Round) -> Floats:
    """Expected share of attention instead of the largest z-score."""
    return attention_mass(context, len(this.scores))


def mass_value(context: Context, this: native.Round) -> Floats:
    """Expected share of attention times |v|: what the token adds to the head's output."""
    return attention_mass(context, len(this.scores)) * value_norms(context, this)


def group_mean(context: Context, this: native.Round) -> Floats:
    """Mean of the z-scores over the query heads of a KV head, instead of the largest."""
    return np.asarray(zscore(head_scores(context, len(this.scores))).mean(axis=1))


def raw_max(context: Context, this: native.Round) -> Floats:
    """Largest score of the query heads, without z-score."""
    return np.asarray(head_scores(context, len(this.scores)).max(axis=1))


def value(weight: float, size: Callable[[Context, native.Round], Floats] = value_norms) -> Rank:
    """Add the z-score of log |v|, or of another size of the value."""

    def rank(context: Context, this: native.Round) -> Floats:
        return np.asarray(this.scores + weight * zscore(np.log(size(context, this) + STD_FLOOR)))

    return rank


def log_value(weight: float, size: Callable[[Context, native.Round], Floats] = value_norms) -> Rank:
    """z-score of S / sqrt(head_dim) + weight log |v|: the logarithm of what attention would add, up to a constant."""

    def rank(context: Context, this: native.Round) -> Floats:
        logits = head_scores(context, len(this.scores)) / math.sqrt(context.model.head_dim)
        sizes = np.log(size(context, this) + STD_FLOOR)
        return np.asarray(zscore(logits + weight * sizes[:, None]).max(axis=1))

    return rank


def soft_max(beta: float) -> Rank:
    """log sum exp of the query heads' z-scores: between the largest (large beta) and the mean (small beta)."""

    def rank(context: Context, this: native.Round) -> Floats:
        z = beta * zscore(head_scores(context, len(this.scores)))
        top = z.max(axis=1, keepdims=True)
        return np.asarray((top[:, 0] + np.log(np.exp(z - top).mean(axis=1))) / beta)

    return rank


def rank_max(context: Context, this: native.Round) -> Floats:
    """Largest place in the order of a query head's scores, instead of the largest z-score."""
    return np.asarray(head_scores(context, len(this.scores)).argsort(axis=-1).argsort(axis=-1).max(axis=1), np.float64)


def max_over_offsets(context: Context, this: native.Round) -> Floats:
    """The largest over the future distances instead of the mean. For plain RoPE, and caches that are not quantised."""
    info = read_model_info(context.model.path)
    stats = read_stats(context.model.path)
    if stats is None:
        raise UsageError("reads the statistics from the model file", where=str(context.model.path))
    params = RopeParams.of(info)
    sets = _sets_of(context, len(this.scores))
    k = keys(context, this)
    res = np.empty(this.scores.shape)
    for il in dict.fromkeys(il for il, _ in sets):
        rows = [i for i, (layer, _) in enumerate(sets) if layer == il]
        i = stats.layers.index(il)
        k_rot = k[rows].transpose(1, 0, 2)
        trig = [
            score_trig(future_query(stats.q_mean[i], this.pos_next, np.array([d]), params), k_rot)
            for d in future_offsets()
        ]
        norm = score_norm(norm_weights(stats.q_mean[i], stats.q_abs[i], params), k_rot, params)
        res[rows] = group_max(zscore(np.max(trig, axis=0) + norm), len(rows))
    return res


def key_novelty(weight: float) -> Rank:
    """Add the z-score of how far a key points from the mean of all keys (KeyDiff, arXiv:2504.15364)."""

    def rank(context: Context, this: native.Round) -> Floats:
        k = keys(context, this)
        k /= np.linalg.norm(k, axis=-1, keepdims=True)
        mean = k.mean(axis=1, keepdims=True)
        return np.asarray(this.scores - weight * zscore((k * mean).sum(axis=-1)))

    return rank


def recency(weight: float) -> Rank:
    """Add the token's place between the oldest (0) and the newest candidate (1)."""

    def rank(context: Context, this: native.Round) -> Floats:
        del context
        first, last = this.pos.min(axis=1, keepdims=True), this.pos.max(axis=1, keepdims=True)
        return np.asarray(this.scores + weight * (this.pos - first) / np.maximum(last - first, 1))

    return rank


def quotas(n_segment: int, share: float) -> Rank:
    """A share of the budget goes to the best of each of n_segment equal stretches of the text, the rest to the best."""

    def rank(context: Context, this: native.Round) -> Floats:
        eviction = native.get_params(context.handle)
        assert eviction is not None
        n_kept = eviction.budget_tokens - eviction.n_keep - eviction.window
        n_each = max(int(share * n_kept / n_segment), 1)
        scores = this.scores.astype(np.float64)
        segment = (this.pos.astype(np.int64) * n_segment) // max(this.pos_next, 1)
        res = scores.copy()
        bonus = scores.max() - scores.min() + 1.0
        for row, (s, seg) in enumerate(zip(scores, segment, strict=True)):
            for number in range(n_segment):
                inside = np.flatnonzero(seg == number)
                best = inside[np.argsort(-s[inside], kind="stable")[:n_each]]
                res[row, best] += bonus
        return res

    return rank


def delimiters(weight: float) -> Rank:
    """A bonus for the first token of a line or sentence."""

    def rank(context: Context, this: native.Round) -> Floats:
        starts = _line_starts(context)
        return np.asarray(this.scores + weight * starts[this.pos])

    return rank


def _line_starts(context: Context) -> NDArray[np.bool_]:
    """[n_past] whether a token comes after the end of a line or sentence"""
    text = [context.model.vocabulary.token_bytes(token) for token in context.tokens]
    ends = [t.endswith((b"\n", b".", b"!", b"?")) for t in text]
    return np.array([True, *ends[:-1]])
