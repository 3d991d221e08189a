"""What other papers keep a token for, in NumPy: the policies that rank by the attention of queries that were seen.

The reference for the engine (``llama-triattn-attention.h``) and its tests, as ``scoring`` is for the centres; in
float64, of one layer at a time. Queries are [n_query, n_head, head_dim], times the scale of attention, ascending by
position; keys [n_token, n_head_kv, head_dim] as cached. Each KV head holds tokens of its own, at positions
[n_head_kv, n_token]; all that it holds, those included that cannot be evicted.

Scores are [n_head_kv, n_token], higher is kept longer. Knows nothing of cells and of which tokens are candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from triattn_local.model.scoring import Float64s, Floats

Ints = npt.NDArray[np.integer]

SNAPKV_QUERIES, SNAPKV_POOL = 32, 5
RKV_QUERIES, RKV_POOL = 8, 7
RKV_LAMBDA, RKV_LIKE = 0.1, 0.5


def attention(queries: Floats, q_pos: Ints, keys: Floats, k_pos: Ints, *, soft_cap: float = 0.0) -> Float64s:
    """a_q(i): softmax weights of each query over the tokens that its head holds and it sees.

    Returns
    -------
    float64 [n_head, n_query, n_token]
    """
    logits = _logits(queries, q_pos, keys, k_pos, soft_cap)
    return _softmax(logits)


def snapkv(weights: Float64s, q_pos: Ints, k_pos: Ints) -> Float64s:
    """SnapKV (arXiv:2404.14469, eq. 1 and 2): attention of the last 32 queries, summed and pooled.

    C(i) = sum_q a_q(i), and then the mean over the neighbours i - 2 ... i + 2 (zeros beyond the ends) of the tokens
    before the first of these queries. With grouped queries the mean over those of a KV head. Only the order counts,
    the sum is as good as a mean.
    """
    scores = _of_groups(weights.sum(axis=1), len(k_pos))
    for head, pos in enumerate(k_pos):
        order = _before(pos, q_pos[0])
        scores[head, order] = np.convolve(scores[head, order], np.ones(SNAPKV_POOL) / SNAPKV_POOL, "same")
    return scores


def h2o(weights: Float64s, k_pos: Ints, before: Float64s | None = None) -> Float64s:
    """H2O (arXiv:2306.14048, section 4): attention added up over all queries since the token came.

    F(i) = sum_q a_q(i). `before` [n_head_kv, n_token] is what earlier queries gave. With grouped queries the mean over
    those of a KV head.
    """
    return _of_groups(weights.sum(axis=1), len(k_pos)) + (0.0 if before is None else before)


def tova(weights: Float64s, k_pos: Ints) -> Float64s:
    """TOVA (arXiv:2401.06104, section 3.2): attention of the last query, the mean over all heads of the layer."""
    return np.tile(weights[:, -1].mean(axis=0), (len(k_pos), 1))


def rkv(queries: Floats, q_pos: Ints, keys: Floats, k_pos: Ints, *, soft_cap: float = 0.0) -> Float64s:
    """R-KV (arXiv:2505.24133, section 3): Z = lambda I - (1 - lambda) R, with lambda = 0.1.

    I: for each of the last 8 queries the softmax, over the tokens before the first of them, of the largest logit of a
    KV head's query heads; the mean over the queries, and the largest of the neighbours i - 3 ... i + 3.

    R: the softmax over all tokens of the mean cosine of a token's key with the others'. A token leaves out the last
    one that is like it (cosine above 0.5): the most recent of its like is not redundant for it (beta = 1).
    """
    n_head_kv, n_token = k_pos.shape
    logits = _logits(queries, q_pos, keys, k_pos, soft_cap)
    logits = logits.reshape(n_head_kv, -1, *logits.shape[1:]).max(axis=1)
    scores = np.zeros((n_head_kv, n_token))
    for head, pos in enumerate(k_pos):
        order = _before(pos, q_pos[0])
        if len(order):
            importance = np.pad(_softmax(logits[head][:, order]).mean(axis=0), RKV_POOL // 2, constant_values=-np.inf)
            pooled = np.lib.stride_tricks.sliding_window_view(importance, RKV_POOL).max(axis=-1)
            scores[head, order] = RKV_LAMBDA * pooled
        order = np.argsort(pos, kind="stable")
        k = np.asarray(keys[order, head], np.float64)
        k = k / (np.linalg.norm(k, axis=-1, keepdims=True) + 1e-8)
        cosine = k @ k.T
        np.fill_diagonal(cosine, 0.0)
        for row in cosine:
            like = np.flatnonzero(row > RKV_LIKE)
            if len(like):
                row[like[-1]] = 0.0
        scores[head, order] -= (1.0 - RKV_LAMBDA) * _softmax(cosine.mean(axis=0))
    return scores


def last_attention(weights: Float64s, k_pos: Ints) -> Float64s:
    """log of the mean of a_q(i) over queries and query heads of a KV head: what ``weight_q`` weighs, as a z-score."""
    return np.log(np.maximum(_of_groups(weights.mean(axis=1), len(k_pos)), 1e-10))


def _logits(queries: Floats, q_pos: Ints, keys: Floats, k_pos: Ints, soft_cap: float) -> Float64s:
    n_head_kv = len(k_pos)
    q = np.asarray(queries, np.float64).reshape(len(queries), n_head_kv, -1, queries.shape[-1])
    logits = np.einsum("qhgd,thd->hgqt", q, np.asarray(keys, np.float64))
    if soft_cap:
        logits = soft_cap * np.tanh(logits / soft_cap)
    seen = k_pos[:, None, None, :] <= np.asarray(q_pos)[None, None, :, None]
    logits = np.where(seen, logits, -np.inf)
    return np.asarray(logits.reshape(-1, *logits.shape[2:]))


def _softmax(logits: Float64s) -> Float64s:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _of_groups(x: Float64s, n_head_kv: int) -> Float64s:
    """[n_head, n_token] -> the mean over the query heads of each KV head."""
    return np.asarray(x.reshape(n_head_kv, -1, x.shape[-1]).mean(axis=1))


def _before(pos: Ints, end: int) -> Ints:
    """Indices of a head's tokens before a position, in their order."""
    order = np.argsort(pos, kind="stable")
    return order[pos[order] < end]
