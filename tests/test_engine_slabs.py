"""What was evicted lies in a file: another process has it too, whatever became of the one before."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cold_tier import COLD, assert_rows_are, first_rows, kept, open_engine, raw_rows, text, tiny_model
from engine import Engine

from triattn_local.engine import native
from triattn_local.errors import StateError, TriattnError


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_model(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tmp_path / "evicted.rows"


def restored(engine: Engine, rows: Path, state: bytes) -> bool:
    """Whether all rows are there."""
    native.open_cold(engine.ctx, rows)
    assert engine.set_state(state)
    return native.seq_pos_cut(engine.ctx) == 0


@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_another_context_has_all_rows(cache: str, tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD, type_k=cache) as engine:
        seen = first_rows(engine, text(900))
        assert native.save_cold(engine.ctx, rows) > 0
        state = engine.state()
        assert len(state) < 1.2 * engine.stats().kv_bytes
    with open_engine(tiny, COLD, type_k=cache) as engine:
        assert restored(engine, rows, state)
        for cut in (700, 333, 260):
            assert engine.rm(cut)
            assert_rows_are(engine, seen)


def test_a_file_grows_by_what_is_new_and_serves_every_branch(tiny: tuple[Path, Path], rows: Path) -> None:
    branches = []
    with open_engine(tiny, COLD) as engine:
        first_rows(engine, text(1000))
        n_first = native.save_cold(engine.ctx, rows)
        trunk = engine.state()
        assert native.save_cold(engine.ctx, rows) == 0  # nothing is new
        for shift in (1, 2):
            assert engine.set_state(trunk)
            seen = first_rows_behind(engine, 1000, text(300, shift=shift))
            n_branch = native.save_cold(engine.ctx, rows)
            # at most what the branch has evicted and the slab that both have begun
            assert 0 < n_branch < n_first
            branches.append((engine.state(), seen))
    for state, seen in branches:
        with open_engine(tiny, COLD) as engine:
            assert restored(engine, rows, state)
            assert engine.rm(1200)
            assert_new_rows_are(engine, seen, 1000, 1200)
            # going on from it changes nothing of the other one
            engine.feed(text(400, shift=9))
            native.save_cold(engine.ctx, rows)


def first_rows_behind(engine: Engine, n: int, tokens: list[int]) -> list[dict[int, tuple[bytes, bytes]]]:
    seen: list[dict[int, tuple[bytes, bytes]]] = [{} for _ in kept(engine)]
    for i in range(0, len(tokens), 20):
        engine.decode(tokens[i : i + 20])
        for j, of_set in enumerate(kept(engine)):
            new = {p: c for p, c in of_set.items() if p >= n + i}
            seen[j].update(raw_rows(engine, new, j // 2, j % 2))
    return seen


def assert_new_rows_are(engine: Engine, seen: list[dict[int, tuple[bytes, bytes]]], p0: int, p1: int) -> None:
    n = 0
    for j, of_set in enumerate(kept(engine)):
        held = {p: row for p, row in raw_rows(engine, of_set, j // 2, j % 2).items() if p0 <= p < p1}
        assert all(row == seen[j][p] for p, row in held.items())
        n += len(held)
    assert n > 0


def test_what_a_state_names_is_never_written_again(tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD) as engine:
        seen = first_rows(engine, text(1000))
        native.save_cold(engine.ctx, rows)
        state = engine.state()
        for shift in range(5):  # other texts in the place of what was saved
            assert engine.rm(300 + 50 * shift)
            engine.feed(text(700, shift=20 + shift))
            native.save_cold(engine.ctx, rows)
            engine.state()
    with open_engine(tiny, COLD) as engine:
        assert restored(engine, rows, state)
        assert engine.rm(800)
        assert_rows_are(engine, seen)


def test_it_goes_on_as_the_context_that_wrote_it(tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD) as engine:
        logits = engine.feed(text(900))
        native.save_cold(engine.ctx, rows)
        state = engine.state()
        there, _ = engine.greedy(logits, 200)
    with open_engine(tiny, COLD) as engine:
        assert restored(engine, rows, state)
        here, _ = engine.greedy(logits, 200)
        assert engine.stats().n_recalls > 0
    assert here == there


_WRITER = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from cold_tier import COLD, open_engine, text
from triattn_local.engine import native
from triattn_local.support.atomic import atomic_write

model, stats, folder = map(Path, sys.argv[1:4])
with open_engine((model, stats), COLD, n_ctx=1 << 15) as engine:
    for i in range(800):
        engine.feed(text(30, shift=i))
        native.save_cold(engine.ctx, folder / "evicted.rows")
        state = engine.state()
        with atomic_write(folder / "state", len(state)) as file:
            file.write(state)
        print(i, flush=True)
"""


def test_killed_at_any_moment_the_file_opens(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    rng = random.Random(0)
    tests = Path(__file__).parent
    paths = [str(tests), str(tests / "support")]
    for _ in range(4):
        folder = tmp_path / "killed"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-c", _WRITER, *map(str, tiny), str(folder), *paths]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(24):  # the first are below the budget
                assert writer.stdout.readline()
            time.sleep(0.3 * rng.random())
            writer.send_signal(signal.SIGKILL)
        assert writer.returncode == -signal.SIGKILL
        with open_engine(tiny, COLD, n_ctx=1 << 15) as engine:
            assert restored(engine, folder / "evicted.rows", (folder / "state").read_bytes())
            n_past = engine.next_pos()
            seen = first_rows_of_writer(tiny, n_past)
            assert engine.rm(n_past - 100)
            assert_rows_are(engine, seen)
        for path in folder.iterdir():
            path.unlink()


def first_rows_of_writer(tiny: tuple[Path, Path], n_past: int) -> list[dict[int, tuple[bytes, bytes]]]:
    """The rows of every token when it was read: no batch is longer than the window, which all heads hold."""
    with open_engine(tiny, COLD, n_ctx=1 << 15) as engine:
        seen: list[dict[int, tuple[bytes, bytes]]] = [{} for _ in kept(engine)]
        n = 0
        for i in range(n_past // 30):
            engine.feed(text(30, shift=i))
            for j, of_set in enumerate(kept(engine)):
                seen[j].update(raw_rows(engine, {p: c for p, c in of_set.items() if p >= n}, j // 2, j % 2))
            n += 30
        return seen


@pytest.mark.parametrize("kind", ["half of it", "head only", "not there", "another file", "other cache"])
def test_a_wrong_file_is_a_clear_error(kind: str, tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD) as engine:
        engine.feed(text(1500))
        native.save_cold(engine.ctx, rows)
        state = engine.state()
    said = ""
    if kind == "half of it":
        os.truncate(rows, rows.stat().st_size // 2)
    elif kind == "head only":
        os.truncate(rows, 100)
        said = "no rows of a cold tier"
    elif kind == "not there":
        rows.unlink()
        said = "cannot be opened"
    elif kind == "another file":
        rows.write_bytes(bytes(range(256)) * 1000)
        said = "no rows of a cold tier"
    elif kind == "other cache":
        said = "lie otherwise"
    with open_engine(tiny, COLD, type_k="q8_0" if kind == "other cache" else "f16") as engine:
        if said:
            with pytest.raises(TriattnError, match=said):
                native.open_cold(engine.ctx, rows)
        else:
            native.open_cold(engine.ctx, rows)
        if kind != "other cache":
            assert engine.set_state(state)  # what its cells held is there, and no more is said to be
            assert native.seq_pos_cut(engine.ctx) == native.seq_pos_whole(engine.ctx) > 0
            assert not engine.rm(300)


def test_one_context_at_a_time_adds_to_a_file(tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD) as one, open_engine(tiny, COLD) as other:
        one.feed(text(900))
        other.feed(text(900))
        native.save_cold(one.ctx, rows)
        with pytest.raises(TriattnError, match="another program has it open"):
            native.save_cold(other.ctx, rows)
    with open_engine(tiny, COLD) as engine:
        native.open_cold(engine.ctx, rows)


def test_without_a_cold_tier_there_is_nothing_to_save(tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, dataclasses.replace(COLD, cold="off")) as engine:
        engine.feed(text(900))
        with pytest.raises(StateError, match="the cold tier is off"):
            native.save_cold(engine.ctx, rows)
    assert not rows.exists()


def test_opening_reads_no_rows(tiny: tuple[Path, Path], rows: Path) -> None:
    with open_engine(tiny, COLD, n_ctx=1 << 15) as engine:
        native.set_recall(engine.ctx, 0.0, 0.0, 16, 24, 16)  # reads them faster
        engine.feed(text(30000))
        native.save_cold(engine.ctx, rows)
        state = engine.state()
    n_bytes = rows.stat().st_size
    assert n_bytes > 30_000_000
    with open_engine(tiny, COLD, n_ctx=1 << 15) as engine:
        began = time.perf_counter()
        assert restored(engine, rows, state)
        assert time.perf_counter() - began < 1
        assert resident(rows) < n_bytes / 100
        engine.decode([5])
        assert engine.next_pos() == 30001


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has looked at."""
    n, is_it = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            is_it = line.endswith(str(path))
        elif is_it and line.startswith("Rss:"):
            n += int(line.split()[1]) << 10
    return n
