"""Pinned tokens: no round evicts them, no recall displaces them, and they go where their sequence goes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from engine import Engine, random_stats
from tiny_models import write_tiny

from triattn_local.config import MODES, POLICIES, EvictionConfig
from triattn_local.engine import native
from triattn_local.errors import UsageError

SMALL = EvictionConfig(budget_tokens=256, window=32, n_keep=4, cold="off")
LARGE = dataclasses.replace(SMALL, budget_tokens=1024)


def text(n: int, shift: int = 0) -> list[int]:
    return [3 + (i * i * 31 + i * 97 + shift) % 250 for i in range(n)]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    model = write_tiny(tmp_path / "tiny.gguf")
    random_stats(model, range(4), tmp_path / "tiny.stats.gguf")
    return model, tmp_path / "tiny.stats.gguf"


def open_engine(tiny: tuple[Path, Path], config: EvictionConfig, **options) -> Engine:
    model, stats = tiny
    return Engine(model, config, stats=stats, **{"n_ctx": 4096, "n_batch": 128, **options})


def kept(engine: Engine, seq: int = 0) -> list[set[int]]:
    """the tokens of each layer and head"""
    return [
        set(native.get_kept(engine.ctx, il, head, seq)[0].tolist())
        for il in native.get_layers(engine.ctx)
        for head in range(2)
    ]


def rows(engine: Engine, tokens: range, seq: int = 0) -> list[dict[int, bytes]]:
    """the bytes of K and V of these tokens, in each layer and head"""
    found = []
    for il in native.get_layers(engine.ctx):
        for head in range(2):
            pos, cells = native.get_kept(engine.ctx, il, head, seq)
            k, v = (native.get_rows(engine.ctx, il, head, cells, is_v=is_v, seq_id=seq) for is_v in (False, True))
            found.append({int(p): k[i].tobytes() + v[i].tobytes() for i, p in enumerate(pos) if int(p) in tokens})
    return found


def assert_whole(engine: Engine, tokens: range, seq: int = 0) -> None:
    assert all(of_head >= set(tokens) for of_head in kept(engine, seq))


@pytest.mark.parametrize("cold", ["off", "auto"])
@pytest.mark.parametrize("mode", MODES)
def test_a_pinned_prompt_is_whole_in_every_head(mode: str, cold: str, tiny: tuple[Path, Path]) -> None:
    """400 tokens of 1,024 after 30 rounds, after save and restore, and of two sequences."""
    config = dataclasses.replace(LARGE, mode=mode, cold=cold)
    prompt = range(400)
    with open_engine(tiny, config, n_seq_max=2, n_batch=32) as engine:
        for seq in range(2):
            assert native.pin(engine.ctx, 0, 400, seq) == 400
        before = []
        for seq in range(2):
            engine.feed(text(400, seq), seq)
            before.append(rows(engine, prompt, seq))
        for seq in range(2):
            engine.feed(text(2200, 50 + seq), seq)
        assert engine.stats().n_rounds >= 60
        assert engine.stats().n_pinned == 800
        for seq in range(2):
            assert_whole(engine, prompt, seq)
            assert rows(engine, prompt, seq) == before[seq]
            assert all(len(of_head) < 1024 + 32 + 32 for of_head in kept(engine, seq))

        state = engine.state(0)
        engine.rm(-1, seq=0)
        assert native.get_pins(engine.ctx, 0) == []
        assert engine.set_state(state, 0)
        assert native.get_pins(engine.ctx, 0) == [(0, 400)]
        engine.feed(text(700, 3), 0)
        for seq in range(2):
            assert_whole(engine, prompt, seq)
            assert rows(engine, prompt, seq) == before[seq]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_keeps_what_is_pinned(policy: str, tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, dataclasses.replace(SMALL, policy=policy)) as engine:
        native.pin(engine.ctx, 40, 120)
        engine.feed(text(900))
        assert engine.stats().n_rounds > 4
        assert_whole(engine, range(40, 120))
        assert not all(of_head >= set(range(120, 200)) for of_head in kept(engine))


def test_recalls_leave_what_is_pinned(tiny: tuple[Path, Path]) -> None:
    config = dataclasses.replace(SMALL, cold="auto", recall=0.9, recall_block=8)
    with open_engine(tiny, config) as engine:
        native.pin(engine.ctx, 0, 150)
        engine.feed(text(150))
        before = rows(engine, range(150))
        for i in range(12):
            engine.feed(text(100, i))  # a prompt each: its end asks for all that may come back
        assert engine.stats().n_recalls > 5
        assert engine.stats().n_rows_recalled > 500
        assert rows(engine, range(150)) == before


@pytest.mark.parametrize("mode", MODES)
def test_pins_are_cut_with_the_sequence(mode: str, tiny: tuple[Path, Path]) -> None:
    """Also where the cold tier makes a sequence anew that is cut before T."""
    with open_engine(tiny, dataclasses.replace(SMALL, mode=mode, cold="auto")) as engine:
        native.pin(engine.ctx, 30, 130)
        engine.feed(text(130))
        before = rows(engine, range(30, 130))
        engine.feed(text(800, 1))
        for cut in (900, 500, 200):
            assert engine.rm(cut)
            assert native.get_pins(engine.ctx) == [(30, 130)]
            assert rows(engine, range(30, 130)) == before
            assert_whole(engine, range(max(cut - 32, native.seq_pos_whole(engine.ctx)), cut))
            engine.feed(text(400, cut))
            assert rows(engine, range(30, 130)) == before
        assert engine.rm(100)
        assert native.get_pins(engine.ctx) == [(30, 100)]
        engine.feed(text(500, 9))
        assert_whole(engine, range(30, 100))
        assert not all(of_head >= set(range(100, 130)) for of_head in kept(engine))
        assert engine.rm(-1)
        assert native.get_pins(engine.ctx) == []


def test_pins_of_what_is_still_to_come_are_cut_too(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, SMALL) as engine:
        native.pin(engine.ctx, 0, 100)
        assert engine.stats().n_pinned == 0
        engine.feed(text(60))
        assert engine.stats().n_pinned == 60
        engine.rm(80)
        assert native.get_pins(engine.ctx) == [(0, 80)]
        native.unpin(engine.ctx, 10, 20)
        assert native.get_pins(engine.ctx) == [(0, 10), (20, 80)]
        native.pin(engine.ctx, 10, 30)
        assert native.get_pins(engine.ctx) == [(0, 80)]
        native.unpin(engine.ctx)
        assert native.get_pins(engine.ctx) == []


def test_unpinned_tokens_can_go_and_do_not_come_back(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, SMALL) as engine:
        native.pin(engine.ctx, 0, 150)
        engine.feed(text(600))
        native.unpin(engine.ctx, 50, 100)
        engine.feed(text(400, 1))
        assert_whole(engine, range(50))
        assert_whole(engine, range(100, 150))
        assert not all(of_head >= set(range(50, 100)) for of_head in kept(engine))
        assert native.pin(engine.ctx, 0, 150) == 100  # heads have evicted the rest
        end = engine.next_pos()
        assert native.pin(engine.ctx, 4, end + 20) == 96 + end + 20 - native.seq_pos_whole(engine.ctx)


@pytest.mark.parametrize("is_unified", [True, False])
def test_a_copied_sequence_has_the_pins(is_unified: bool, tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, SMALL, n_seq_max=2, kv_unified=is_unified) as engine:
        native.pin(engine.ctx, 0, 100)
        engine.feed(text(400))
        before = rows(engine, range(100))
        llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        assert native.get_pins(engine.ctx, 1) == [(0, 100)]
        native.unpin(engine.ctx, seq_id=0)
        for i in range(6):
            engine.feed(text(120, i), 0)
            engine.feed(text(120, 100 + i), 1)
        assert rows(engine, range(100), 1) == before
        if is_unified:  # a shared cell stays while one of its sequences has pinned it
            assert rows(engine, range(100), 0) == before
            native.unpin(engine.ctx, seq_id=1)
        engine.feed(text(600, 1), 0)
        assert not all(of_head >= set(range(100)) for of_head in kept(engine, 0))


def test_what_does_not_fit_is_refused(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, SMALL, n_seq_max=2) as engine:
        with pytest.raises(UsageError, match="leave nothing of a budget of 256"):
            native.pin(engine.ctx, 0, 256 - 32)
        assert native.get_pins(engine.ctx) == []
        assert native.pin(engine.ctx, 0, 223) == 223
        with pytest.raises(UsageError, match="leave nothing"):
            native.pin(engine.ctx, 400, 401)
        assert native.get_pins(engine.ctx) == [(0, 223)]
        for first, end in ((5, 5), (7, 3), (0, -1)):
            with pytest.raises(UsageError, match="nothing to pin"):
                native.pin(engine.ctx, first, end)
        with pytest.raises(UsageError, match="no such sequence"):
            native.pin(engine.ctx, 0, 10, 2)
        engine.feed(text(900))
        assert_whole(engine, range(223))
        # what another sequence pins of shared cells counts for both
        llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        native.unpin(engine.ctx, seq_id=1)
        end = engine.next_pos()
        with pytest.raises(UsageError, match="leave nothing"):
            native.pin(engine.ctx, end, end + 10, 1)


def test_a_state_with_more_pins_than_the_budget_takes_is_read_without_them(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, LARGE) as engine:
        native.pin(engine.ctx, 0, 400)
        engine.feed(text(450))
        state = engine.state()
    with open_engine(tiny, SMALL) as engine:
        assert engine.set_state(state)
        assert native.get_pins(engine.ctx) == []
        engine.feed(text(300))
        assert max(len(of_head) for of_head in kept(engine)) < 256 + 32 + 128


def test_a_whole_context_is_saved_with_its_pins(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, SMALL, n_seq_max=2) as engine:
        native.pin(engine.ctx, 0, 50, 0)
        native.pin(engine.ctx, 10, 30, 1)
        for seq in range(2):
            engine.feed(text(400, seq), seq)
        size = llama_cpp.llama_state_get_size(engine.ctx)
        data = np.empty(size, np.uint8)
        pointer = data.ctypes.data_as(llama_cpp.ctypes.POINTER(llama_cpp.ctypes.c_uint8))
        assert llama_cpp.llama_state_get_data(engine.ctx, pointer, size) == size
        llama_cpp.llama_memory_clear(engine.memory, False)
        assert native.get_pins(engine.ctx, 0) == []
        assert llama_cpp.llama_state_set_data(engine.ctx, pointer, size) == size
        assert native.get_pins(engine.ctx, 0) == [(0, 50)]
        assert native.get_pins(engine.ctx, 1) == [(10, 30)]
