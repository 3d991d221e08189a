"""The engine's scores and selection against the NumPy reference, and moved rows against the rows that were cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from engine import Engine, environment, random_stats
from texts import prose

from triattn_local import selftest
from triattn_local.config import EvictionConfig
from triattn_local.engine import native
from triattn_local.model import scoring
from triattn_local.model.model_info import read_model_info

MODELS = ["smollm2", "gemma3", "qwen25"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


def full_layers(path: Path) -> list[int]:
    info = read_model_info(path)
    return list(info.full_layers if info.full_layers is not None else range(info.n_layer))


def reference(engine: Engine, stats, info, il: int, cells, t: int, **ablation) -> np.ndarray:
    keys = np.stack([engine.keys(il, h, cells) for h in range(info.n_head_kv[il])], axis=1)
    i = stats.layers.index(il)
    return scoring.score(stats.q_mean[i], stats.q_abs[i], keys, t, scoring.RopeParams.of(info), **ablation)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_scores_match_numpy_before_and_after_rounds(model: Path, cache: str, tmp_path: Path) -> None:
    info = read_model_info(model)
    sidecar = tmp_path / "stats.gguf"
    stats = random_stats(model, full_layers(model), sidecar)
    eviction = EvictionConfig(budget_tokens=256, window=32, n_keep=4)
    errors = []
    with Engine(model, eviction, stats=sidecar, type_k=cache, n_batch=128) as engine:
        tokens = engine.tokenize(prose(3000))
        for n in (200, 700):
            engine.feed(tokens[engine.next_pos() : n])
            assert (engine.stats().n_rounds > 1) == (n > 288)
            n_scores, error = selftest.compare_scores(engine.ctx, engine.next_pos(), info, stats)
            assert n_scores >= 200 * info.n_head[0] * len(native.get_layers(engine.ctx)) // 2
            errors.append(error)
    worst = max(errors)
    print(f"largest error, as a part of the score range: {worst:.2e}")
    assert worst < selftest.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "ablation",
    [{"terms": "trig"}, {"terms": "norm"}, {"weight_r": False}, {"offsets": "linear"}, {"offset_max": 4096}],
    ids=lambda a: "-".join(f"{k}={v}" for k, v in a.items()),
)
def test_ablations_match_numpy(smollm2: Path, ablation: dict, tmp_path: Path) -> None:
    info = read_model_info(smollm2)
    sidecar = tmp_path / "stats.gguf"
    stats = random_stats(smollm2, full_layers(smollm2), sidecar)
    kwargs = dict(ablation)
    offsets = scoring.future_offsets(kwargs.pop("offsets", "geometric"), kwargs.pop("offset_max", 65536))
    with Engine(smollm2, EvictionConfig(budget_tokens=256, window=32, **ablation), stats=sidecar) as engine:
        engine.feed(engine.tokenize(prose(3000))[:250])
        native.score(engine.ctx)
        for il in (0, 13, 29):
            got, cells = native.get_scores(engine.ctx, il, 5)
            want = reference(engine, stats, info, il, cells, engine.next_pos(), offsets=offsets, **kwargs)[5]
            assert np.abs(got - want).max() < 1e-3 * np.ptp(want)


SELECTIONS = [
    {"mode": "shared"},
    {"mode": "shared", "aggregate": "max"},
    {"mode": "per-head"},
    {"mode": "per-layer-head"},
    {"mode": "per-layer-head", "weight_v": 0.0},
    {"mode": "per-layer-head", "weight_v": 2.0},
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cache", "flash_attn"), [("f16", True), ("f16", False), ("q8_0", True)], ids=["f16", "no-flash", "q8_0"]
)
@pytest.mark.parametrize("settings", SELECTIONS, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_selection_matches_numpy(model: Path, settings: dict, cache: str, flash_attn: bool, tmp_path: Path) -> None:
    """The tokens kept by the first round are those that the reference keeps, but for near ties."""
    if (cache, flash_attn) != ("f16", True) and settings.get("weight_v", 1.0) <= 1.0:
        pytest.skip("how the cache lies in memory matters for the values alone")
    info = read_model_info(model)
    sidecar = tmp_path / "stats.gguf"
    random_stats(model, full_layers(model), sidecar)
    eviction = EvictionConfig(budget_tokens=200, window=32, n_keep=4, **settings)
    n_tokens = 300
    with Engine(
        model, eviction, stats=sidecar, n_batch=300, type_k=cache, type_v=cache, flash_attn=flash_attn
    ) as engine:
        engine.feed(engine.tokenize(prose(4000))[:n_tokens])
        assert engine.stats().n_rounds == 0
        n_candidates = native.score(engine.ctx)
        assert n_candidates == n_tokens - 4 - 32
        layers = native.get_layers(engine.ctx)
        raw = {il: [native.get_scores(engine.ctx, il, h)[0] for h in range(info.n_head[il])] for il in layers}
        cells = native.get_scores(engine.ctx, layers[0], 0)[1]
        position = dict(zip(*reversed(native.get_kept(engine.ctx, layers[0], 0)), strict=True))
        candidates = np.array([position[c] for c in cells])
        values = {
            il: np.stack([engine.values(il, h, cells) for h in range(info.n_head_kv[il])], axis=1) for il in layers
        }
        assert native.evict(engine.ctx) == n_tokens - 200
        kept = {
            (il, h): set(native.get_kept(engine.ctx, il, h)[0].tolist())
            for il in layers
            for h in range(info.n_head_kv[il])
        }
    z = np.stack(
        [
            scoring.group_max(scoring.zscore(np.stack(raw[il])), info.n_head_kv[il])
            + eviction.weight_v * scoring.value_scores(values[il])
            for il in layers
        ]
    )
    combined = np.broadcast_to(scoring.combine(z, eviction.mode, eviction.aggregate), z.shape)
    protected = set(range(4)) | set(range(n_tokens - 32, n_tokens))
    for i, il in enumerate(layers):
        for h in range(info.n_head_kv[il]):
            want = set(candidates[scoring.keep_top(combined[i, h], 200 - len(protected))].tolist()) | protected
            assert len(kept[il, h]) == 200
            assert len(kept[il, h] ^ want) <= 2, (il, h)  # one near tie, both ways


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_a_round_asks_little_of_a_device(model: Path, cache: str, tmp_path: Path) -> None:
    """Two graphs, 23 operations a layer, one score for each KV head and candidate: what a GPU launches and copies."""
    info = read_model_info(model)
    layers = full_layers(model)
    sidecar = tmp_path / "stats.gguf"
    random_stats(model, layers, sidecar)
    eviction = EvictionConfig(budget_tokens=256, window=32, n_keep=4)
    n_sets = sum(info.n_head_kv[il] for il in layers)
    with environment(LLAMA_TRIATTN_AS_DEVICE="1"), Engine(model, eviction, stats=sidecar, type_k=cache) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:256])
        asked = []
        for start in (256, 288, 320):
            before = engine.stats()
            engine.feed(tokens[start : start + 32])
            after = engine.stats()
            assert after.n_rounds - before.n_rounds == (start > 256)
            names = ("n_graphs", "n_operations", "n_bytes_copied")
            asked.append([getattr(after, name) - getattr(before, name) for name in names])
    assert asked[0] == [0, 0, 0]
    n_graphs, n_operations, n_bytes = asked[2]  # the first round prepares
    n_candidates = 256 - 4
    assert n_graphs == 2
    assert 0 < n_operations <= (23 + (cache != "f16")) * len(layers)  # the rotation of a quantised cache is one more
    assert 4 * n_candidates * n_sets < n_bytes <= 4 * n_candidates * (n_sets + 1) + 8 * 32 * n_sets


@pytest.mark.slow
@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
def test_the_way_of_a_device_is_the_same(model: Path, flash_attn: bool, tmp_path: Path) -> None:
    """What host memory allows to do faster, and the operations that a GPU runs instead."""
    info = read_model_info(model)
    sidecar = tmp_path / "stats.gguf"
    random_stats(model, full_layers(model), sidecar)
    eviction = EvictionConfig(budget_tokens=160, window=16, n_keep=4)
    scores, rows = {}, {}
    for way in ("0", "1"):
        with (
            environment(LLAMA_TRIATTN_AS_DEVICE=way),
            Engine(model, eviction, stats=sidecar, flash_attn=flash_attn, n_batch=256) as engine,
        ):
            engine.feed(engine.tokenize(prose(4000))[:256])
            native.score(engine.ctx)
            layers = native.get_layers(engine.ctx)
            scores[way] = np.stack([native.get_scores(engine.ctx, il, h)[0] for il in layers for h in range(2)])
            native.evict(engine.ctx)
            rows[way] = selftest.cached_rows(engine.ctx, info)
    assert np.abs(scores["0"] - scores["1"]).max() < 1e-5 * np.ptp(scores["0"])
    n_kept = sum(len(kept) for kept in rows["0"].values())
    n_others = sum(len(rows["1"][head].keys() - kept.keys()) for head, kept in rows["0"].items())
    assert n_others <= n_kept // 1000  # near ties
    for head, kept in rows["0"].items():
        assert all(rows["1"][head].get(pos, row) == row for pos, row in kept.items())


CACHES = ["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@pytest.mark.slow
@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("name", MODELS)
def test_moved_rows_are_bit_identical(
    name: str, cache: str, flash_attn: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """After the first round every kept K and V row is the row that full attention had cached for that token."""
    model = request.getfixturevalue(name)
    type_v = cache if flash_attn or cache in ("f32", "f16", "bf16") else "f16"
    info = read_model_info(model)
    sidecar = tmp_path / "stats.gguf"
    random_stats(model, full_layers(model), sidecar)
    eviction = EvictionConfig(budget_tokens=160, window=16, n_keep=4, mode="per-layer-head")
    with Engine(
        model, eviction, stats=sidecar, type_k=cache, type_v=type_v, flash_attn=flash_attn, n_batch=256
    ) as engine:
        engine.feed(engine.tokenize(prose(4000))[:256])
        before = selftest.cached_rows(engine.ctx, info)
        assert native.evict(engine.ctx) == 96
        assert engine.stats().n_rows_moved > 0
        after = selftest.cached_rows(engine.ctx, info)
        assert {len(rows) for rows in after.values()} == {160}
        assert len(after) == 2 * sum(info.n_head_kv[il] for il in native.get_layers(engine.ctx))
        assert selftest.changed_rows(before, after) == []
