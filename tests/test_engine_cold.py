"""The cold tier: evicted rows are still there, come back bit for bit, and a sequence can go back to any position."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from cold_tier import COLD, assert_rows_are, first_rows, kept, open_engine, raw_rows, text, tiny_model
from engine import environment

from triattn_local.config import MODES
from triattn_local.engine import native
from triattn_local.engine.context_options import ContextOptions
from triattn_local.errors import UsageError
from triattn_local.model.model_info import read_model_info
from triattn_local.planning.cold import cold_plan

OFF = dataclasses.replace(COLD, cold="off")


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_model(tmp_path)


@pytest.mark.parametrize("as_device", ["0", "1"])
@pytest.mark.parametrize(
    ("cache", "flash_attn"), [("f16", True), ("f16", False), ("q8_0", True), ("f32", True)], ids=str
)
@pytest.mark.parametrize("mode", MODES)
def test_what_comes_back_is_what_was_there(
    mode: str, cache: str, flash_attn: bool, as_device: str, tiny: tuple[Path, Path]
) -> None:
    config = dataclasses.replace(COLD, mode=mode)
    with (
        environment(LLAMA_TRIATTN_AS_DEVICE=as_device),
        open_engine(tiny, config, type_k=cache, flash_attn=flash_attn) as engine,
    ):
        seen = first_rows(engine, text(900))
        if as_device == "1" and not flash_attn:
            assert engine.stats().cold_bytes_max == 0  # transposed values on a device: told in the log
            return
        for i in range(80):
            engine.decode([7 + i])
            for j, of_set in enumerate(kept(engine)):
                seen[j].update(raw_rows(engine, {p: c for p, c in of_set.items() if p == 900 + i}, j // 2, j % 2))
        stats = engine.stats()
        assert stats.n_rounds >= 15
        assert stats.n_rows_recalled > 100
        assert_rows_are(engine, seen)
        for tokens in kept(engine):
            assert {0, 1, 2, 3} <= tokens.keys()
            assert set(range(980 - 32, 980)) <= tokens.keys()
            assert len(tokens) == stats.n_cells_used <= 256 + 32 + 128  # none twice


def test_a_recall_of_nothing_changes_nothing(tiny: tuple[Path, Path]) -> None:
    logits, sets = [], []
    for config in (OFF, dataclasses.replace(COLD, recall=0.0, recall_prompt=0.0)):
        with open_engine(tiny, config) as engine:
            engine.feed(text(900))
            logits.append(np.stack([engine.decode([5 + i]) for i in range(150)]))
            sets.append(kept(engine))
            assert engine.stats().n_rounds >= 9
    assert np.array_equal(logits[0].view(np.uint32), logits[1].view(np.uint32))
    assert sets[0] == sets[1]


@pytest.mark.parametrize("n_kept", [0, 3])
def test_what_the_last_queries_want_most_is_there(n_kept: int, tiny: tuple[Path, Path]) -> None:
    """Against attention over all tokens, reckoned in NumPy from the rows as they were read."""
    config = dataclasses.replace(COLD, n_keep=n_kept, recall_block=1, recall_period=0)
    n = 700
    with open_engine(tiny, config) as engine:
        seen = first_rows(engine, text(n))
        before = kept(engine)
        engine.decode(text(40, shift=9))
        after = kept(engine)
    came = [b.keys() - a.keys() - set(range(n, n + 40)) for a, b in zip(before, after, strict=True)]
    assert sum(map(len, came)) > 50
    assert all(p < n for tokens in came for p in tokens)
    del seen


@pytest.mark.parametrize("mode", MODES)
def test_going_back_to_any_position(mode: str, tiny: tuple[Path, Path]) -> None:
    config = dataclasses.replace(COLD, mode=mode)
    tokens = text(1500)
    rng = np.random.default_rng(1)
    with open_engine(tiny, config) as engine:
        seen = first_rows(engine, tokens)
        assert native.seq_pos_whole(engine.ctx) > 1000
        assert native.seq_pos_cut(engine.ctx) == 0
        assert llama_cpp.llama_memory_seq_pos_min(engine.memory, 0) == 0
        for p0 in [1400, *sorted(rng.integers(300, 1400, 6).tolist(), reverse=True), 257, 200, 100, 3]:
            assert engine.rm(p0)
            assert engine.next_pos() == p0
            for of_set in kept(engine):
                assert len(of_set) == min(p0, len(of_set))
                assert set(range(min(4, p0))) <= of_set.keys()
                assert set(range(max(p0 - 32, 0), p0)) <= of_set.keys()
                assert max(of_set) == p0 - 1
            if p0 <= 256:
                assert native.seq_pos_whole(engine.ctx) == 0
                assert all(of_set.keys() == set(range(p0)) for of_set in kept(engine))
            rows = [{p: r for p, r in s.items() if p < p0} for s in seen]
            assert_rows_are(engine, rows)
            engine.decode([9])
            assert engine.rm(p0)


def test_below_the_budget_a_sequence_that_went_back_is_one_that_was_read_anew(tiny: tuple[Path, Path]) -> None:
    tokens = text(1200)
    with open_engine(tiny, COLD) as engine:
        engine.feed(tokens)
        assert engine.rm(200)
        back = [engine.decode([t]) for t in tokens[200:230]]
    with open_engine(tiny, OFF) as engine:
        engine.feed(tokens[:200])
        anew = [engine.decode([t]) for t in tokens[200:230]]
    np.testing.assert_allclose(back, anew, atol=5e-3)


def test_a_full_store_destroys_what_is_wanted_least_and_says_so(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, COLD) as engine:
        engine.feed(text(2000))
        needed = engine.stats().cold_bytes
    for part in (2, 10):
        with open_engine(tiny, dataclasses.replace(COLD, cold=needed // part)) as engine:
            engine.feed(text(2000))
            for i in range(60):  # a tenth is less than the budget: at the prompt's end all of it was there
                engine.decode([5 + i])
            stats = engine.stats()
            assert 0 < stats.cold_bytes <= needed // part + 1024
            assert stats.n_tokens_destroyed > 0
            assert stats.n_rows_recalled > 0
            assert native.seq_pos_cut(engine.ctx) == native.seq_pos_whole(engine.ctx) > 1500
            assert not engine.rm(700)
            assert engine.next_pos() == 2060
            engine.decode([5])


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_the_memory_is_what_the_plan_says(cache: str, tiny: tuple[Path, Path]) -> None:
    model, _ = tiny
    shape = ContextOptions(n_ctx=2048, type_k=cache, type_v=cache)
    planned = cold_plan(read_model_info(model), shape, 2**40, "auto")
    assert planned is not None
    assert planned.n_tokens is None
    with open_engine(tiny, COLD, type_k=cache, n_ctx=2048) as engine:
        engine.feed(text(2048))
        engine.rm(2047)
        engine.decode([5])
        assert native.evict(engine.ctx) > 0  # what is still in the cells goes out
        stats = engine.stats()
        assert stats.cold_bytes == planned.needed == stats.cold_bytes_max
        assert stats.n_tokens_destroyed == 0
    limited = cold_plan(read_model_info(model), shape, planned.needed // 2, "auto")
    assert limited is not None
    assert limited.limit == limited.held == planned.needed // 2 * 3 // 4
    assert limited.n_tokens == limited.limit // planned.token_bytes


def test_no_memory_for_the_store_is_as_without_it(tiny: tuple[Path, Path]) -> None:
    with environment(LLAMA_TRIATTN_FAIL_STORE="0"), open_engine(tiny, COLD) as engine:
        engine.feed(text(900))
        [engine.decode([5]) for _ in range(40)]
        stats = engine.stats()
        assert stats.cold_bytes == stats.n_rows_recalled == 0
        assert stats.n_rounds >= 6
        assert not engine.rm(300)
    with environment(LLAMA_TRIATTN_FAIL_STORE="1"), open_engine(tiny, COLD) as engine:
        engine.feed(text(1500))
        [engine.decode([5]) for _ in range(40)]
        assert engine.stats().n_tokens_destroyed > 0
        assert not engine.rm(300)


@pytest.mark.parametrize("kv_unified", [True, False], ids=["unified", "streams"])
def test_two_sequences_with_a_common_beginning(kv_unified: bool, tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, COLD, n_seq_max=2, kv_unified=kv_unified) as engine:
        seen = first_rows(engine, text(700))
        llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        for i in range(120):
            engine.decode([7 + i], 0)
            engine.decode([9 + i], 1)
        for seq in (0, 1):
            for j, of_set in enumerate(kept(engine, seq)):
                old = {p: c for p, c in of_set.items() if p < 700}
                assert all(row == seen[j][p] for p, row in raw_rows(engine, old, j // 2, j % 2, seq).items())
                assert set(range(820 - 32, 820)) <= of_set.keys()
        if not kv_unified:
            own = [raw_rows(engine, {p: c for p, c in s.items() if p >= 780}, 0, 0, 1) for s in kept(engine, 1)[:1]]
            assert engine.rm(500, seq=0)
            assert engine.next_pos(1) == 820
            again = [raw_rows(engine, {p: c for p, c in s.items() if p >= 780}, 0, 0, 1) for s in kept(engine, 1)[:1]]
            assert own == again
            assert engine.rm(690, seq=1)
            for j, of_set in enumerate(kept(engine, 1)):
                assert all(row == seen[j][p] for p, row in raw_rows(engine, of_set, j // 2, j % 2, 1).items())


def test_sequences_that_share_cells_hold_no_token_twice(tiny: tuple[Path, Path]) -> None:
    """A round of one takes the marks of recalled tokens away that the other's next round looks for."""
    tokens = np.random.default_rng(1).integers(3, 250, 900).tolist()
    small = dataclasses.replace(COLD, budget_tokens=128)
    with open_engine(tiny, small, n_seq_max=2, n_batch=64, n_ubatch=64) as engine:
        engine.feed(tokens[:500])
        for token in tokens[500:540]:
            engine.decode([token])
        llama_cpp.llama_memory_seq_cp(engine.memory, 0, 1, -1, -1)
        for token in tokens[540:600]:
            engine.decode([token], 0)
            engine.decode([token + 1], 1)
        for i in range(600, 900, 64):
            engine.decode(tokens[i : i + 64], 1)
            for seq, il, head in itertools.product((0, 1), native.get_layers(engine.ctx), (0, 1)):
                held = native.get_kept(engine.ctx, il, head, seq)[0].tolist()
                assert len(set(held)) == len(held), f"sequence {seq}, layer {il}, head {head}"


def test_a_state_brings_back_its_rows_while_the_context_lives(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, COLD) as engine:
        seen = first_rows(engine, text(900))
        state = engine.state()
        assert len(state) < 1.2 * engine.stats().kv_bytes
        engine.feed(text(300, shift=3))
        assert engine.rm(500)
        engine.feed(text(500, shift=4))
        assert engine.set_state(state)
        assert native.seq_pos_cut(engine.ctx) == 0
        assert_rows_are(engine, seen)
        assert engine.rm(600)
        assert_rows_are(engine, seen)
        engine.feed(text(200, shift=5))
        assert engine.set_state(state)  # what was written since is not in it
        assert engine.rm(700)
        assert_rows_are(engine, seen)


def test_a_state_of_another_context_goes_on_and_has_no_more_than_it_says(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, COLD) as engine:
        engine.feed(text(900))
        state = engine.state()
    with open_engine(tiny, COLD) as engine:
        engine.feed(text(950, shift=3))
        engine.state()
        assert engine.set_state(state)
        whole = native.seq_pos_whole(engine.ctx)
        assert native.seq_pos_cut(engine.ctx) == whole
        assert not engine.rm(whole - 100)
        for i in range(200):
            engine.decode([5 + i])
        assert engine.stats().n_recalls > 0
        assert not engine.rm(300)
        assert engine.next_pos() == 1100


def test_states_give_way_when_memory_is_wanted(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, COLD) as engine:
        engine.feed(text(2000))
        needed = engine.stats().cold_bytes
    with open_engine(tiny, dataclasses.replace(COLD, cold=needed + needed // 4)) as engine:
        states = []
        for i in range(3):
            engine.feed(text(1800, shift=i))
            states.append(engine.state())
            assert engine.rm(0)
        engine.feed(text(1900))
        assert engine.stats().n_tokens_destroyed == 0
        assert engine.set_state(states[0])
        assert native.seq_pos_cut(engine.ctx) == native.seq_pos_whole(engine.ctx) > 0


@pytest.mark.parametrize("mode", MODES)
def test_rounds_choose_among_what_they_chose_before(mode: str, tiny: tuple[Path, Path]) -> None:
    """With a ranking that knows positions only, what is recalled between rounds must not change what they keep."""

    def rounds(cold: str) -> tuple[list[list[list[int]]], int]:
        seen: list[list[list[int]]] = []

        def rank(of: native.Round) -> None:
            seen.append([sorted(row.tolist()) for row in of.pos])
            of.scores[:] = (of.pos * 7919) % 1009

        with open_engine(tiny, dataclasses.replace(COLD, cold=cold, mode=mode, recall_period=4)) as engine:
            ranking = native.Ranking(engine.ctx, rank)
            for token in text(800):  # one by one: a prompt's end is read in parts, and rounds would come elsewhere
                engine.decode([token])
            state = engine.state()
            assert engine.set_state(state)
            for i in range(100):
                engine.decode([3 + i * 83 % 250])
            ranking.check()
            return seen, engine.stats().n_rows_recalled

    with_cold, n_recalled = rounds("auto")
    without, _ = rounds("off")
    assert len(without) >= 15
    assert n_recalled > 1000
    assert with_cold == without


def test_graphs_are_used_again_between_rounds(tiny: tuple[Path, Path]) -> None:
    built = []
    for config in (OFF, COLD):
        with open_engine(tiny, config) as engine:
            engine.feed(text(900))
            before = llama_cpp.llama_perf_context(engine.ctx).n_reused
            for i in range(500):
                engine.decode([5 + i % 200])
            built.append(500 - (llama_cpp.llama_perf_context(engine.ctx).n_reused - before))
            assert (engine.stats().n_recalls > 20) == (config is COLD)
    assert built[1] <= built[0] + 1, built


def test_the_logits_of_a_prompt_that_was_read_in_parts_are_where_they_were_asked_for(tiny: tuple[Path, Path]) -> None:
    """Two sequences in one batch: a prompt that ends, and a token of an answer."""
    with open_engine(tiny, dataclasses.replace(COLD, recall_period=0), n_seq_max=2, kv_unified=False) as engine:
        engine.feed(text(600), 0)
        engine.feed(text(600, shift=5), 1)
        rows = [(t, 600 + i, 0, i == 49) for i, t in enumerate(text(50, shift=2))]
        rows.insert(20, (77, 600, 1, True))
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        for i, (token, pos, seq, is_output) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, pos, 1, is_output
            batch.seq_id[i][0] = seq
        batch.n_tokens = len(rows)
        recalls = engine.stats().n_recalls
        assert llama_cpp.llama_decode(engine.ctx, batch) == 0
        assert engine.stats().n_recalls > recalls

        def logits(i: int) -> np.ndarray:
            return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(engine.ctx, i), (engine.n_vocab,)).copy()

        first, second = logits(20), logits(50)
        assert not np.array_equal(first, second)
        llama_cpp.llama_batch_free(batch)
        assert engine.rm(649, seq=0)
        np.testing.assert_allclose(engine.decode([rows[50][0]], 0), second, atol=5e-3)
        assert engine.rm(600, seq=1)
        np.testing.assert_allclose(engine.decode([77], 1), first, atol=5e-3)


def test_other_recalls_of_an_open_context(tiny: tuple[Path, Path]) -> None:
    with open_engine(tiny, dataclasses.replace(COLD, recall=0.0, recall_prompt=0.0)) as engine:
        engine.feed(text(900))
        assert engine.stats().n_recalls == 0
        native.set_recall(engine.ctx, 0.5, 0.6, 16, 24, 8)
        for i in range(40):
            engine.decode([5 + i])
        assert engine.stats().n_recalls >= 5
        for wrong in ((1.5, 0.6, 16, 24, 8), (0.5, 1.0, 16, 24, 8), (0.5, 0.6, 0, 24, 8), (0.5, 0.6, 16, 999, 8)):
            with pytest.raises(UsageError):
                native.set_recall(engine.ctx, *wrong)
        assert native.get_params(engine.ctx).recall_period == 8
        assert native.get_params(engine.ctx).recall_prompt == pytest.approx(0.6)


_SETTINGS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from engine import Engine
from triattn_local.engine import native
import llama_cpp
params = llama_cpp.llama_model_default_params()
model = llama_cpp.llama_model_load_from_file(sys.argv[2].encode(), params)
c = llama_cpp.llama_context_default_params()
c.n_ctx = 1024
ctx = llama_cpp.llama_init_from_model(model, c)
print(native.get_params(ctx).cold if ctx else native.last_error())
"""


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("off", "off"),
        ("auto", "auto"),
        ("1048576", "1048576"),
        ("0.5GiB", "536870912"),
        ("much", "not off, auto or"),
        ("-3", "not off"),
    ],
)
def test_the_setting_of_plain_programs(value: str, said: str, tiny: tuple[Path, Path]) -> None:
    model, stats = tiny
    done = subprocess.run(
        [sys.executable, "-c", _SETTINGS, str(Path(__file__).parent / "support"), str(model)],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": ":".join(sys.path),
            "TRIATTN_BUDGET": "256",
            "TRIATTN_WINDOW": "32",
            "TRIATTN_STATS": str(stats),
            "TRIATTN_COLD": value,
            **{k: v for k, v in __import__("os").environ.items() if k == "LLAMA_CPP_LIB_PATH"},
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert said in done.stdout
