"""The equations, held against naive loops, against the paper's own form, and against ggml."""

from __future__ import annotations

import cmath
import ctypes
import itertools
import math
from typing import Any

import numpy as np
import pytest

from triattn_local.model.scoring import (
    RopeParams,
    combine,
    future_offsets,
    future_query,
    group_max,
    keep_top,
    norm_weights,
    rope,
    rope_phases,
    score,
    score_knorm,
    score_norm,
    score_streaming,
    score_trig,
    zscore,
)

N_HEAD, N_HEAD_KV, HEAD_DIM, N_TOKEN, T = 6, 2, 12, 25, 777

FACTORS = (1.0, 1.3, 2.0, 4.0, 8.0, 8.0)
PLAIN = {"norm": RopeParams("norm", 12), "neox": RopeParams("neox", 12)}
ROPES = {
    **PLAIN,
    "norm partial": RopeParams("norm", 8, 5e4),
    "neox partial": RopeParams("neox", 8, 1e6),
    "linear scaling": RopeParams("neox", 12, freq_scale=0.25),
    "freq factors": RopeParams("norm", 12, 5e5, freq_factors=FACTORS),
    "yarn": RopeParams("neox", 12, 1e4, 0.25, 1.0, 1.0, n_ctx_orig=4096),
    "yarn partial, mixed, stretched": RopeParams("norm", 8, 1e6, 0.1, 0.7, 1.19, 24.0, 2.0, 32768),
    "attention factor alone": RopeParams("neox", 12, attn_factor=1.19),
}
each_rope = pytest.mark.parametrize("params", ROPES.values(), ids=ROPES.keys())


def layer(params: RopeParams, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """q̄, a_f, keys before RoPE and after, at positions 10, 13, 16, ..."""
    rng = np.random.default_rng(seed)
    q_mean = rng.standard_normal((N_HEAD, HEAD_DIM))
    q_abs = 2 + rng.random((N_HEAD, params.n_rot // 2))
    k_pre = rng.standard_normal((N_TOKEN, N_HEAD_KV, HEAD_DIM))
    return q_mean, q_abs, k_pre, rope(k_pre, positions()[:, None], params)


def positions() -> np.ndarray:
    return 10 + 3 * np.arange(N_TOKEN)


# ---- RoPE


def naive_rope(x: np.ndarray, pos: int, params: RopeParams) -> np.ndarray:
    """One vector, dimension by dimension, after ggml-cpu's ops.cpp."""
    out = np.array(x, dtype=float)
    n = params.n_rot
    if params.ext_factor:
        turns = (params.beta_fast, params.beta_slow)
        low, high = (
            n * math.log(params.n_ctx_orig / (t * 2 * math.pi)) / (2 * math.log(params.freq_base)) for t in turns
        )
        low, high = max(0, math.floor(low)), min(n - 1, math.ceil(high))
    for i0 in range(0, n, 2):
        f = i0 // 2
        extrap = pos * params.freq_base ** (-i0 / n) / (params.freq_factors[f] if params.freq_factors else 1.0)
        theta, mscale = params.freq_scale * extrap, params.attn_factor
        if params.ext_factor:
            mix = (1 - min(1, max(0, (f - low) / max(0.001, high - low)))) * params.ext_factor
            theta = theta * (1 - mix) + extrap * mix
            mscale *= 1 + 0.1 * math.log(1 / params.freq_scale)
        a, b = (i0, i0 + 1) if params.rope_type == "norm" else (f, f + n // 2)
        cos, sin = math.cos(theta) * mscale, math.sin(theta) * mscale
        out[a], out[b] = x[a] * cos - x[b] * sin, x[a] * sin + x[b] * cos
    return out


@each_rope
@pytest.mark.parametrize("pos", [0, 1, 777, 66313])
def test_rope_is_what_the_source_says(params: RopeParams, pos: int) -> None:
    x = np.random.default_rng(1).standard_normal(HEAD_DIM)
    assert np.allclose(rope(x, pos, params), naive_rope(x, pos, params), rtol=0, atol=1e-9)


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def ggml_rope(x: np.ndarray, pos: np.ndarray, params: RopeParams) -> np.ndarray:
    """``ggml_rope_ext`` on the CPU, over float32 [n_token, n_head, head_dim]."""
    from llama_cpp import llama_cpp

    lib: Any = llama_cpp._lib
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    for name, result, arguments in (
        ("ggml_init", pointer, [_InitParams]),
        ("ggml_free", None, [pointer]),
        ("ggml_new_tensor_1d", pointer, [pointer, integer, ctypes.c_int64]),
        ("ggml_new_tensor_3d", pointer, [pointer, integer] + [ctypes.c_int64] * 3),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_rope_ext", pointer, [pointer] * 4 + [integer] * 3 + [real] * 6),
        ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer] * 2),
        ("ggml_graph_compute_with_ctx", integer, [pointer, pointer, integer]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments

    ctx = lib.ggml_init(_InitParams(1 << 24, None, False))
    try:

        def tensor(values: np.ndarray, kind: int) -> int:
            new = lib.ggml_new_tensor_3d if values.ndim == 3 else lib.ggml_new_tensor_1d
            made: int = new(ctx, kind, *reversed(values.shape))
            ctypes.memmove(lib.ggml_get_data(made), values.ctypes.data, values.nbytes)
            return made

        factors = None if params.freq_factors is None else tensor(np.array(params.freq_factors, np.float32), 0)
        rotated = lib.ggml_rope_ext(
            ctx,
            tensor(np.ascontiguousarray(x, np.float32), 0),
            tensor(pos.astype(np.int32), 26),
            factors,
            params.n_rot,
            {"norm": 0, "neox": 2}[params.rope_type],
            params.n_ctx_orig,
            params.freq_base,
            params.freq_scale,
            params.ext_factor,
            params.attn_factor,
            params.beta_fast,
            params.beta_slow,
        )
        graph = lib.ggml_new_graph(ctx)
        lib.ggml_build_forward_expand(graph, rotated)
        assert lib.ggml_graph_compute_with_ctx(ctx, graph, 1) == 0
        out = np.empty(x.shape, np.float32)
        ctypes.memmove(out.ctypes.data, lib.ggml_get_data(rotated), out.nbytes)
        return out
    finally:
        lib.ggml_free(ctx)


@each_rope
def test_rope_is_ggmls(params: RopeParams) -> None:
    pos = np.array([0, 1, 2, 100, 4095, 4096, 31337, 66313, 131072])
    x = np.random.default_rng(2).standard_normal((len(pos), N_HEAD, HEAD_DIM)).astype(np.float32)
    real = ggml_rope(x, pos, params)
    assert np.allclose(rope(x, pos[:, None], params, np.float32), real, rtol=0, atol=3e-5 * params.mscale)
    # float64 differs by ggml's own rounding of the angle, which grows with the position
    error = np.abs(rope(x, pos[:, None], params) - real).max(axis=(1, 2))
    assert (error < 1e-5 + 2e-6 * pos).all()


@each_rope
def test_rope_keeps_lengths_but_for_c(params: RopeParams) -> None:
    x = np.random.default_rng(3).standard_normal((5, HEAD_DIM))
    n = params.n_rot
    turned = rope(x, np.arange(5) * 100, params)
    assert np.allclose(np.linalg.norm(turned[:, :n], axis=-1), params.mscale * np.linalg.norm(x[:, :n], axis=-1))
    assert np.array_equal(turned[:, n:], x[:, n:])


def test_c() -> None:
    assert ROPES["yarn"].mscale == pytest.approx(1 + 0.1 * math.log(4))
    assert ROPES["yarn partial, mixed, stretched"].mscale == pytest.approx(1.19 * (1 + 0.1 * math.log(10)))
    assert ROPES["attention factor alone"].mscale == 1.19
    assert ROPES["linear scaling"].mscale == 1.0


def test_float32_angles_round_as_much_as_ggmls() -> None:
    params = RopeParams("neox", 64, 1e6)
    exact, rounded = (rope_phases(66313, params, kind) for kind in (np.float64, np.float32))
    assert 1e-4 < np.abs(exact - rounded).max() < 2e-2


# ---- scores


def test_offsets() -> None:
    assert future_offsets().tolist() == [2**i for i in range(17)]
    assert future_offsets("geometric", 100).tolist() == [1, 2, 4, 8, 16, 32, 64]
    assert future_offsets("geometric", 1).tolist() == [1]
    linear = future_offsets("linear", 65536)
    assert len(linear) == 17
    assert linear[-1] == 65536
    assert linear.tolist() == [round(i * 65536 / 17) for i in range(1, 18)]


@each_rope
@pytest.mark.parametrize("spacing", ["geometric", "linear"])
def test_one_dot_product_is_the_mean_over_all_future_queries(params: RopeParams, spacing: Any) -> None:
    """<w, k> = (1 / |D|) sum over d of <RoPE(q̄, t + d), RoPE(k, p)>, with every product written out."""
    q_mean, _, k_pre, k_rot = layer(params)
    offsets = future_offsets(spacing, 1024)
    got = score_trig(future_query(q_mean, T, offsets, params), k_rot)
    for h, i in itertools.product(range(N_HEAD), range(N_TOKEN)):
        key = naive_rope(k_pre[i, h // 3], int(positions()[i]), params)
        want = sum(float(naive_rope(q_mean[h], T + int(d), params) @ key) for d in offsets) / len(offsets)
        assert got[h, i] == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("params", [PLAIN["norm"], PLAIN["neox"], ROPES["attention factor alone"]])
def test_the_papers_form(params: RopeParams) -> None:
    """S = mean over D of sum_f |q̄_f| |k_f| cos(ω_f Δ + φ_f), plus sum_f (1 - R_f) a_f |k_f|, all times c squared."""
    q_mean, q_abs, k_pre, k_rot = layer(params)
    offsets = future_offsets("geometric", 64)
    got = score(q_mean, q_abs, k_rot, T, params, offsets=offsets)

    def band(x: np.ndarray, f: int) -> complex:
        return complex(x[2 * f], x[2 * f + 1]) if params.rope_type == "norm" else complex(x[f], x[f + 6])

    for h, i in itertools.product(range(N_HEAD), range(N_TOKEN)):
        s = 0.0
        for f in range(6):
            q, k = band(q_mean[h], f), band(k_pre[i, h // 3], f)
            omega, phi = 10000.0 ** (-2 * f / 12), cmath.phase(q) - cmath.phase(k)
            gaps = [T + int(d) - int(positions()[i]) for d in offsets]
            s += abs(q) * abs(k) * sum(math.cos(omega * gap + phi) for gap in gaps) / len(gaps)
            s += (1 - abs(q) / q_abs[h, f]) * q_abs[h, f] * abs(k)
        assert got[h, i] == pytest.approx(params.mscale**2 * s, abs=1e-9)


@each_rope
def test_terms_and_ablations(params: RopeParams) -> None:
    q_mean, q_abs, _, k_rot = layer(params)

    def of(**options: Any) -> np.ndarray:
        return score(q_mean, q_abs, k_rot, T, params, **options)

    assert np.allclose(of(), of(terms="trig") + of(terms="norm"))
    assert np.allclose(of(), of(offsets=future_offsets("geometric", 65536)))
    no_r = score_norm(params.mscale * q_abs, k_rot, params)
    assert np.allclose(of(terms="norm", weight_r=False), no_r)
    assert (of(terms="norm") < no_r).all()
    assert np.array_equal(norm_weights(q_mean, q_abs, params, weight_r=False), params.mscale * q_abs)


def test_queries_that_all_agree_have_no_norm_term() -> None:
    params = PLAIN["neox"]
    q_mean, _, _, k_rot = layer(params)
    q_abs = np.hypot(q_mean[:, :6], q_mean[:, 6:])
    assert np.allclose(score(q_mean, q_abs, k_rot, T, params, terms="norm"), 0)


def test_later_queries_are_foreseen_on_average() -> None:
    """The score with queries' own centre is the mean logit of random queries around it, up to sampling noise."""
    params = PLAIN["norm"]
    q_mean, q_abs, _, k_rot = layer(params)
    rng = np.random.default_rng(4)
    queries = q_mean + 0.5 * rng.standard_normal((20000, N_HEAD, HEAD_DIM))
    at = rope(queries, T + 8, params).mean(axis=0)
    want = np.einsum("hd,thd->ht", at, np.repeat(k_rot, 3, axis=1))
    got = score(q_mean, q_abs, k_rot, T, params, offsets=np.array([8]), terms="trig")
    assert np.abs(got - want).max() < 0.1


def test_the_policies_that_need_no_statistics() -> None:
    k = np.array([[[3.0, 4.0], [1.0, 0.0]], [[0.0, 0.0], [5.0, 12.0]]])
    assert score_knorm(k).tolist() == [[-5.0, 0.0], [-1.0, -13.0]]
    assert score_streaming([3, 9]).tolist() == [3.0, 9.0]


# ---- from scores to tokens


def test_zscore_is_over_candidates_with_a_floor() -> None:
    x = np.random.default_rng(5).standard_normal((3, 4, 50)) * [[[5.0]]] + 7
    z = zscore(x)
    assert np.allclose(z.mean(-1), 0)
    assert np.allclose(z.std(-1), 1)
    assert np.allclose(z[1, 2], (x[1, 2] - x[1, 2].mean()) / math.sqrt(((x[1, 2] - x[1, 2].mean()) ** 2).mean()))
    assert np.array_equal(zscore(np.full((1, 9), 3.0)), np.zeros((1, 9)))
    tiny = np.array([0.0, 1e-9])
    assert np.allclose(zscore(tiny), [-0.5e-3, 0.5e-3])


def test_group_max_takes_neighbouring_query_heads() -> None:
    x = np.random.default_rng(6).standard_normal((2, 6, 5))
    got = group_max(x, 2)
    for il, h, i in itertools.product(range(2), range(2), range(5)):
        assert got[il, h, i] == max(x[il, 3 * h + j, i] for j in range(3))
    assert group_max(x[0], 6).tolist() == x[0].tolist()


def test_combine() -> None:
    z = np.random.default_rng(7).standard_normal((3, 2, 5))
    assert np.array_equal(combine(z, "per-layer-head"), z)
    assert np.allclose(combine(z, "per-head"), (z[0] + z[1] + z[2]) / 3)
    assert np.allclose(combine(z, "shared"), sum(z[i, j] for i in range(3) for j in range(2)) / 6)
    assert np.array_equal(combine(z, "shared", "max"), np.max([z[i, j] for i in range(3) for j in range(2)], axis=0))


def test_keep_top() -> None:
    assert keep_top(np.array([5.0, 1.0, 9.0, 3.0]), 2).tolist() == [0, 2]
    assert keep_top(np.array([5.0, 1.0, 9.0, 3.0]), 4).tolist() == [0, 1, 2, 3]
    assert keep_top(np.array([5.0, 1.0]), 0).tolist() == []
    assert keep_top(np.array([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), 1).tolist() == [[2], [0]]


def test_of_equal_scores_the_later_token_stays() -> None:
    assert keep_top(np.array([1.0, 1.0, 1.0, 0.0]), 2).tolist() == [1, 2]
    # the first index holds the latest position
    assert keep_top(np.array([1.0, 1.0, 1.0, 0.0]), 2, pos=[90, 5, 60, 99]).tolist() == [0, 2]
    scores, pos = np.zeros((2, 3)), np.array([[1, 2, 3], [3, 2, 1]])
    assert keep_top(scores, 1, pos).tolist() == [[2], [0]]
