"""The chat under a pilot, on a scripted runtime, in words of the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_plan import as_written
from scripted_runtime import ScriptedRuntime
from textual.pilot import Pilot

from triattn_local import planning
from triattn_local.engine import runtime
from triattn_local.settings import Settings
from triattn_local.tui.app import ChatApp, Start
from triattn_local.tui.widgets.long_markdown import LongMarkdown, Section
from triattn_local.tui.widgets.messages import AnswerMessage, Notice

LONG = " ".join(f"word{i}" for i in range(150))
THOUGHT = f"<think>\n{LONG}\n</think>\n\nThe **sea** is wide."

Open = Callable[..., AbstractAsyncContextManager["Driver"]]


class Driver:
    """The app and its pilot, in words of the tests."""

    def __init__(self, app: ChatApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot
        self.chat = app.chat

    async def until(self, what: Callable[[], Any], timeout_s: float = 60.0) -> None:
        """Wait for something to be true."""
        end_s = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < end_s, f"still not: {what.__code__.co_names}"
            await self.pilot.pause(0.02)
        await self.pilot.pause()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def write(self, text: str) -> None:
        self.chat.prompt.insert(text)
        await self.pilot.pause()

    async def ask(self, text: str, *, wait: bool = True) -> None:
        await self.write(text)
        await self.press("enter")
        if wait:
            await self.settled()

    async def settled(self) -> None:
        """The answer is there, and the engine rests."""
        await self.until(lambda: not self.chat.busy)
        idle = threading.Event()
        self.app.engine._submit(idle.set)
        await self.until(idle.is_set)

    async def looked(self) -> None:
        """What is in sight is laid out, and nothing more comes or goes."""
        await self.until(lambda: not self.chat.transcript._looks_soon)
        for words in self.chat.query(LongMarkdown):
            await self.until(lambda words=words: not words.lock.is_locked)
            await self.until(lambda words=words: all(s.size.height for s in words.query(Section)))

    @property
    def rt(self) -> ScriptedRuntime:
        return ScriptedRuntime.loads[-1]

    @property
    def contents(self) -> list[str]:
        return [m.content for m in self.app.session.path]

    @property
    def answers(self) -> list[AnswerMessage]:
        return list(self.chat.query(AnswerMessage))

    @property
    def notices(self) -> str:
        return "\n".join(str(notice.render()) for notice in self.chat.query(Notice))

    @property
    def toasts(self) -> str:
        return "\n".join(str(toast.message) for toast in self.app._notifications)

    def screen_text(self) -> str:
        """What is on the screen, as characters."""
        return "\n".join("".join(s.text for s in strip) for strip in self.app.screen._compositor.render_strips())


def opener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    monkeypatch.setattr(runtime, "Runtime", ScriptedRuntime)
    monkeypatch.setattr(planning, "plan_run", as_written)
    for name, value in {"loads": [], "tokens_per_s": None, "batch_s": 0.0, "load_error": None}.items():
        monkeypatch.setattr(ScriptedRuntime, name, value)
    monkeypatch.setattr(ScriptedRuntime, "script", [THOUGHT])
    models = tmp_path / "models"
    models.mkdir()
    (models / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.setenv("TRIATTN_MODELS", str(models))

    @asynccontextmanager
    async def open_(
        *,
        size: tuple[int, int] = (120, 40),
        model: str | None = "tiny.gguf",
        start: Any = None,
        notifications: bool = False,
        **flags: Any,
    ) -> AsyncIterator[Driver]:
        settings = Settings.load({"budget": 64, "window": 16, "batch": 32, **flags})
        begin = Start(models / model if model else None, **(start or {}))
        app = ChatApp(settings, begin)
        try:
            async with app.run_test(size=size, notifications=notifications) as pilot:
                driver = Driver(app, pilot)
                if model:
                    await driver.until(lambda: not app.loading)
                await pilot.pause()
                yield driver
        finally:
            app.shut_down()

    return open_
