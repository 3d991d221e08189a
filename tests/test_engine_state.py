"""What an evicting context still does as llama.cpp always did, what it refuses, and what a saved state brings back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engine import Engine, EngineError, environment, random_stats
from texts import prose

from triattn_local.config import MODES, EvictionConfig
from triattn_local.engine import native
from triattn_local.model.model_info import read_model_info

pytestmark = pytest.mark.slow

SMALL = EvictionConfig(budget_tokens=256, window=32, n_keep=4, cold="off")


@pytest.fixture
def stats(smollm2: Path, tmp_path: Path) -> Path:
    path = tmp_path / "stats.gguf"
    random_stats(smollm2, range(read_model_info(smollm2).n_layer), path)
    return path


def logits_over(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Logits of every token: a prompt in two batches, then token by token."""
    n = len(tokens)
    rows = [engine.decode(tokens[: n // 4], all_logits=True), engine.decode(tokens[n // 4 : n // 2], all_logits=True)]
    rows += [engine.decode([t])[None] for t in tokens[n // 2 :]]
    return np.concatenate(rows)


_UNPATCHED = """
import sys, numpy as np
sys.path.insert(0, sys.argv[1])
from bare import logits_over
tokens = np.load(sys.argv[3]).tolist()
np.save(sys.argv[4], logits_over(sys.argv[2], tokens, sys.argv[5] == "1"))
"""


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_off_is_bit_identical_to_the_unpatched_library(
    name: str, flash_attn: bool, unpatched_library: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Stock llama.cpp reads the converted file, and computes what ours computes of the original."""
    model, converted = request.getfixturevalue(name), request.getfixturevalue(f"{name}_triattn")
    with Engine(model, None, n_ctx=1024, flash_attn=flash_attn) as engine:
        tokens = engine.tokenize(prose(3000))[:512]
        assert len(tokens) == 512
        ours = logits_over(engine, tokens)
        assert native.get_params(engine.ctx) is None
    np.save(tmp_path / "tokens.npy", np.array(tokens))
    support = Path(__file__).parent / "support"
    subprocess.run(
        [
            sys.executable,
            "-c",
            _UNPATCHED,
            str(support),
            str(converted),
            str(tmp_path / "tokens.npy"),
            str(tmp_path / "theirs.npy"),
            str(int(flash_attn)),
        ],
        env={"LLAMA_CPP_LIB_PATH": str(unpatched_library), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        check=True,
        timeout=600,
    )
    theirs = np.load(tmp_path / "theirs.npy")
    assert ours.shape == theirs.shape
    assert np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("mode", MODES)
def test_a_budget_larger_than_the_sequence_changes_nothing(
    mode: str, flash_attn: bool, smollm2: Path, stats: Path
) -> None:
    eviction = EvictionConfig(budget_tokens=600, mode=mode, cold="off")
    with Engine(smollm2, None, n_ctx=2048, flash_attn=flash_attn) as off:
        tokens = off.tokenize(prose(1000))[:200]
        want = logits_over(off, tokens)
    with Engine(smollm2, eviction, stats=stats, n_ctx=2048, flash_attn=flash_attn) as engine:
        got = logits_over(engine, tokens)
        assert engine.stats().n_cells == 1280
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("flash_attn", [True, False], ids=["flash", "no-flash"])
@pytest.mark.parametrize("mode", MODES)
def test_evicting_changes_something_and_does_the_same_twice(
    mode: str, flash_attn: bool, smollm2: Path, stats: Path
) -> None:
    """Guards the two tests above: with rounds the logits differ from full attention's, and are the same twice."""
    runs = []
    for eviction in (EvictionConfig(budget_tokens=128, window=24, mode=mode, cold="off"),) * 2 + (None,):
        with Engine(smollm2, eviction, stats=stats, flash_attn=flash_attn, n_batch=128) as engine:
            tokens = engine.tokenize(prose(1000))[:256]
            answer, logits = engine.greedy(engine.feed(tokens), 30)
            runs.append((answer, logits))
            assert (engine.stats().n_rounds >= 2) == (eviction is not None)
    assert runs[0][0] == runs[1][0]
    assert np.array_equal(runs[0][1], runs[1][1])
    assert not np.array_equal(runs[0][1], runs[2][1])


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
@pytest.mark.parametrize("mode", MODES)
def test_the_cache_is_bounded_and_positions_are_not(
    name: str, mode: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    info = read_model_info(model)
    layers = list(info.full_layers or range(info.n_layer))
    sidecar = tmp_path / "s.gguf"
    random_stats(model, layers, sidecar)
    eviction = EvictionConfig(budget_tokens=256, window=64, n_keep=8, mode=mode, cold="off")
    n = 1200
    with Engine(model, eviction, stats=sidecar, n_ctx=8192, n_batch=256) as engine:
        tokens = engine.tokenize(prose(4000))[:n]
        limit = -(-(256 + 64 + 256) // 256) * 256
        assert engine.stats().n_cells == limit
        for i in range(0, n, 200):
            engine.decode(tokens[i : i + 200])
            used = engine.stats().n_cells_used
            assert used <= 256 + 64 + 200
        assert engine.next_pos() == n
        assert engine.stats().n_rounds >= 4
        for il in layers:
            for head in range(info.n_head_kv[il]):
                pos, cells = native.get_kept(engine.ctx, il, head)
                kept = set(pos.tolist())
                assert len(kept) == len(pos) == engine.stats().n_cells_used, "a head keeps no token twice"
                assert len(set(cells.tolist())) == len(cells)
                assert kept >= set(range(8)), "n_keep"
                assert kept >= set(range(native.seq_pos_whole(engine.ctx), n)), "everything from T on"
        if mode == "shared":
            assert len({tuple(sorted(native.get_kept(engine.ctx, il, 0)[0])) for il in layers}) == 1


def test_decode_rounds_come_every_window(smollm2: Path, stats: Path) -> None:
    with Engine(smollm2, SMALL, stats=stats) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:288])
        rounds = []
        for i in range(288, 288 + 130):
            engine.decode([tokens[i]])
            rounds.append(engine.stats().n_rounds)
        assert rounds[0] == 1, "at budget + window tokens"
        assert [rounds.index(n) for n in (1, 2, 3, 4, 5)] == [0, 32, 64, 96, 128]


def test_a_batch_that_finds_no_room_forces_a_round(smollm2: Path, stats: Path) -> None:
    """Budget + window is not reached, yet the batch needs more cells than are free."""
    with Engine(
        smollm2, EvictionConfig(budget_tokens=384, window=64, cold="off"), stats=stats, n_ctx=512, n_batch=256
    ) as engine:
        tokens = engine.tokenize(prose(3000))
        assert engine.stats().n_cells == 512
        engine.decode(tokens[:256])
        engine.decode(tokens[256:400])
        status, _ = engine.try_decode(tokens[400:520])
        assert status == 0
        assert engine.stats().n_rounds_forced == 1


# ---------------------------------------------------------------------------------------------------- rewinds


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("back", [1, 7, 20])
def test_rewinding_inside_the_window_is_exact(mode: str, back: int, smollm2: Path, stats: Path) -> None:
    """After the rewind the cache is what it was at that point: the same tokens give the same logits.

    (Of tokens decoded after the round: those before it had seen more than is there now.)
    """
    eviction = EvictionConfig(budget_tokens=256, window=32, mode=mode, cold="off")
    with Engine(smollm2, eviction, stats=stats) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:300])
        engine.decode([tokens[300]])  # round
        assert native.seq_pos_whole(engine.ctx) == 300 - 32
        logits = [engine.decode([tokens[301 + i]]) for i in range(20)]
        p0 = engine.next_pos() - back
        n_rounds = engine.stats().n_rounds
        assert engine.rm(p0)
        assert engine.next_pos() == p0
        again = [engine.decode([t]) for t in tokens[p0:321]]
        assert engine.stats().n_rounds == n_rounds
        for a, b in zip(logits[-back:], again, strict=True):
            assert np.array_equal(a, b)


def test_rewinding_to_t_itself_goes_on(smollm2: Path, stats: Path) -> None:
    with Engine(smollm2, SMALL, stats=stats) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:300])
        engine.decode([tokens[300]])
        t = native.seq_pos_whole(engine.ctx)
        assert engine.rm(t)
        assert engine.next_pos() == t
        assert engine.try_decode(tokens[t : t + 8])[0] == 0


@pytest.mark.parametrize("name", ["smollm2", "gemma3"])
def test_rewinding_beyond_the_window_is_refused_untouched(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    info = read_model_info(model)
    sidecar = tmp_path / "s.gguf"
    random_stats(model, list(info.full_layers or range(info.n_layer)), sidecar)
    with Engine(model, SMALL, stats=sidecar) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:400])
        engine.decode([tokens[400]])
        t = native.seq_pos_whole(engine.ctx)
        assert t > 0
        before = engine.state()
        for p0, p1 in ((t - 1, -1), (5, -1), (1, 10), (5, t + 3), (0, t)):
            assert not engine.rm(p0, p1), (p0, p1)
        assert engine.state() == before
        assert engine.next_pos() == 401
        # a caller that wants to know finds T where llama-server looks for it
        import llama_cpp

        assert llama_cpp.llama_memory_seq_pos_min(engine.memory, 0) >= t
        assert engine.rm(0, -1), "the whole sequence can always go"
        assert engine.next_pos() == 0
        assert native.seq_pos_whole(engine.ctx) == 0
        engine.feed(tokens[:50])
        assert engine.rm(10, -1), "nothing was evicted from the new one"


def test_shift_is_refused(smollm2: Path, stats: Path) -> None:
    import llama_cpp

    with Engine(smollm2, SMALL, stats=stats) as engine:
        engine.feed(engine.tokenize(prose(1000))[:100])
        assert not llama_cpp.llama_memory_can_shift(engine.memory)
        llama_cpp.llama_memory_seq_add(engine.memory, 0, 50, -1, -10)
        assert engine.next_pos() == 100


# --------------------------------------------------------------------------------------------------- sequences


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
@pytest.mark.parametrize("mode", MODES)
def test_sequences_have_a_budget_each_and_do_not_mix(mode: str, unified: bool, smollm2: Path, stats: Path) -> None:
    """Two sequences fed in turns give the logits that each gives alone in such a context."""
    eviction = EvictionConfig(budget_tokens=200, window=32, mode=mode, cold="off")

    def run(order: list[int]) -> dict[int, tuple[np.ndarray, list[set[int]]]]:
        with Engine(smollm2, eviction, stats=stats, n_seq_max=2, kv_unified=unified, n_ctx=4096, n_batch=128) as engine:
            texts = {s: engine.tokenize(prose(2000, seed=s))[:600] for s in (0, 1)}
            done = {0: 0, 1: 0}
            result = {}
            for s in order:
                logits = engine.decode(texts[s][done[s] : done[s] + 100], s)
                done[s] += 100
                # at once: another sequence's decode runs the rounds that are due for this one too
                kept = [native.get_kept(engine.ctx, il, h, s)[0].tolist() for il in (0, 13, 29) for h in range(3)]
                assert all(len(set(k)) == len(k) <= 200 + 32 + 100 for k in kept)
                result[s] = (logits, [set(k) for k in kept])
            assert all(native.seq_pos_whole(engine.ctx, s) > 0 for s in set(order))
            return result

    n_turns = 4 if unified else 6
    both = run([0, 1] * n_turns)
    for s in (0, 1):
        alone = run([s] * n_turns)[s]
        if unified:
            # cells lie elsewhere, so sums come in another order: the same, but for rounding and near ties, which add up
            # from round to round
            assert np.abs(both[s][0] - alone[0]).max() < 0.1 * np.ptp(alone[0])
            same = [len(a & b) / len(b) for a, b in zip(both[s][1], alone[1], strict=True)]
            assert np.mean(same) > 0.9
        else:
            assert np.array_equal(both[s][0], alone[0])
            assert both[s][1] == alone[1]


@pytest.mark.parametrize("unified", [True, False], ids=["unified", "streams"])
def test_a_copied_sequence_goes_on_like_the_first(unified: bool, smollm2: Path, stats: Path) -> None:
    import llama_cpp

    with Engine(smollm2, SMALL, stats=stats, n_seq_max=2, kv_unified=unified, n_ctx=4096, n_batch=128) as engine:
        tokens = engine.tokenize(prose(3000))
        engine.feed(tokens[:400])
        llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        assert native.seq_pos_whole(engine.ctx, 1) == native.seq_pos_whole(engine.ctx, 0) > 0
        a = engine.decode(tokens[400:410], 0)
        b = engine.decode(tokens[400:410], 1)
        assert int(a.argmax()) == int(b.argmax())
        assert np.abs(a - b).max() < 0.05 * np.ptp(a)
        # a part before T cannot be copied, and nothing is
        llama_cpp.llama_memory_seq_rm(engine.memory, 1, -1, -1)
        if unified:
            llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, 2, 50)
            assert engine.next_pos(1) == 0


# ------------------------------------------------------------------------------------------------------- state

_CONTINUE = """
import sys
sys.path.insert(0, sys.argv[1])
import json, numpy as np
from pathlib import Path
from engine import Engine
from triattn_local.config import EvictionConfig
job = json.loads(Path(sys.argv[2]).read_text())
eviction = EvictionConfig(**job["eviction"])
with Engine(Path(job["model"]), eviction, stats=Path(job["stats"]), **job["context"]) as engine:
    assert engine.set_state(Path(job["state"]).read_bytes())
    tokens, logits = engine.greedy(np.load(job["logits"]), job["n"])
    np.savez(job["out"], tokens=tokens, logits=logits)
"""


@pytest.mark.parametrize(
    ("name", "mode", "context"),
    [
        ("smollm2", "per-layer-head", {}),
        ("smollm2", "per-head", {"flash_attn": False}),
        ("smollm2", "shared", {"type_k": "q8_0"}),
        ("gemma3", "per-layer-head", {}),
    ],
)
def test_saved_restored_in_a_new_process_and_continued_bit_for_bit(
    name: str, mode: str, context: dict, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    import json

    model = request.getfixturevalue(name)
    info = read_model_info(model)
    sidecar = tmp_path / "s.gguf"
    random_stats(model, list(info.full_layers or range(info.n_layer)), sidecar)
    eviction = {"budget_tokens": 256, "window": 32, "mode": mode, "cold": "off"}
    n = 80
    with Engine(model, EvictionConfig(**eviction), stats=sidecar, **context) as engine:
        logits = engine.feed(engine.tokenize(prose(3000))[:700])
        _, logits = engine.greedy(logits, 50)
        assert engine.stats().n_rounds >= 3
        (tmp_path / "state").write_bytes(engine.state())
        np.save(tmp_path / "logits.npy", logits)
        want_tokens, want_logits = engine.greedy(logits, n)
    job = {
        "model": str(model),
        "eviction": eviction,
        "stats": str(sidecar),
        "context": context,
        "state": str(tmp_path / "state"),
        "logits": str(tmp_path / "logits.npy"),
        "n": n,
        "out": str(tmp_path / "out.npz"),
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    support = Path(__file__).parent / "support"
    subprocess.run([sys.executable, "-c", _CONTINUE, str(support), str(tmp_path / "job.json")], check=True, timeout=600)
    got = np.load(tmp_path / "out.npz")
    assert got["tokens"].tolist() == want_tokens
    assert np.array_equal(got["logits"], want_logits)


def test_state_of_another_kind_is_refused(smollm2: Path, stats: Path) -> None:
    with Engine(smollm2, None, n_ctx=1024) as plain, Engine(smollm2, SMALL, stats=stats) as engine:
        tokens = engine.tokenize(prose(1000))
        plain.feed(tokens[:100])
        engine.feed(tokens[:400])
        state = engine.state()
        assert not engine.set_state(plain.state())
        assert not plain.set_state(state)
        damaged = bytearray(state)
        damaged[40:60] = b"\xff" * 20
        assert not engine.set_state(bytes(damaged))
        assert engine.set_state(state)
        assert engine.next_pos() == 400
    other_mode = EvictionConfig(budget_tokens=256, window=32, mode="shared", cold="off")
    with Engine(smollm2, other_mode, stats=stats) as engine:
        assert not engine.set_state(state)


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"TRIATTN_BUDGET": "0"}, "keeps nothing"),
        ({"TRIATTN_BUDGET": "-5"}, "whole number"),
        ({"TRIATTN_BUDGET": "many"}, "whole number"),
        ({"TRIATTN_BUDGET": "100"}, "must be larger than n_keep + window"),
        ({"TRIATTN_BUDGET": "512", "TRIATTN_WINDOW": "0"}, "window must be at least 1"),
        ({"TRIATTN_BUDGET": "512", "TRIATTN_WINDOW": "-1"}, "whole number"),
        ({"TRIATTN_BUDGET": "512", "TRIATTN_KEEP": "600"}, "must be larger"),
        ({"TRIATTN_BUDGET": "512", "TRIATTN_MODE": "both"}, "is not one of shared, per-head, per-layer-head"),
        ({"TRIATTN_BUDGET": "512", "TRIATTN_POLICY": "best"}, "is not one of"),
        ({"TRIATTN_BUDGET": "512"}, "carries no TriAttention statistics"),
    ],
    ids=lambda v: "-".join(v.values()) if isinstance(v, dict) else "",
)
def test_bad_settings_are_refused_with_the_reason(variables: dict[str, str], why: str, smollm2: Path) -> None:
    import llama_cpp

    with environment(**variables):
        model = llama_cpp.llama_model_load_from_file(str(smollm2).encode(), llama_cpp.llama_model_default_params())
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 1024
        native.library()
        assert not llama_cpp.llama_init_from_model(model, params)
        assert why in native.last_error()
        llama_cpp.llama_model_free(model)


def test_environment_turns_eviction_on_for_unmodified_programs(smollm2: Path, stats: Path) -> None:
    import llama_cpp

    native.library()
    with environment(TRIATTN_BUDGET="512", TRIATTN_STATS=str(stats), TRIATTN_MODE="per-head"):
        llama = llama_cpp.Llama(str(smollm2), n_ctx=4096, verbose=False)
        config = native.get_params(llama._ctx.ctx)
        assert config is not None
        assert (config.budget_tokens, config.mode) == (512, "per-head")
        llama.close()


def test_kv_overrides_turn_eviction_on(smollm2: Path) -> None:
    import llama_cpp

    native.library()
    overrides = {"triattention.budget": 512, "triattention.policy": "streaming", "triattention.window": 64}
    with environment(TRIATTN_BUDGET="300"):
        llama = llama_cpp.Llama(str(smollm2), n_ctx=4096, kv_overrides=overrides, verbose=False)
    config = native.get_params(llama._ctx.ctx)
    assert config is not None
    assert (config.budget_tokens, config.policy, config.window) == (512, "streaming", 64), (
        "overrides before environment"
    )
    out = llama(prose(900), max_tokens=4)
    assert out["usage"]["prompt_tokens"] > 800
    assert native.get_stats(llama._ctx.ctx)[0].n_rounds > 0
    llama.close()
    with pytest.raises(ValueError, match="Failed to load model"):
        llama_cpp.Llama(str(smollm2), kv_overrides={"triattention.bugdet": 512}, verbose=False)
    assert "bugdet" in native.last_error()


def test_statistics_of_another_model_are_refused(smollm2: Path, qwen25: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "qwen.gguf"
    random_stats(qwen25, range(24), sidecar)
    with pytest.raises(EngineError, match="belong to another model"):
        Engine(smollm2, SMALL, stats=sidecar)


def test_contexts_that_cannot_evict_are_refused(smollm2: Path, stats: Path) -> None:
    with pytest.raises(EngineError, match="embedding context"):
        Engine(smollm2, SMALL, stats=stats, embeddings=True)


def packed_sidecar(path: Path, fingerprint: str, **changes: object) -> Path:
    """Statistics for SmolLM2, keys packed one by one so that any of them can be wrong. None leaves a key out."""
    import gguf

    n_layer = 30
    values: dict[str, object] = {
        "version": 1,
        "model": fingerprint,
        "layers": list(range(n_layer)),
        **{f"q_mean.{il}": np.zeros(9 * 64, np.float32) for il in range(n_layer)},
        **{f"q_abs.{il}": np.ones(9 * 32, np.float32) for il in range(n_layer)},
    } | changes
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in values.items():
        key = f"triattention.{name}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, np.ndarray):
            writer.add_key_value(key, value.tolist(), gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.FLOAT32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _with(size: int, value: float) -> np.ndarray:
    array = np.ones(size, np.float32)
    array[7] = value
    return array


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"version": 2}, "version 2 of the statistics is not known"),
        ({"model": "llama/other"}, "belong to another model"),
        ({"layers": None}, "triattention.layers is missing"),
        ({"layers": [*range(29), 40]}, "q_mean.40 is missing"),
        ({"layers": list(range(20))}, "lack layer 20"),
        ({"q_mean.3": None}, "q_mean.3 is missing"),
        ({"q_mean.3": np.zeros(9 * 63, np.float32)}, r"layer 3 has q_mean\[567\]"),
        ({"q_abs.29": np.ones(9 * 64, np.float32)}, "layer 29"),
        ({"q_mean.0": _with(9 * 64, np.nan)}, "not finite"),
        ({"q_abs.0": _with(9 * 32, np.inf)}, "not finite"),
        ({"q_abs.0": _with(9 * 32, -1.0)}, "negative"),
        ({"q_mean.5": "text"}, "q_mean.5 has the wrong type"),
    ],
    ids=lambda v: "-".join(v) or "good" if isinstance(v, dict) else "",
)
def test_malformed_statistics_are_refused_by_the_library(
    changes: dict[str, object], why: str | None, smollm2: Path, tmp_path: Path
) -> None:
    from triattn_local.errors import StatsError
    from triattn_local.model.model_info import fingerprint

    path = packed_sidecar(tmp_path / "s.gguf", fingerprint(smollm2), **changes)
    if why is None:
        Engine(smollm2, SMALL, stats=path, n_ctx=1024).close()
    else:
        with pytest.raises((EngineError, StatsError), match=why):
            Engine(smollm2, SMALL, stats=path, n_ctx=1024)


@pytest.mark.parametrize("n_bytes", [0, 3, 40, 500])
def test_a_truncated_sidecar_is_refused_by_the_library(n_bytes: int, smollm2: Path, tmp_path: Path) -> None:
    from triattn_local.errors import StatsError
    from triattn_local.model.model_info import fingerprint

    data = packed_sidecar(tmp_path / "s.gguf", fingerprint(smollm2)).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[:n_bytes])
    with pytest.raises(StatsError, match="cannot be read"):
        Engine(smollm2, SMALL, stats=tmp_path / "cut.gguf")
