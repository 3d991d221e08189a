"""How the main screens look, as pictures: ``pytest --snapshot-update`` takes them anew, and a person looks at them.

Nothing in them may depend on time or chance, so that the conversation is read from the store and the numbers are given.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_plan import as_written
from gguf_files import write_model
from scripted_runtime import ScriptedRuntime
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from triattn_local import planning
from triattn_local.engine import runtime
from triattn_local.engine.runtime import RuntimeStats
from triattn_local.sessions import Attachment, SessionStore
from triattn_local.sessions.conversation import Retained
from triattn_local.settings import Settings
from triattn_local.support import formats
from triattn_local.tui import events
from triattn_local.tui.app import ChatApp, Start

ANSWER = """The keeper checks three things **every night**:

- the *lamp* and its mantle
- the clockwork that turns it
- the `fog signal`

```python
def is_lit(hour: int) -> bool:
    return hour >= 19 or hour < 7
```

| hour | lamp |
|---|---|
| 18 | off |
| 19 | lit |
"""
STATS = RuntimeStats(
    n_ctx=131072,
    n_past=18_442,
    n_cells=2688,
    n_cells_used=2101,
    n_evictions=127,
    tokens_evicted=16_341,
    evict_ms=1612.9,
    kv_bytes=394 << 20,
    kv_bytes_full=18 << 30,
    pos_whole=18_314,
    mode="per-layer-head",
    budget_tokens=2048,
)


def retained() -> Retained:
    rng = np.random.default_rng(3)
    share = rng.random((36, 4000)).astype(np.float32) ** 3
    share *= np.linspace(0.1, 0.9, 4000, dtype=np.float32)
    share[:, -128:] = share[:, :4] = 1.0
    share[:, 1000:1400] = 0.0
    ends = np.arange(1, 4001, dtype=np.int64) * 5
    return Retained(share, {}, b"text " * 4000, ends)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ChatApp]:
    monkeypatch.setattr(runtime, "Runtime", ScriptedRuntime)
    monkeypatch.setattr(planning, "plan_run", as_written)
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "truecolor")  # whatever terminal the tests run in
    monkeypatch.setattr(ScriptedRuntime, "loads", [])
    # never drawn without its cursor: Textual would keep that line for the cursor that does not blink, too
    monkeypatch.setattr(Input, "_toggle_cursor", lambda self: None)
    monkeypatch.setattr(TextArea, "_toggle_cursor_blink_visible", lambda self: None)
    monkeypatch.setattr(formats, "ago", lambda then: "yesterday")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0123abcd"[: 2 * n])
    models = tmp_path / "models"
    models.mkdir()
    (models / "Qwen3-8B-Q4_K_M.triattn.gguf").write_bytes(b"GGUF")
    write_model(models / "tiny.gguf")
    monkeypatch.setenv("TRIATTN_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.setenv("TRIATTN_MODELS", str(models))
    monkeypatch.setattr(
        "triattn_local.tui.screens.models.glance", lambda path: ("qwen3", path.name.endswith(".triattn.gguf"))
    )
    store = SessionStore(tmp_path / "sessions")
    session = store.create(title="What does a lighthouse keeper check?")
    question = store.add(
        session.id,
        None,
        "user",
        "What does a lighthouse keeper check every night?\nHere is his log.",
        attachments=(Attachment("log.txt", "line\n" * 41),),
    )
    store.add(
        session.id,
        question.id,
        "assistant",
        ANSWER,
        thinking="First the lamp.",
        report={"n_thinking": 412, "n_content": 96, "thinking_s": 12.4, "tokens_per_s": 33.1},
    )
    store.close()

    def make(theme: str = "triattn-dark", **start: Any) -> ChatApp:
        app = ChatApp(
            Settings.load({"theme": theme, "ctx": 131072}),
            Start(models / "Qwen3-8B-Q4_K_M.triattn.gguf", newest=True, **start),
        )
        app.animation_level = "none"
        return app

    return make


async def settle(pilot: Pilot[None], *, a_round_came: bool = False) -> None:
    """Loaded, looked at, and nothing blinks."""
    app = pilot.app
    assert isinstance(app, ChatApp)
    while app.loading:
        await pilot.pause(0.02)
    idle = threading.Event()
    app.engine._submit(idle.set)
    while not idle.is_set():
        await pilot.pause(0.02)
    await pilot.pause(0.3)
    app.chat.prompt.cursor_blink = False
    app.engine.map_wanted = False
    app.chat.panel._round_s = None
    app.chat.panel._stats = dataclasses.replace(STATS, n_evictions=0) if a_round_came else STATS
    app.chat._looked(events.Looked(app.session.id, STATS, retained(), 820 << 20))
    for widget in app.screen.query("Input, TextArea"):
        widget.cursor_blink = False  # type: ignore[attr-defined]
        widget._pause_blink(visible=True)  # type: ignore[attr-defined]  # whatever it was doing
    await pilot.pause(0.3)


def screen(*keys: str) -> Callable[[Pilot[None]], Any]:
    async def run(pilot: Pilot[None]) -> None:
        await settle(pilot, a_round_came=not keys)
        if keys:
            await pilot.press(*keys)
            await pilot.pause(0.3)
            await settle(pilot)

    return run


@pytest.mark.parametrize("theme", ["triattn-dark", "triattn-light"])
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_chat(snap_compare: Any, app: Any, size: tuple[int, int], theme: str) -> None:
    assert snap_compare(app(theme), terminal_size=size, run_before=screen())


@pytest.mark.parametrize("key", ["f1", "f2", "f3", "f4", "f8"])
def test_screens(snap_compare: Any, app: Any, key: str) -> None:
    assert snap_compare(app(), terminal_size=(100, 30), run_before=screen(key))
