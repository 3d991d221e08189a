"""The equations of TriAttention (arXiv:2604.04921) in NumPy, each once: what the engine has to compute.

The reference for tests and reports, written to be read and compared with the paper, in float64 and without any care
for speed. Golden values for the C++ engine come from here.

Notation: q̄_f and a_f are ``TriattnStats.q_mean`` and ``q_abs``; f counts the bands, the complex pairs that RoPE turns;
t is the position that the next token gets; "pre" is before RoPE, "rot" after. Tokens stand first, as rows of the cache:
keys are [n_token, n_head_kv, head_dim]; scores have them last: [n_head, n_token].

Knows nothing of cells, of the engine, and of which tokens are candidates at all: the caller leaves the protected ones
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import Aggregate, Mode, Offsets, Terms
from ..errors import StatsError
from .architectures import RopeType
from .model_info import ModelInfo
from .stats import band_magnitude, bands

Float64s = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]

Precision = type[np.float64] | type[np.float32]

STD_FLOOR = 1e-6
"""z-scores of scores that are all the same are 0, not noise"""


@dataclass(frozen=True)
class RopeParams:
    """The arguments of ``ggml_rope_ext`` for one layer."""

    rope_type: RopeType
    n_rot: int
    """rotated dimensions, the first of each head; 0: none, every frequency is 0"""
    freq_base: float = 10000.0
    freq_scale: float = 1.0
    """1 / context extension"""
    ext_factor: float = 0.0
    """YaRN's mix of extrapolation; 0 is no YaRN"""
    attn_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    n_ctx_orig: int = 0
    """context before YaRN, in tokens"""
    freq_factors: tuple[float, ...] | None = None
    """[n_rot / 2] divisors of the frequencies (Llama 3, LongRoPE)"""

    @property
    def mscale(self) -> float:
        """c, the length that RoPE gives to a pair of length 1: ``attn_factor``, times YaRN's correction."""
        if self.n_rot == 0:
            return 1.0
        if self.ext_factor == 0.0:
            return self.attn_factor
        return self.attn_factor * (1.0 + 0.1 * math.log(1.0 / self.freq_scale))

    @classmethod
    def of(cls, info: ModelInfo, freq_factors: tuple[float, ...] | None = None) -> RopeParams:
        """What llama.cpp passes for a full-attention layer that RoPE turns, when no RoPE option is given.

        Raises
        ------
        StatsError
            The model has no RoPE, or an unknown one.
        """
        if info.rope_type is None and not info.unrotated:
            raise StatsError("the model has no RoPE that this program knows", where=str(info.path))
        return cls(
            rope_type=info.rope_type or "neox",
            n_rot=info.n_rot,
            freq_base=info.rope_freq_base,
            freq_scale=1.0 if info.rope_scaling == "none" else info.rope_freq_scale,
            ext_factor=1.0 if info.rope_scaling == "yarn" else 0.0,
            attn_factor=info.rope_attn_factor,
            n_ctx_orig=info.n_ctx_orig,
            freq_factors=freq_factors,
        )


def rope_phases(pos: npt.ArrayLike, params: RopeParams, dtype: Precision = np.float64) -> Float64s:
    """Angle by which RoPE turns each band, θ_f(p) = ω_f p with ω_f = base^(-2f / n_rot), and YaRN's mix of two ω_f.

    Operation by operation what ggml's ``rope_yarn`` does. With ``dtype`` float32 also its rounding, which at position
    65,536 is some 0.005 rad: for comparison with the engine, where the difference would drown an error.

    Parameters
    ----------
    pos : int array [...]
        Positions in tokens.

    Returns
    -------
    float64 [..., n_rot / 2], in radians
    """
    real: Callable[[float], Any] = dtype
    n_band = params.n_rot // 2
    if n_band == 0:
        return np.zeros((*np.shape(pos), 0))
    theta = np.asarray(pos, dtype=dtype)
    theta_scale = real(params.freq_base) ** real(-2.0 / params.n_rot)
    low, high = _yarn_range(params)
    phases = np.empty((*theta.shape, n_band))
    for f in range(n_band):
        extrapolated = theta / real(1.0 if params.freq_factors is None else params.freq_factors[f])
        phase = real(params.freq_scale) * extrapolated
        if params.ext_factor != 0.0:
            ramp = real(1.0) - real(min(1.0, max(0.0, (f - low) / max(0.001, high - low))))
            mix = ramp * real(params.ext_factor)
            phase = phase * (real(1.0) - mix) + extrapolated * mix
        phases[..., f] = phase
        theta = theta * theta_scale
    return phases


def rope(
    x_pre: Floats,
    pos: npt.ArrayLike,
    params: RopeParams,
    dtype: Precision = np.float64,
) -> Float64s:
    """RoPE(x, p): turn band f by θ_f(p) and stretch it by c; dimensions from n_rot on pass unchanged.

    Parameters
    ----------
    x_pre : float array [..., head_dim]
        Queries or keys before RoPE.
    pos : int array
        Positions in tokens, broadcast against the shape of ``x_pre`` without its last dimension.
    dtype : type
        Precision of the angles only, see ``rope_phases``.

    Returns
    -------
    float64 [..., head_dim], after RoPE
    """
    pos = np.asarray(pos)
    if params.n_rot == 0:
        shape = np.broadcast_shapes(pos.shape, np.shape(x_pre)[:-1])
        return np.array(np.broadcast_to(x_pre, (*shape, np.shape(x_pre)[-1])), dtype=np.float64)
    turned = bands(x_pre, params.n_rot, params.rope_type) * params.mscale * np.exp(1j * rope_phases(pos, params, dtype))
    x_rot = np.array(np.broadcast_to(x_pre, (*turned.shape[:-1], np.shape(x_pre)[-1])), dtype=np.float64)
    n = params.n_rot
    if params.rope_type == "norm":
        x_rot[..., 0:n:2], x_rot[..., 1:n:2] = turned.real, turned.imag
    else:
        x_rot[..., : n // 2], x_rot[..., n // 2 : n] = turned.real, turned.imag
    return x_rot


def future_offsets(spacing: Offsets = "geometric", offset_max: int = 65536) -> npt.NDArray[np.int64]:
    """D, the distances in tokens at which future queries are imagined.

    "geometric" is {1, 2, 4, ...} up to ``offset_max``, which the paper found best; "linear" is its ablation, as many
    offsets evenly spaced up to the same maximum.
    """
    n = offset_max.bit_length()
    if spacing == "geometric":
        return np.array([2**i for i in range(n)], dtype=np.int64)
    return np.array([int(i * offset_max / n + 0.5) for i in range(1, n + 1)], dtype=np.int64)


def future_query(
    q_mean: Floats,
    t: int,
    offsets: npt.NDArray[np.int64],
    params: RopeParams,
    dtype: Precision = np.float64,
) -> Float64s:
    """w = (1 / |D|) sum_{d in D} RoPE(q̄, t + d): the mean future query of each head.

    Parameters
    ----------
    q_mean : float array [n_head, head_dim]
        q̄, pre-RoPE.
    t : int
        Position of the next token.
    offsets : int array [n_offset]
        D, in tokens.

    Returns
    -------
    float64 [n_head, head_dim], post-RoPE
    """
    return np.asarray(rope(np.asarray(q_mean)[None], (t + offsets)[:, None], params, dtype).mean(axis=0))


def norm_weights(q_mean: Floats, q_abs: Floats, params: RopeParams, weight_r: bool = True) -> Float64s:
    """c (1 - R_f) a_f = c (a_f - |q̄_f|), the weight of |k_f| in the norm term, with R_f = |q̄_f| / a_f.

    The less a band's queries agree on a direction, the less the trigonometric term knows of it, and the more its
    length alone counts. With ``weight_r`` False the ablation c a_f.

    Parameters
    ----------
    q_mean : float array [n_head, head_dim]
        q̄, pre-RoPE.
    q_abs : float array [n_head, n_rot / 2]
        a_f.

    Returns
    -------
    float64 [n_head, n_rot / 2]
    """
    weights = np.asarray(q_abs, dtype=np.float64)
    if weight_r:
        weights = weights - band_magnitude(q_mean, params.n_rot, params.rope_type)
    return weights * params.mscale


def score_trig(w: Float64s, k_rot: Floats) -> Float64s:
    """S_trig = <w, k>, one dot product for each query head and token.

    Since both are rotated, it is the paper's mean over D of sum_f |q̄_f| |k_f| cos(ω_f (t + d - p) + φ_f), with p the
    key's position and φ_f the angle between q̄_f and the key's own pre-RoPE pair; dimensions that RoPE leaves alone
    take part with ω = 0.

    Parameters
    ----------
    w : float array [n_head, head_dim]
        From ``future_query``.
    k_rot : float array [n_token, n_head_kv, head_dim]
        Cached keys, post-RoPE.

    Returns
    -------
    float64 [n_head, n_token]
    """
    return np.asarray(np.einsum("hd,thd->ht", w, _for_query_heads(k_rot, len(w))))


def score_norm(weights: Float64s, k_rot: Floats, params: RopeParams) -> Float64s:
    """S_norm = sum_f c (1 - R_f) a_f |k_f|.

    Parameters
    ----------
    weights : float array [n_head, n_rot / 2]
        From ``norm_weights``.
    k_rot : float array [n_token, n_head_kv, head_dim]
        Cached keys; RoPE does not change |k_f| but for the factor c, which they hold already.

    Returns
    -------
    float64 [n_head, n_token]
    """
    magnitude = band_magnitude(k_rot, params.n_rot, params.rope_type)
    return np.asarray(np.einsum("hf,thf->ht", weights, _for_query_heads(magnitude, len(weights))))


def score(
    q_mean: Floats,
    q_abs: Floats,
    k_rot: Floats,
    t: int,
    params: RopeParams,
    *,
    offsets: npt.NDArray[np.int64] | None = None,
    terms: Terms = "both",
    weight_r: bool = True,
    dtype: Precision = np.float64,
) -> Float64s:
    """S = S_trig + S_norm of one layer: how much future queries of each head will want each cached key.

    Parameters
    ----------
    q_mean : float array [n_head, head_dim]
        q̄, pre-RoPE.
    q_abs : float array [n_head, n_rot / 2]
        a_f.
    k_rot : float array [n_token, n_head_kv, head_dim]
        Cached keys, post-RoPE.
    t : int
        Position of the next token.
    offsets : int array, optional
        D, in tokens; 1, 2, 4, ..., 65536 if not given.
    terms : "both", "trig" or "norm"
        Ablation.
    weight_r : bool
        Ablation, see ``norm_weights``.

    Returns
    -------
    float64 [n_head, n_token], in units of attention logits before their scale
    """
    scores = np.zeros((len(q_mean), len(k_rot)))
    if terms != "norm":
        w = future_query(q_mean, t, future_offsets() if offsets is None else offsets, params, dtype)
        scores += score_trig(w, k_rot)
    if terms != "trig":
        scores += score_norm(norm_weights(q_mean, q_abs, params, weight_r), k_rot, params)
    return scores


def score_knorm(k_rot: Floats) -> Float64s:
    """-|k|, the ``knorm`` policy: keys of small norm draw attention (arXiv:2406.11430).

    Takes keys [n_token, n_head_kv, head_dim] before or after RoPE, gives float64 [n_head_kv, n_token].
    """
    return np.asarray(-np.linalg.norm(np.asarray(k_rot, dtype=np.float64), axis=-1).T)


def score_streaming(pos: npt.ArrayLike) -> Float64s:
    """The position itself, the ``streaming`` policy: the most recent tokens stay (arXiv:2309.17453)."""
    return np.asarray(pos, dtype=np.float64)


def zscore(scores: Floats) -> Float64s:
    """(S - mean) / max(std, 1e-6) over the candidate tokens (last axis), population std: makes heads comparable."""
    scores = np.asarray(scores, dtype=np.float64)
    mean = scores.mean(axis=-1, keepdims=True)
    std = scores.std(axis=-1, keepdims=True)
    return np.asarray((scores - mean) / np.maximum(std, STD_FLOOR))


def group_max(scores: Floats, n_head_kv: int) -> Float64s:
    """Max over the query heads that share a key-value head (GQA): a key stays if any of them wants it.

    From [..., n_head, n_token] to float64 [..., n_head_kv, n_token]; query head h reads key-value head
    h // (n_head / n_head_kv).
    """
    scores = np.asarray(scores, dtype=np.float64)
    *lead, n_head, n_token = scores.shape
    return np.asarray(scores.reshape(*lead, n_head_kv, n_head // n_head_kv, n_token).max(axis=-2))


def value_scores(v: Floats) -> Float64s:
    """log |v| of each token, z-scored over the candidates: beyond the paper.

    Attention adds p v to a head's output, so that a key with a short value may be wanted and still not be missed.
    What a token is worth is log p + log |v| up to a constant; z-scores because the score is one as well.

    From V rows [n_token, n_head_kv, head_dim_v] to float64 [n_head_kv, n_token].
    """
    sqr = (np.asarray(v, dtype=np.float64) ** 2).sum(axis=-1)
    return zscore(0.5 * np.log(np.maximum(sqr, 1e-12)).T)


def combine(z: Floats, mode: Mode, aggregate: Aggregate = "mean") -> Float64s:
    """Scores of those who decide, from z-scored and grouped scores [n_layer, n_head_kv, n_token].

    With ``weight_v`` times ``value_scores`` added to them if values count.

    Returns
    -------
    float64
        "per-layer-head" the same [n_layer, n_head_kv, n_token]; "per-head" the mean over layers [n_head_kv, n_token];
        "shared" the mean, or the max, over layers and heads [n_token].
    """
    scores: Float64s = np.asarray(z, dtype=np.float64)
    if mode == "per-layer-head":
        return scores
    if mode == "per-head":
        return np.asarray(scores.mean(axis=0))
    return np.asarray(scores.mean(axis=(0, 1)) if aggregate == "mean" else scores.max(axis=(0, 1)))


def keep_top(scores: Floats, n: int, pos: npt.ArrayLike | None = None) -> npt.NDArray[np.int64]:
    """Indices of the n tokens with the highest scores (last axis), rising; of equal scores the later token stays.

    Parameters
    ----------
    scores : float array [..., n_token]
    n : int
        Tokens to keep, at most n_token.
    pos : int array [..., n_token], optional
        Positions of the tokens; without, they are in order.

    Returns
    -------
    int64 [..., n]
    """
    scores = np.asarray(scores)
    pos = np.broadcast_to(np.arange(scores.shape[-1]) if pos is None else np.asarray(pos), scores.shape)
    rising = np.lexsort((pos, scores), axis=-1)
    return np.sort(rising[..., scores.shape[-1] - n :], axis=-1)


def _for_query_heads(keys: Floats, n_head: int) -> Floats:
    """Repeat key-value heads so that each query head finds its own: [n_token, n_head_kv, n] -> [n_token, n_head, n]."""
    return np.repeat(keys, n_head // keys.shape[1], axis=1)


def _yarn_range(params: RopeParams) -> tuple[float, float]:
    """Bands between which YaRN goes over from extrapolation to interpolation, as ``ggml_rope_yarn_corr_dims``."""
    if params.ext_factor == 0.0:
        return 0.0, 0.0

    def band(n_turns: float) -> float:
        return params.n_rot * math.log(params.n_ctx_orig / (n_turns * 2 * math.pi)) / (2 * math.log(params.freq_base))

    low = max(0.0, float(math.floor(band(params.beta_fast))))
    return low, min(params.n_rot - 1.0, float(math.ceil(band(params.beta_slow))))
