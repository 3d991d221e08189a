"""Sequences that share cells, models whose layers differ, memories of two halves, and rounds that fail."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from engine import Engine, EngineError, environment, random_stats
from tiny_models import write_deci, write_lfm2, write_tiny

from triattn_local import selftest
from triattn_local.config import MODES, EvictionConfig, RopeScaling
from triattn_local.engine import native
from triattn_local.engine.context_options import ContextOptions
from triattn_local.model.model_info import read_model_info
from triattn_local.model.reach import scaled
from triattn_local.model.scoring import RopeParams

SMALL = EvictionConfig(budget_tokens=256, window=32, n_keep=4, cold="off")


def text(n: int, shift: int = 0) -> list[int]:
    return [3 + (i * 97 + shift) % 250 for i in range(n)]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    model = write_tiny(tmp_path / "tiny.gguf")
    random_stats(model, range(4), tmp_path / "tiny.stats.gguf")
    return model, tmp_path / "tiny.stats.gguf"


def copy(engine: Engine, source: int, target: int, p0: int = -1, p1: int = -1) -> None:
    llama_cpp.llama_memory_seq_cp(engine.memory, source, target, p0, p1)


def tokens_of(engine: Engine, seq: int) -> list[set[int]]:
    """The tokens of each set of a sequence."""
    return [set(native.get_kept(engine.ctx, il, head, seq)[0].tolist()) for il in range(4) for head in range(2)]


# ---- cells that sequences share


@pytest.mark.parametrize("mode", MODES)
def test_sequences_that_share_a_prompt_evict_it_together(mode: str, tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    config = EvictionConfig(budget_tokens=256, window=32, n_keep=4, mode=mode)
    with Engine(model, config, stats=stats, n_ctx=4096, n_batch=128, n_seq_max=2) as engine:
        engine.feed(text(600))
        copy(engine, 0, 1)
        before = engine.stats().n_rounds
        for i in range(100):
            for seq in (0, 1):
                engine.decode([5 + i + seq], seq)
        # one round a window and sequence at most, and what is their own is not thrown away
        assert 2 <= engine.stats().n_rounds - before <= 8
        for seq in (0, 1):
            for tokens in tokens_of(engine, seq):
                assert len(tokens) <= 256 + 32
                assert {0, 1, 2, 3} <= tokens
                whole = native.seq_pos_whole(engine.ctx, seq)
                assert set(range(whole, 700)) <= tokens
                assert len([token for token in tokens if token >= 600]) > 40
        # what they still share is the same token for both
        cells = [dict(zip(*reversed(native.get_kept(engine.ctx, 1, 1, seq)), strict=True)) for seq in (0, 1)]
        shared = cells[0].keys() & cells[1].keys()
        assert shared
        assert all(cells[0][cell] == cells[1][cell] for cell in shared)


def test_shared_cells_stay_while_one_sequence_has_them_in_its_window(tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=128, n_seq_max=2) as engine:
        engine.feed(text(280))
        copy(engine, 0, 1)
        for i in range(200):
            engine.decode([5 + i], 0)  # sequence 1 waits at the end of the prompt
        assert all(set(range(280 - 32, 280)) <= tokens for tokens in tokens_of(engine, 1))
        assert all(len(tokens) <= 256 + 32 for tokens in tokens_of(engine, 0))


def test_what_a_sequence_that_shares_says_is_what_it_says_alone(tiny: tuple[Path, Path]) -> None:
    """Below the budget nothing is evicted, and shared cells are read like own ones."""
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=128, n_seq_max=2) as engine:
        engine.feed(text(200))
        copy(engine, 0, 1)
        one, two = engine.decode([7], 0), engine.decode([7], 1)
        np.testing.assert_allclose(one, two, atol=1e-4)


# ---- rewinding, and memories of two halves


def test_the_first_position_after_a_rewind_to_t(tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=128) as engine:
        engine.feed(text(700))
        whole = native.seq_pos_whole(engine.ctx)
        assert engine.rm(whole)
        first = llama_cpp.llama_memory_seq_pos_min(engine.memory, 0)
        assert first == llama_cpp.llama_memory_seq_pos_max(engine.memory, 0) == whole - 1
        assert engine.rm(first + 1)


@pytest.fixture(params=["hybrid", "window"])
def halves(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path | None, EvictionConfig]:
    """A model whose memory has a half that evicts and one that does not."""
    if request.param == "hybrid":
        model = write_lfm2(tmp_path / "lfm2.gguf")
        random_stats(model, [1, 3], tmp_path / "stats.gguf")
    else:
        model = request.getfixturevalue("gemma3")
        info = read_model_info(model)
        random_stats(model, info.full_layers or range(info.n_layer), tmp_path / "stats.gguf")
    return model, tmp_path / "stats.gguf", SMALL


def test_what_one_half_refuses_the_other_does_not_do(halves: tuple[Path, Path, EvictionConfig]) -> None:
    model, stats, config = halves
    with Engine(model, config, stats=stats, n_ctx=4096, n_batch=128, n_seq_max=2) as engine:
        engine.feed(text(700))
        before = engine.state(0)
        copy(engine, 0, 1, 100, 300)
        assert engine.next_pos(1) == 0, "copied in part"
        llama_cpp.llama_memory_seq_add(engine.memory, 0, 10, -1, 5)
        llama_cpp.llama_memory_seq_div(engine.memory, 0, 10, -1, 2)
        assert not engine.rm(100)
        assert engine.next_pos(0) == 700
        assert engine.state(0) == before


def test_a_hybrid_evicts_and_comes_back_whole(tmp_path: Path) -> None:
    model = write_lfm2(tmp_path / "lfm2.gguf")
    random_stats(model, [1, 3], tmp_path / "stats.gguf")
    with Engine(model, SMALL, stats=tmp_path / "stats.gguf", n_ctx=4096, n_batch=128) as engine:
        engine.feed(text(700))
        assert native.get_layers(engine.ctx) == [1, 3]
        assert engine.stats().n_rounds >= 3
        assert engine.stats().n_cells_used <= 256 + 32 + 128
        state = engine.state()
        first = engine.decode([7])
        assert engine.set_state(state)
        np.testing.assert_array_equal(engine.decode([7]), first)


@pytest.mark.parametrize("policy", ["triattention", "streaming", "knorm", "random"])
def test_layers_without_attention_are_no_obstacle(policy: str, tmp_path: Path) -> None:
    model = write_deci(tmp_path / "deci.gguf")
    random_stats(model, [0, 2, 3], tmp_path / "stats.gguf")
    config = EvictionConfig(budget_tokens=256, window=32, n_keep=4, policy=policy)
    with Engine(model, config, stats=tmp_path / "stats.gguf", n_ctx=4096, n_batch=128) as engine:
        engine.feed(text(700))
        assert native.get_layers(engine.ctx) == [0, 2, 3]
        assert engine.stats().n_rounds >= 3


# ---- scores where RoPE turns a part of the head


@pytest.mark.parametrize("factor", [1.0, 1.19])
@pytest.mark.parametrize("n_rot", [16, 32])
def test_the_attention_factor_is_for_what_is_rotated(n_rot: int, factor: float, tmp_path: Path) -> None:
    def add(writer) -> None:
        writer.add_rope_dimension_count(n_rot)
        if factor != 1:
            writer.add_rope_scaling_attn_factors(factor)

    model = write_tiny(tmp_path / "phi.gguf", "phi3", fused_qkv=True, leave_out=("ffn_gate",), add=add)
    stats = random_stats(model, range(4), tmp_path / "stats.gguf")
    with Engine(model, SMALL, stats=tmp_path / "stats.gguf", n_ctx=1024, n_batch=128) as engine:
        engine.feed(text(200))
        n, error = selftest.compare_scores(engine.ctx, engine.next_pos(), read_model_info(model), stats)
        assert n > 0
        assert error < 1e-4


def test_statistics_hold_where_yarn_stretches_the_context(tmp_path: Path) -> None:
    """They are of queries before RoPE: the same sidecar, other frequencies and another c."""
    model = write_tiny(tmp_path / "tiny.gguf")
    stats = random_stats(model, range(4), tmp_path / "stats.gguf")
    yarn = RopeScaling("yarn", 4.0, 1024)
    fields = ContextOptions(n_ctx=4096, rope_scaling=yarn).c_fields()
    asked = {name: fields[name] for name in ("rope_scaling_type", "rope_freq_scale", "yarn_orig_ctx")}
    info = read_model_info(model)
    with Engine(model, SMALL, stats=tmp_path / "stats.gguf", n_ctx=4096, n_batch=128, **asked) as engine:
        for n in (200, 700):
            engine.feed(text(n)[engine.next_pos() :])
            args = engine.ctx, engine.next_pos()
            n_scores, error = selftest.compare_scores(*args, scaled(info, yarn), stats)
            assert n_scores > 0
            assert error < 1e-3
            assert selftest.compare_scores(*args, info, stats)[1] > 1e-2, "the frequencies are others"


def test_a_layer_without_rope_has_frequency_0(tmp_path: Path) -> None:
    """SmolLM3 turns nothing in each fourth layer: the mean query itself, and a length for each dimension."""
    model = write_tiny(tmp_path / "tiny.gguf", "smollm3")
    stats = random_stats(model, range(4), tmp_path / "stats.gguf", unrotated=[3])
    random_stats(model, range(4), tmp_path / "rotated.gguf")
    info = read_model_info(model)
    with Engine(model, SMALL, stats=tmp_path / "stats.gguf", n_ctx=4096, n_batch=128) as engine:
        layers = [native.get_layer(engine.model, il, engine.ctx) for il in range(4)]
        assert [layer.why_kept for layer in layers] == [None] * 4
        assert [(layer.rope_type, layer.n_rot, layer.n_band) for layer in layers] == [("norm", 32, 16)] * 3 + [
            (None, 0, 32)
        ]
        rope = RopeParams.of(info)
        ropes = {il: replace(rope, n_rot=layer.n_rot) for il, layer in enumerate(layers)}
        for n in (200, 700):
            engine.feed(text(n)[engine.next_pos() :])
            n_scores, error = selftest.compare_scores(engine.ctx, engine.next_pos(), info, stats, ropes)
            assert n_scores > 0
            assert error < 1e-3
    with pytest.raises(EngineError, match=r"layer 3 have q_abs\[64\], the model needs 128: its keys are not turned"):
        Engine(model, SMALL, stats=tmp_path / "rotated.gguf", n_ctx=4096, n_batch=128)


# ---- room for a state


def test_a_state_finds_room_beside_a_full_neighbour(tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=1024, n_seq_max=2) as engine:
        engine.decode(text(1024), 0)
        state = engine.state(0)
        engine.rm(0, -1, 0)
        engine.decode(text(1024, shift=3), 1)
        assert engine.stats().n_cells < 2 * 1024
        assert engine.set_state(state, 0)
        assert (engine.next_pos(0), engine.next_pos(1)) == (1024, 1024)
        assert len(native.get_kept(engine.ctx, 0, 0, 1)[0]) == 256, "the neighbour was brought down to its budget"
        assert native.seq_pos_whole(engine.ctx, 1) == 1024 - 32
        engine.decode([5], 0)
        engine.decode([5], 1)


def test_a_state_without_room_leaves_the_sequence_as_it_was(tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=1024) as engine:
        engine.decode(text(1024), 0)
        large = engine.state(0)
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=128) as engine:
        engine.feed(text(300))
        before = engine.state(0)
        assert not engine.set_state(large, 0)
        assert engine.state(0) == before
        engine.decode([5], 0)


# ---- rounds that fail


def test_a_failed_round_is_refused_at_once_with_its_reason(tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    with Engine(model, SMALL, stats=stats, n_ctx=4096, n_batch=128) as engine:
        engine.feed(text(256))
        with environment(LLAMA_TRIATTN_FAIL="1"):
            for i in range(32):
                engine.decode([5 + i])
            status, _ = engine.try_decode([7])
            assert status < 0, "1 would mean that the context is full"
            assert "LLAMA_TRIATTN_FAIL" in native.last_error()
            assert engine.try_decode([7])[0] < 0
            assert engine.next_pos() == 288
        engine.decode([7])  # a round that works makes good
        assert engine.stats().n_rounds == 1


def test_a_state_whose_rows_lie_otherwise_is_refused(smollm2: Path, tmp_path: Path) -> None:
    random_stats(smollm2, range(read_model_info(smollm2).n_layer), tmp_path / "stats.gguf")

    def engine() -> Engine:
        return Engine(smollm2, SMALL, stats=tmp_path / "stats.gguf", n_ctx=2048, n_batch=128, type_k="q8_0")

    with engine() as one:
        one.feed(text(100))
        state = one.state()
    with environment(LLAMA_ATTN_ROT_DISABLE="1"), engine() as other:
        assert not other.set_state(state)
        other.feed(text(50))
    with engine() as same:
        assert same.set_state(state)
        same.decode([7])


def test_a_picture_larger_than_the_window_does_not_drive_out_the_text(tmp_path: Path) -> None:
    """Its tokens stand on one position: the window protects the last cells, not the last positions."""

    def add(writer) -> None:
        writer.add_rope_dimension_sections([4, 6, 6, 0])

    model = write_tiny(tmp_path / "vl.gguf", "qwen2vl", add=add)
    random_stats(model, range(4), tmp_path / "stats.gguf")
    with Engine(model, SMALL, stats=tmp_path / "stats.gguf", n_ctx=4096, n_batch=512) as engine:
        engine.feed(text(200))
        n, n_embd = 400, 128
        batch = llama_cpp.llama_batch_init(n, n_embd, 1)
        values = np.random.default_rng(0).standard_normal(n * n_embd).astype(np.float32)
        rows, columns = [200 + i // 20 for i in range(n)], [200 + i % 20 for i in range(n)]
        pos = (llama_cpp.llama_pos * (4 * n))(*[200] * n, *rows, *columns)
        ctypes.memmove(batch.embd, values.ctypes.data, values.nbytes)
        own = ctypes.cast(batch.pos, ctypes.c_void_p).value  # room for one number a token: a picture's have four
        batch.pos = pos
        for i in range(n):
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == n - 1
        batch.n_tokens = n
        assert llama_cpp.llama_decode(engine.ctx, batch) == 0
        batch.pos = ctypes.cast(own, type(batch.pos))
        llama_cpp.llama_batch_free(batch)
        for i in range(100):
            assert engine.try_decode([5 + i], pos=220 + i)[0] == 0
        assert engine.stats().n_rounds >= 2
        assert engine.stats().n_cells_used <= 256 + 32 + 1
        for tokens in tokens_of(engine, 0):
            assert {0, 1, 2, 3} <= tokens
            assert set(range(220 + 100 - 32, 320)) <= tokens
        kept = [native.get_kept(engine.ctx, il, head)[0] for il in range(4) for head in range(2)]
        assert all((positions < 200).sum() > 4 for positions in kept), "all older text has gone"
