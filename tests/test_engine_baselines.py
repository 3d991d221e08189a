"""Policies that rank by recorded queries, and the term beside the centres, against their NumPy references."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import baselines
import numpy as np
import pytest
from engine import Engine, environment, random_stats
from texts import prose
from tiny_models import write_tiny

from triattn_local.config import MODES, EvictionConfig, Mode
from triattn_local.engine import native
from triattn_local.engine.cache_rows import hadamard
from triattn_local.model import scoring
from triattn_local.model.model_info import ModelInfo, read_model_info

QUERIES = {"snapkv": 32, "h2o": 128, "tova": 1, "rkv": 8}
SMALL = EvictionConfig(budget_tokens=200, window=48, n_keep=4, cold="off")


def text(n: int, shift: int = 0) -> list[int]:
    return [3 + (i * i * 31 + i * 97 + shift) % 250 for i in range(n)]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    model = write_tiny(tmp_path / "tiny.gguf")
    random_stats(model, range(4), tmp_path / "tiny.stats.gguf")
    return model, tmp_path / "tiny.stats.gguf"


class Layer:
    """What the cache holds of a layer, and its recorded queries, in one basis."""

    def __init__(self, engine: Engine, info: ModelInfo, il: int, first: int) -> None:
        heads = range(info.n_head_kv[il])
        held = [native.get_kept(engine.ctx, il, head) for head in heads]
        self.cells = held[0][1]
        self.k_pos = np.stack([pos for pos, _ in held])
        self.keys = np.stack([engine.keys(il, head, self.cells) for head in heads], axis=1)
        pos, rows = native.get_queries(engine.ctx, il, info.n_head[il], info.head_dim)
        n_rot = native.get_rows_info(engine.ctx)[1]
        if n_rot:
            rows = (rows.reshape(*rows.shape[:2], -1, n_rot) @ hadamard(n_rot)).reshape(rows.shape)
        used = pos >= max(first, native.seq_pos_whole(engine.ctx))
        self.q_pos, self.queries = pos[used], rows[used]
        self.soft_cap = info_soft_cap(info)
        args = (self.queries, self.q_pos, self.keys, self.k_pos)
        self.weights = baselines.attention(*args, soft_cap=self.soft_cap)

    def scores(self, policy: str, before: np.ndarray | None = None) -> np.ndarray:
        if policy == "snapkv":
            return baselines.snapkv(self.weights, self.q_pos, self.k_pos)
        if policy == "h2o":
            return baselines.h2o(self.weights, self.k_pos, before)
        if policy == "tova":
            return baselines.tova(self.weights, self.k_pos)
        return baselines.rkv(self.queries, self.q_pos, self.keys, self.k_pos, soft_cap=self.soft_cap)


def info_soft_cap(info: ModelInfo) -> float:
    assert info.arch in ("llama", "qwen2", "gemma3"), info.arch  # none of these has one
    return 0.0


def full_layers(info: ModelInfo) -> list[int]:
    return list(info.full_layers if info.full_layers is not None else range(info.n_layer))


def compare(engine: Engine, info: ModelInfo, policy: str, sums: dict[int, dict] | None = None, first: int = 0) -> float:
    """Largest error of a candidate's score, as a part of the range of its head's; and what h2o has added up."""
    assert native.score(engine.ctx) > 100
    worst = 0.0
    for il in native.get_layers(engine.ctx):
        layer = Layer(engine, info, il, first)
        before = None
        if sums is not None:
            had = sums.setdefault(il, [{} for _ in layer.k_pos])
            before = np.array([[d.get(int(p), 0.0) for p in pos] for d, pos in zip(had, layer.k_pos, strict=True)])
        scores = layer.scores(policy, before)
        if sums is not None:
            sums[il] = [dict(zip(pos.tolist(), s, strict=True)) for pos, s in zip(layer.k_pos, scores, strict=True)]
        for head in range(info.n_head_kv[il]):
            got, cells = native.get_scores(engine.ctx, il, head)
            want = scores[head, [int(np.flatnonzero(layer.cells == c)[0]) for c in cells]]
            assert np.ptp(want) > 0
            worst = max(worst, np.abs(got - want).max() / np.ptp(want))
    return worst


@pytest.mark.parametrize("as_device", ["0", "1"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", QUERIES)
def test_scores_match_numpy_before_and_after_rounds(
    policy: str, cache: str, as_device: str, tiny: tuple[Path, Path]
) -> None:
    info = read_model_info(tiny[0])
    config = dataclasses.replace(SMALL, policy=policy)
    with (
        environment(LLAMA_TRIATTN_AS_DEVICE=as_device),
        Engine(tiny[0], config, type_k=cache, n_batch=128, n_ctx=4096) as engine,
    ):
        errors = []
        sums: dict[int, dict] | None = {} if policy == "h2o" else None
        first = 0
        for n in (180, 240, 247, 340, 400, 520):
            # in steps that the ring holds, with a comparison, which adds up for h2o too, between any two rounds
            engine.feed(text(n)[engine.next_pos() : n])
            begin = first if policy == "h2o" else engine.next_pos() - QUERIES[policy]
            errors.append(compare(engine, info, policy, sums, begin))
            first = engine.next_pos()
            native.evict(engine.ctx)
        assert engine.stats().n_rounds >= 4
    print(f"largest error, as a part of the score range: {max(errors):.2e}")
    assert max(errors) < 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", QUERIES)
def test_selection_matches_numpy(policy: str, cache: str, mode: Mode, tiny: tuple[Path, Path]) -> None:
    info = read_model_info(tiny[0])
    config = dataclasses.replace(SMALL, policy=policy, mode=mode)
    n = 320
    with Engine(tiny[0], config, type_k=cache, n_batch=n, n_ctx=4096) as engine:
        engine.feed(text(n))
        layers = [
            Layer(engine, info, il, 0 if policy == "h2o" else n - QUERIES[policy])
            for il in native.get_layers(engine.ctx)
        ]
        assert native.evict(engine.ctx) == n - 200
        kept = [[set(native.get_kept(engine.ctx, il, h)[0].tolist()) for h in range(2)] for il in range(4)]
    cand = (layers[0].k_pos[0] >= 4) & (layers[0].k_pos[0] < n - 48)
    pos = layers[0].k_pos[0][cand]
    z = np.stack([plain_z(layer.scores(policy)[:, cand]) for layer in layers])
    ranks = np.broadcast_to(scoring.combine(z, mode), z.shape)
    protected = set(range(4)) | set(range(n - 48, n))
    for il in range(4):
        for head in range(2):
            want = set(pos[scoring.keep_top(ranks[il, head], 200 - len(protected))].tolist()) | protected
            assert len(kept[il][head]) == 200
            assert len(kept[il][head] ^ want) <= 2, (il, head)  # one near tie, both ways


def plain_z(x: np.ndarray) -> np.ndarray:
    """z-scores of weights, whose spread may be below what ``scoring.zscore`` takes for none."""
    return (x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True)


@pytest.mark.parametrize("cold", ["off", "auto"])
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_the_term_beside_the_centres_matches_numpy(cache: str, cold: str, tiny: tuple[Path, Path]) -> None:
    info = read_model_info(tiny[0])
    config = dataclasses.replace(SMALL, cold=cold, weight_v=0.0, weight_q=1.5)
    n = 300
    with Engine(tiny[0], config, stats=tiny[1], type_k=cache, n_batch=n, n_ctx=4096) as engine:
        engine.feed(text(n))
        native.score(engine.ctx)
        cells = native.get_scores(engine.ctx, 0, 0)[1]
        centres = [
            scoring.group_max(
                scoring.zscore(np.stack([native.get_scores(engine.ctx, il, h)[0] for h in range(info.n_head[il])])), 2
            )
            for il in range(4)
        ]
        layers = [Layer(engine, info, il, n - 24) for il in range(4)]
        assert len(layers[0].q_pos) == 24
        native.evict(engine.ctx)
        kept = [[set(native.get_kept(engine.ctx, il, h)[0].tolist()) for h in range(2)] for il in range(4)]
    protected = set(range(4)) | set(range(n - 48, n))
    n_other = 0
    for il, layer in enumerate(layers):
        where = [int(np.flatnonzero(layer.cells == c)[0]) for c in cells]
        term = scoring.zscore(baselines.last_attention(layer.weights, layer.k_pos)[:, where])
        for head in range(2):
            pos = layer.k_pos[head][where]
            best = scoring.keep_top(centres[il][head] + 1.5 * term[head], 200 - len(protected))
            assert len(kept[il][head] ^ (set(pos[best].tolist()) | protected)) <= 2
            alone = scoring.keep_top(centres[il][head], 200 - len(protected))
            n_other += len(set(best.tolist()) ^ set(alone.tolist()))
    assert n_other > 40  # it does change what is kept


@pytest.mark.parametrize("policy", QUERIES)
def test_a_restored_sequence_goes_on_as_it_would_have(policy: str, tiny: tuple[Path, Path]) -> None:
    """With its queries, and what h2o has added up."""
    config = dataclasses.replace(SMALL, policy=policy)
    with Engine(tiny[0], config, n_batch=64, n_ctx=4096, n_seq_max=2) as engine:
        engine.feed(text(400))
        state = engine.state()
        other = engine.feed(text(300, 5))
        held = [native.get_kept(engine.ctx, il, h)[0].tolist() for il in range(4) for h in range(2)]
        engine.rm(-1)
        engine.feed(text(500, 9))
        assert engine.set_state(state)
        assert np.array_equal(engine.feed(text(300, 5)), other)
        assert held == [native.get_kept(engine.ctx, il, h)[0].tolist() for il in range(4) for h in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
@pytest.mark.parametrize("policy", QUERIES)
@pytest.mark.parametrize("name", ["smollm2", "gemma3", "qwen25"])
def test_real_models_match_numpy(name: str, policy: str, cache: str, request: pytest.FixtureRequest) -> None:
    """Grouped queries, layers with sliding windows between, biases, and keys that are alike as keys are."""
    model = request.getfixturevalue(name)
    info = read_model_info(model)
    with Engine(model, dataclasses.replace(SMALL, policy=policy), type_k=cache, n_batch=128, n_ctx=1024) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:220])
        sums: dict[int, dict] | None = {} if policy == "h2o" else None
        first = 92 if policy == "h2o" else 220 - QUERIES[policy]
        error = compare(engine, info, policy, sums, first)
        native.evict(engine.ctx)
        engine.feed(tokens[220:300])
        first = 220 if policy == "h2o" else 300 - QUERIES[policy]
        error = max(error, compare(engine, info, policy, sums, first))
    print(f"largest error, as a part of the score range: {error:.2e}")
    assert error < 1e-3


def test_the_model_attends_as_the_ring_says(tiny: tuple[Path, Path]) -> None:
    """Weights that llama.cpp's own graph computed, without flash attention, are those that tova scores with."""
    seen: dict[str, np.ndarray] = {}

    def on_node(tensor: object, ask: bool, _: object) -> bool:
        t = ggml_tensor(tensor)
        if not t.name.startswith(b"kq_soft_max"):
            return False
        if not ask:
            seen[t.name.decode()] = t.numbers()
        return True

    import llama_cpp

    callback = llama_cpp.ggml_backend_sched_eval_callback(on_node)
    config = dataclasses.replace(SMALL, policy="tova")
    with Engine(tiny[0], config, flash_attn=False, n_batch=240, n_ctx=4096, cb_eval=callback) as engine:
        engine.feed(text(240))
        native.evict(engine.ctx)  # heads hold tokens of their own
        engine.feed(text(241)[240:])
        native.score(engine.ctx)
        assert len(seen) == 4
        for il in range(4):
            of_model = seen[f"kq_soft_max-{il}"][0, :, -1]  # [n_head, n_cells] of the last query
            got, cells = native.get_scores(engine.ctx, il, 0)
            assert np.allclose(of_model[:, cells].mean(axis=0), got, rtol=2e-3, atol=1e-6)


class ggml_tensor:  # noqa: N801  # as it is called there
    """As much of ``struct ggml_tensor`` as a test needs."""

    def __init__(self, pointer: object) -> None:
        import ctypes

        class Raw(ctypes.Structure):
            _fields_ = [
                ("type", ctypes.c_int),
                ("buffer", ctypes.c_void_p),
                ("ne", ctypes.c_int64 * 4),
                ("nb", ctypes.c_size_t * 4),
                ("op", ctypes.c_int),
                ("op_params", ctypes.c_int32 * 16),
                ("flags", ctypes.c_int32),
                ("src", ctypes.c_void_p * 10),
                ("view_src", ctypes.c_void_p),
                ("view_offs", ctypes.c_size_t),
                ("data", ctypes.c_void_p),
                ("name", ctypes.c_char * 64),
            ]

        self._raw = Raw.from_address(int(pointer))  # type: ignore[call-overload]  # ctypes gives an address
        self.name = self._raw.name

    def numbers(self) -> np.ndarray:
        import ctypes

        assert self._raw.type == 0  # F32
        shape = list(reversed(self._raw.ne))
        return np.ctypeslib.as_array(ctypes.cast(self._raw.data, ctypes.POINTER(ctypes.c_float)), shape).copy()
