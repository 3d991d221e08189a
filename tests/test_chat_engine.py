"""The chat's threads that touch models: jobs beside the app, and the one that owns the model."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tiny_models import write_tiny

from triattn_local.calib_tools import convert as calibration
from triattn_local.model.metadata import read_stats
from triattn_local.model.model_info import read_model_info
from triattn_local.tui.engine import Engine
from triattn_local.tui.jobs import Job, JobDone


def test_a_split_model_is_converted_in_the_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "DEFAULT_TOKENS", 700)
    write_tiny(tmp_path / "m.gguf", split_max_tensors=12)
    first = next(tmp_path.glob("m-00001-of-*.gguf"))
    said: list[Any] = []
    job = Job(said.append, tmp_path)
    job.convert(first)
    job.wait(120)
    done = said[-1]
    assert isinstance(done, JobDone)
    assert done.error is None, done.error
    assert done.path == first.with_name(first.name.replace("m-", "m.triattn-"))
    assert all(shard.is_file() for shard in read_model_info(done.path).shards)
    assert read_stats(done.path) is not None

    said.clear()
    job.convert(first)  # it is there
    job.wait(120)
    assert said[-1].path == done.path


def test_a_model_is_not_freed_while_its_tokens_are_counted() -> None:
    counting, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def tokenize(text: str, *, add_special: bool) -> list[int]:
        del text, add_special
        counting.set()
        assert go_on.wait(10)
        assert not closed.is_set(), "freed meanwhile"
        return [1, 2, 3]

    engine = Engine(lambda message: None, cast(Any, None), cast(Any, None))
    rt = SimpleNamespace(tokenize=tokenize, close=closed.set)
    engine._conversation = cast(Any, SimpleNamespace(rt=rt))
    counted: list[int | None] = []
    counter = threading.Thread(target=lambda: counted.append(engine.count_tokens("a text")))
    counter.start()
    assert counting.wait(10)
    closer = threading.Thread(target=engine.close)
    closer.start()
    assert not closed.wait(0.2)
    go_on.set()
    counter.join(10)
    closer.join(10)
    assert counted == [3]
    assert closed.is_set()
    assert engine.count_tokens("a text") is None
