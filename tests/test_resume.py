"""A conversion that dies at any moment leaves no half-done file, and one that goes on comes to the same end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_tiny

from triattn_local.calib_tools.checkpoint import Checkpoint, read_checkpoint, saved_task, write_checkpoint
from triattn_local.calib_tools.convert import convert
from triattn_local.errors import CalibrationError, UsageError
from triattn_local.model.metadata import read_stats
from triattn_local.support.atomic import atomic_write

ENGINES = ("torch", "runtime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "m.gguf")


class Stop(Exception):  # noqa: N818  # not an error
    """Ends a calibration from within."""


def stop_after(n: int) -> object:
    """A progress that gives up after n calls that count."""
    calls = 0

    def progress(stage: str, done: int, total: int | None, unit: str = "tokens") -> None:
        nonlocal calls
        calls += stage == "calibrating"
        if calls > n:
            raise Stop

    return progress


@pytest.mark.parametrize("engine", ENGINES)
def test_each_step_can_be_the_last(engine: str, model: Path, tmp_path: Path) -> None:
    whole = convert(model, tmp_path / "whole.gguf", n_tokens=700, engine=engine).path.read_bytes()
    out = tmp_path / "out.gguf"
    saved = out.with_name("out.gguf.checkpoint")
    n_stopped = 0
    for n in range(1, 20):
        try:
            # the next call gets one step farther than this one: each begins where the last one stopped
            convert(model, out, n_tokens=700, engine=engine, resume=True, progress=stop_after(2))  # type: ignore[arg-type]
        except Stop:
            n_stopped = n
            assert not out.exists()
            assert saved.exists()
            continue
        break
    assert n_stopped >= 2
    assert out.read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"whole.gguf", "out.gguf"}


def test_without_resume_it_begins_anew(model: Path, tmp_path: Path) -> None:
    whole = convert(model, tmp_path / "whole.gguf", n_tokens=700, engine="torch").path.read_bytes()
    out = tmp_path / "out.gguf"
    with pytest.raises(Stop):
        convert(model, out, n_tokens=700, engine="torch", progress=stop_after(2))  # type: ignore[arg-type]
    out.with_name("out.gguf.checkpoint").write_bytes(b"nonsense")
    assert convert(model, out, n_tokens=700, engine="torch").path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "what"),
    [({"n_tokens": 800}, "tokens was"), ({"engine": "runtime"}, "engine was torch, and is runtime")],
)
def test_a_checkpoint_of_another_calibration(change: dict[str, object], what: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    settings: dict[str, object] = {"n_tokens": 700, "engine": "torch"}
    with pytest.raises(Stop):
        convert(model, out, progress=stop_after(2), **settings)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=rf"out\.gguf\.checkpoint: belongs to another calibration: {what}"):
        convert(model, out, resume=True, **{**settings, **change})  # type: ignore[arg-type]


def test_a_resumed_calibration_keeps_its_engine(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with pytest.raises(Stop):
        convert(model, out, n_tokens=700, engine="torch", progress=stop_after(2))  # type: ignore[arg-type]
    result = convert(model, out, n_tokens=700, resume=True)
    assert (result.engine, result.engine_why) == ("torch", "the checkpoint is its work")


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"PK\x03\x04 cut"])
def test_a_damaged_checkpoint(raw: bytes, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.gguf.checkpoint"
    path.write_bytes(raw)
    with pytest.raises(CalibrationError, match=r"is no checkpoint, or a damaged one; leave out --resume"):
        convert(model, tmp_path / "out.gguf", n_tokens=700, resume=True)
    with pytest.raises(CalibrationError, match="damaged"):
        read_checkpoint(path, {})


def test_a_checkpoint_whose_bits_changed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_checkpoint(path, Checkpoint({"a": 1}, 3, {"x": np.arange(1000.0)}))
    found = read_checkpoint(path, {"a": 1})
    assert found is not None
    assert (found.n_done, saved_task(path)) == (3, {"a": 1})
    assert np.array_equal(found.arrays["x"], np.arange(1000.0))
    raw = bytearray(path.read_bytes())
    raw[raw.index(np.arange(1000.0).tobytes()) + 4001] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CalibrationError, match="damaged"):
        read_checkpoint(path, {"a": 1})


def test_an_engine_that_there_is_not(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'cuda' is not one of auto, torch, runtime"):
        convert(model, tmp_path / "out.gguf", engine="cuda", dry_run=True)


# ---- kill -9

_KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from triattn_local.calib_tools import calibrate, convert, engine_runtime, engine_torch
from triattn_local.model import metadata

model, out, engine, n_kill = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
saved = out.with_name(out.name + ".checkpoint")


def slow(function):
    def slowed(*args, **kwargs):
        time.sleep(0.05)
        return function(*args, **kwargs)
    return slowed


# a tiny model is done before anybody can kill it
engine_torch.TorchEngine.step = slow(engine_torch.TorchEngine.step)
engine_runtime.RuntimeEngine.evaluate = slow(engine_runtime.RuntimeEngine.evaluate)
metadata._copy_in_kernel = slow(metadata._copy_in_kernel)
metadata._compare = slow(metadata._compare)


def attempt(seconds):
    '''A conversion in a process of its own that lives so long; its exit status.'''
    child = os.fork()
    if child == 0:
        convert.convert(model, out, n_tokens=700, engine=engine, resume=True)
        os._exit(0)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


begin = time.monotonic()
assert attempt(100) == 0
whole, whole_s = out.read_bytes(), time.monotonic() - begin
rng, killed, resumed, steps = random.Random(engine), 0, 0, set()
while killed < n_kill:
    out.unlink(missing_ok=True)
    resumed += saved.exists()
    status = attempt(rng.uniform(0.1, 1.0) * whole_s)
    assert status in (0, signal.SIGKILL), status
    killed += status != 0
    assert not out.exists() or out.read_bytes() == whole
    for path in out.parent.iterdir():
        assert path in (out, saved) or path.name.endswith(".tmp"), path
out.unlink(missing_ok=True)
time.sleep(1.1)  # younger leftovers could be those of another process that begins
assert attempt(100) == 0
assert out.read_bytes() == whole
print(json.dumps({"resumed": resumed, "left": [path.name for path in out.parent.iterdir()]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)  # ten moments each
def test_kill_9_at_random_moments(engine: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "out.gguf"
    out.parent.mkdir()
    command = [sys.executable, "-c", _KILLER, str(model), str(out), engine, "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["left"] == ["out.gguf"]
    assert report["resumed"] >= 3
    assert out.read_bytes() == convert(model, tmp_path / "whole.gguf", n_tokens=700, engine=engine).path.read_bytes()


def test_a_file_that_somebody_writes_is_no_leftover(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "x", 1) as first:
        first.write(b"1")
        os.utime(first.name, (0, 0))
        with atomic_write(tmp_path / "x", 1) as second:
            second.write(b"2")
        assert (tmp_path / "x").read_bytes() == b"2"
    assert (tmp_path / "x").read_bytes() == b"1"
    dead = tmp_path / ".x.0123.tmp"
    dead.write_bytes(b"")
    os.utime(dead, (0, 0))
    with atomic_write(tmp_path / "x", 1):
        assert not dead.exists()


def test_two_calibrations_give_the_same_bytes(model: Path, tmp_path: Path) -> None:
    for engine in ENGINES:
        first, second = (convert(model, tmp_path / f"{engine}{i}", n_tokens=700, engine=engine).path for i in (1, 2))
        assert first.read_bytes() == second.read_bytes()
        stats = read_stats(first)
        assert stats is not None
        assert stats.tool.endswith(f", {engine} engine")
