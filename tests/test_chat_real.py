"""The main path of the chat on a real model: first answer past the cache, going back, resuming."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import pytest
from machine import slowness
from texts import prose
from textual.pilot import Pilot

from triattn_local.engine.runtime import Runtime
from triattn_local.planning import plan_run
from triattn_local.sessions import Attachment, Message, SessionStore, SnapshotCache
from triattn_local.sessions.conversation import Conversation
from triattn_local.settings import Settings
from triattn_local.tui.app import ChatApp, Start
from triattn_local.tui.widgets.messages import AnswerMessage, Notice

pytestmark = [pytest.mark.slow, pytest.mark.asyncio]


async def until(pilot: Pilot[None], what: Callable[[], Any], timeout_s: float = 400) -> None:
    end_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end_s, "took too long"
        await pilot.pause(0.05)


async def answered(pilot: Pilot[None], app: ChatApp, key: str) -> None:
    """A key that asks for an answer, up to where nothing is going on any more.

    A short answer may be complete before the key's messages are all handled, so that `busy` is never seen.
    """
    await pilot.pause()
    before = {message.id for message in app.session.path}
    await pilot.press(key)

    def is_new() -> bool:
        newest = app.session.path[-1] if app.session.path else None
        return newest is not None and newest.role == "assistant" and newest.id not in before

    await until(pilot, is_new, 60)
    await until(pilot, lambda: not app.chat.busy)
    idle = threading.Event()
    app.engine._submit(idle.set)
    await until(pilot, idle.is_set)
    await pilot.pause()


def settings() -> Settings:
    return Settings.load({"budget": 512, "batch": 128, "max_tokens": 24, "temp": 0.7, "repeat_penalty": 1.1})


async def test_past_the_cache_back_and_resumed(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / "sessions"))
    app = ChatApp(settings(), Start(smollm2_triattn))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(pilot, lambda: not app.loading and app.model is not None)
        app.chat._set_files([Attachment("report.txt", prose(900))])
        app.chat.prompt.insert("What is this about?")
        await answered(pilot, app, "enter")
        stats = app.chat.status.stats
        assert stats is not None
        assert stats.n_evictions >= 3
        assert stats.n_past > 1000 > stats.n_cells_used
        first = app.session.path[-1]
        assert first.content
        retained = app.chat._retained
        assert retained is not None
        assert retained.share.shape == (30, stats.n_past)
        assert 0.3 < float(retained.share.mean()) < 0.8
        assert retained.spans[first.id].first > 1000

        await answered(pilot, app, "ctrl+r")
        again = app.session.path[-1]
        assert again.content != first.content, "another seed"
        assert again.report["n_prompt"] - again.report["n_cached"] == 1, "from the snapshot in memory"

        app.chat.prompt.insert("Go on.")
        await answered(pilot, app, "enter")
        report = app.session.path[-1].report
        assert report.get("n_again") == 0, report
        assert report["n_prompt"] - report["n_cached"] < 30
        contents = [message.content for message in app.session.path]
        app.exit()
    app.shut_down()

    app = ChatApp(settings(), Start(newest=True))
    try:
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: not app.loading and app.model is not None)
            assert app.model == smollm2_triattn, "the session knows its model"
            assert [message.content for message in app.session.path] == contents
            app.chat.prompt.insert("And then?")
            await answered(pilot, app, "enter")
            report = app.session.path[-1].report
            assert report.get("n_again") == 0, report
            assert report["n_prompt"] - report["n_cached"] < 30
            assert "restored from disk" in list(app.chat.query(AnswerMessage))[-1].note
    finally:
        app.shut_down()


async def test_escape_amid_a_batch_of_the_prompt(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is free at once, nothing half read stays, and the answer afterwards is the one without the stop."""
    question = f"{prose(1500)}\n\nWhat is this about?"
    answers = []
    for stops in (True, False):
        monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / f"stops-{stops}"))
        flags = {"budget": 512, "ctx": 4096, "batch": 512, "max_tokens": 12}
        app = ChatApp(Settings.load(flags), Start(smollm2_triattn))
        try:
            async with app.run_test(size=(120, 40)) as pilot:
                await until(pilot, lambda app=app: not app.loading and app.model is not None)
                app.chat.prompt.insert(question)
                if stops:
                    await pilot.press("enter")
                    await until(pilot, lambda app=app: app.chat.status.state.startswith("reading"), 60)
                    start_s = time.monotonic()
                    await pilot.press("escape")
                    idle = threading.Event()
                    app.engine._submit(idle.set)
                    while not idle.is_set():
                        await asyncio.sleep(0.005)
                    assert time.monotonic() - start_s < 0.2 * slowness()
                    await until(pilot, lambda app=app: not app.chat.busy)
                    assert (app.session.path[-1].state, app.session.path[-1].content) == ("stopped", "")
                await answered(pilot, app, "ctrl+r" if stops else "enter")
                answers.append(app.session.path[-1])
        finally:
            app.shut_down()
    after_a_stop, plain = answers
    assert plain.report["n_prompt"] > 3 * 512
    assert plain.report["n_cached"] == 0
    assert after_a_stop.report["n_cached"] % 512 == 0 < after_a_stop.report["n_cached"], "whole batches are kept"
    assert after_a_stop.content == plain.content


def _read_end(rt: Runtime, tokens: list[int], n: int, n_batch: int = 256) -> None:
    """Put the last n tokens alone into the cache, where they stand."""
    for first in range(len(tokens) - n, len(tokens), n_batch):
        batch = llama_cpp.llama_batch_init(n_batch, 0, 1)
        for i in range(n_batch):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = tokens[first + i], first + i, 1
            batch.seq_id[i][0], batch.logits[i] = 0, i == n_batch - 1
        batch.n_tokens = n_batch
        assert llama_cpp.llama_decode(rt.context.handle, batch) == 0
        llama_cpp.llama_batch_free(batch)


async def test_a_session_of_30000_tokens_opens_without_reading_it_again(
    smollm2_triattn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot has the session's tokens, in cells filled by reading the end alone: restoring costs the same."""
    monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / "sessions"))
    settings = Settings.load({"budget": 512, "ctx": 32768, "rope_scaling": "linear", "max_tokens": 4})
    store = SessionStore(tmp_path / "sessions")
    session = store.create(title="Long", model=str(smollm2_triattn))
    path: list[Message] = []
    for i in range(54):
        parent = path[-1].id if path else None
        path.append(store.add(session.id, parent, "assistant" if i % 2 else "user", prose(450, seed=i)))
    store.close()
    snapshots = SnapshotCache(tmp_path / "sessions" / "snapshots", memory_bytes=0, disk_bytes=1 << 30)
    plan = plan_run(smollm2_triattn, settings)
    with Runtime.load(smollm2_triattn, plan.config, plan.eviction) as rt:
        tokens = Conversation(rt, snapshots).lasting("", path)
        assert len(tokens) > 30_000
        _read_end(rt, tokens, 1024)
        snapshots.put(session.id, path[-1].id, dataclasses.replace(rt.snapshot(), tokens=tokens), in_memory=False)
    snapshots.close()

    start_s = time.monotonic()
    app = ChatApp(settings, Start(session=session.id))
    try:
        async with app.run_test(size=(120, 40)) as pilot:
            await until(pilot, lambda: not app.loading and (app.loaded or app.failed))
            assert app.failed is None, [str(notice.render()) for notice in app.chat.query(Notice)]
            opened_s = time.monotonic() - start_s
            last = app.chat.transcript.message_widgets()[-1]
            assert isinstance(last, AnswerMessage)
            assert last.message.content == path[-1].content

            app.chat.prompt.insert("And then?")
            start_s = time.monotonic()
            await pilot.press("enter")
            await until(pilot, lambda: any("restored from disk" in a.note for a in app.chat.query(AnswerMessage)), 60)
            restored_s = time.monotonic() - start_s
            await until(pilot, lambda: not app.chat.busy)
            report = app.session.path[-1].report
    finally:
        app.shut_down()
    print(f"opened in {opened_s:.2f} s, restored in {restored_s:.2f} s")
    assert report.get("n_again") == 0, report
    assert report["n_prompt"] > 30_000
    assert report["n_prompt"] - report["n_cached"] < 40
    assert opened_s < 4 * slowness()
    assert restored_s < 4 * slowness()
