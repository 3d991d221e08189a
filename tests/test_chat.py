"""The chat as its user meets it: keys in, screen out, on a scripted runtime."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from chat_driver import LONG, Driver, Open
from fake_plan import as_written
from gguf_files import write_model
from machine import slowness
from rich.color import Color as RichColor
from rich.color import ColorSystem
from scripted_runtime import ScriptedRuntime
from textual.selection import SELECT_ALL
from textual.widgets import Input, Markdown, OptionList, Static, TextArea

from triattn_local import planning, store
from triattn_local.config import ThinkingConfig
from triattn_local.errors import DoesNotFitError, StatsError, TriattnError, UsageError
from triattn_local.sessions import Attachment, SessionStore, from_json, from_markdown, to_json, to_markdown
from triattn_local.settings import Settings
from triattn_local.tui import events
from triattn_local.tui.app import ChatApp
from triattn_local.tui.cutting import pieces
from triattn_local.tui.jobs import JobDone
from triattn_local.tui.screens.ask import AskScreen
from triattn_local.tui.screens.attach import AttachScreen
from triattn_local.tui.screens.full import FullScreen
from triattn_local.tui.screens.help import HelpScreen
from triattn_local.tui.screens.map import MapScreen
from triattn_local.tui.screens.models import ModelsScreen
from triattn_local.tui.screens.sessions import SessionsScreen
from triattn_local.tui.screens.settings import SettingsScreen
from triattn_local.tui.theme import THEMES
from triattn_local.tui.widgets.code_block import CodeBlock
from triattn_local.tui.widgets.long_markdown import LongMarkdown, Section, Space
from triattn_local.tui.widgets.messages import AnswerMessage, UserMessage
from triattn_local.tui.widgets.text_blocks import Lines
from triattn_local.tui.widgets.thinking import Thinking

pytestmark = pytest.mark.asyncio
# conversation


async def test_an_answer_streams_as_markdown(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("How is the sea?")
        (answer,) = t.answers
        assert answer.body.text == "The **sea** is wide."
        assert "The sea is wide." in t.screen_text()
        assert t.contents == ["How is the sea?", "The **sea** is wide."]
        assert t.chat.prompt.text == ""
        assert t.app.session.title == "How is the sea?"


async def test_pieces_are_shown_while_they_come(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    ScriptedRuntime.tokens_per_s = 20
    async with open_chat() as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.answers and "word9 " in t.answers[0].body.text)
        assert "word149" not in t.answers[0].body.text
        assert t.chat.status.busy
        seen = t.app.store.messages(t.app.session.id or "")[-1]
        assert "word9 " in seen.content, "stored before it is shown"
        assert seen.state == "streaming"
        await t.press("escape")
        await t.settled()


async def test_stop_keeps_what_there_is_and_frees_the_engine_at_once(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    ScriptedRuntime.tokens_per_s = 20
    async with open_chat() as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.answers and "word5 " in t.answers[0].body.text)
        start_s = time.perf_counter()
        await t.pilot.press("escape")
        while not t.rt.finished.is_set():
            await asyncio.sleep(0.002)
        assert time.perf_counter() - start_s < 0.2 * slowness()
        await t.settled()
        message = t.app.session.path[-1]
        assert message.state == "stopped"
        assert message.content.startswith("word0 word1")
        assert "stopped" in t.screen_text()
        await t.ask("And on?")
        assert len(t.contents) == 4


async def test_ctrl_c_stops_an_answer_and_ends_nothing(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    ScriptedRuntime.tokens_per_s = 20
    async with open_chat() as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.answers and "word5 " in t.answers[0].body.text)
        await t.press("ctrl+c")
        await t.settled()
        assert t.app.session.path[-1].state == "stopped"
        await t.press("ctrl+c")
        assert "Ctrl+Q leaves" in t.toasts
        assert t.app.is_running


async def test_words_of_other_chats(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("Go")
        await t.write("/?")
        await t.press("enter")
        await t.until(lambda: isinstance(t.app.screen, HelpScreen))
        await t.press("escape")
        await t.write("/clear ")
        await t.press("enter")
        await t.until(lambda: t.contents == [])
        assert t.chat.prompt.text == ""
        await t.ask("/etc/hosts is what?")
        assert t.contents[0] == "/etc/hosts is what?"
        await t.write("/bye")
        await t.press("enter")
        await t.until(lambda: not t.app.is_running)


async def test_stop_in_the_prompt(open_chat: Open) -> None:
    ScriptedRuntime.batch_s = 0.05
    async with open_chat(ctx=4096) as t:
        await t.ask(" ".join(["sea"] * 2000), wait=False)
        await t.until(lambda: "reading" in t.chat.status.state)
        state = t.chat.status.state
        assert "%" in state
        assert "tok/s" in state
        assert "left" in state
        start_s = time.perf_counter()
        await t.pilot.press("escape")
        while not t.rt.finished.is_set():
            await asyncio.sleep(0.002)
        assert time.perf_counter() - start_s < 0.2 * slowness()
        await t.settled()
        assert t.rt.n_read < 1900
        assert t.app.session.path[-1].state == "stopped"


async def test_thinking_streams_dim_and_folds_away(open_chat: Open) -> None:
    ScriptedRuntime.tokens_per_s = 60
    async with open_chat() as t:
        await t.ask("How is the sea?", wait=False)
        await t.until(lambda: t.answers and "word60" in t.answers[0].thinking.thinking)
        thinking = t.answers[0].thinking
        assert thinking.streams
        assert "thinking" in t.screen_text()
        assert "word60" in t.screen_text()
        await t.settled()
        assert not thinking.streams
        assert "thought" in t.screen_text()
        assert "tokens" in t.screen_text()
        assert "word60" not in t.screen_text()
        await t.press("ctrl+t")
        await t.until(lambda: len(thinking.query(Markdown)) == 1)
        assert "word149" in t.screen_text()
        await t.press("ctrl+t")
        await t.until(lambda: not thinking.query(Markdown))
        stored = t.app.session.path[-1]
        assert stored.thinking == LONG
        assert stored.report["n_thinking"] > 150


async def test_thinking_leaves_the_cache_and_the_next_turn_reads_nothing_again(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("How is the sea?")
        await t.until(lambda: "thinking left the cache" in t.screen_text())
        assert "word1" not in t.rt.detokenize(t.rt.tokens)
        n_read = t.rt.n_read
        await t.ask("And the sky?")
        assert t.app.session.path[-1].report["n_again"] == 0
        assert t.rt.n_read - n_read < 30
        assert "read again" not in t.screen_text()


async def test_answer_anew_keeps_the_branch_and_draws_otherwise(open_chat: Open) -> None:
    ScriptedRuntime.script = ["first answer", "second answer"]
    async with open_chat() as t:
        await t.ask("Go")
        await t.press("ctrl+r")
        await t.settled()
        assert t.contents == ["Go", "second answer"]
        assert "‹ 2/2 ›" in t.screen_text()
        seeds = [s.seed for s in t.rt.samplings if s is not None]
        assert seeds[0] != seeds[1]
        await t.press("alt+left")
        await t.until(lambda: t.contents == ["Go", "first answer"])
        assert "first answer" in t.screen_text()
        await t.press("alt+right")
        await t.until(lambda: t.contents == ["Go", "second answer"])


async def test_edit_and_send_again_keeps_the_branch(open_chat: Open) -> None:
    ScriptedRuntime.script = ["one", "two", "three"]
    async with open_chat() as t:
        await t.ask("First")
        await t.ask("Secnd")
        await t.press("up")
        assert t.chat.prompt.text == "Secnd"
        assert "edits" in str(t.chat.prompt.border_title)
        t.chat.prompt.clear()
        await t.ask("Second")
        assert t.contents == ["First", "one", "Second", "three"]
        assert len(t.app.session.messages) == 6
        await t.press("alt+left")
        await t.until(lambda: t.contents == ["First", "one", "Secnd", "two"])


async def test_escape_leaves_editing(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("First")
        await t.press("up")
        await t.press("escape")
        assert t.chat.prompt.text == ""
        assert not t.chat.prompt.has_class("editing")


async def test_several_lines_and_order_of_keys(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.pilot.press(*"one", "ctrl+j", *"two", "enter")
        await t.settled()
        assert t.contents[0] == "one\ntwo"


async def test_a_long_paste_goes_as_an_attachment_with_its_tokens_counted(open_chat: Open) -> None:
    from textual import events

    text = "\n".join(f"line {i}" for i in range(100))
    async with open_chat() as t:
        t.app.post_message(events.Paste(text))
        await t.until(lambda: "pasted 1 · 100 lines" in t.screen_text())
        await t.until(lambda: "tokens" in t.screen_text().split("pasted 1")[1][:60])
        assert t.chat.prompt.text == ""
        await t.ask("What is it?")
        message = t.app.session.path[0]
        assert message.attachments[0].text == text
        assert "line 99" in t.rt.prompts[-1]
        assert "pasted 1 · 100 lines" in t.screen_text()
        t.app.post_message(events.Paste("short"))
        await t.until(lambda: t.chat.prompt.text == "short")


async def test_attach_a_file(open_chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("The light is green.\n" * 7)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    async with open_chat() as t:
        await t.press("ctrl+o")
        await t.until(lambda: isinstance(t.app.screen, AttachScreen))
        field = t.app.screen.query_one(Input)
        for bad, why in ((tmp_path / "none", "No such file"), (tmp_path / "binary", "not UTF-8"), (tmp_path, "folder")):
            field.value = str(bad)
            await t.press("enter")
            await t.until(lambda why=why: why in str(t.app.screen.query_one(".problem", Static).render()))
        field.value = str(path)
        await t.until(lambda: "tokens" in str(t.app.screen.query_one("#size", Static).render()))
        await t.press("enter")
        await t.until(lambda: "notes.txt · 8 lines" in t.screen_text())
        await t.press("ctrl+x")
        await t.until(lambda: "notes.txt" not in t.screen_text())
        await t.press("ctrl+o")
        await t.until(lambda: isinstance(t.app.screen, AttachScreen))
        t.app.screen.query_one(Input).value = str(path)
        await t.press("enter")
        await t.ask("Which?")
        assert "The light is green." in t.rt.prompts[-1]
        assert "notes.txt" in t.screen_text()


async def test_code_blocks_are_copied_one_by_one(open_chat: Open) -> None:
    ScriptedRuntime.script = ["Here:\n\n```python\na = 1 # ls\n```\n\nand\n\n```sh\nls\n```\n\n<div>kept</div>\n"]
    async with open_chat() as t:
        await t.ask("Code!")
        assert "<div>kept</div>" in t.screen_text()
        await t.press("ctrl+y")
        assert t.app.clipboard == "ls"
        await t.press("ctrl+y")
        assert t.app.clipboard == "a = 1 # ls"
        t.answers[0].query(CodeBlock)[1].focus()
        await t.press("c")
        assert t.app.clipboard == "ls"
        t.answers[0].focus()
        await t.press("c")
        assert "a = 1" in t.app.clipboard
        assert "copied" in t.toasts


async def test_keys_on_a_message(open_chat: Open) -> None:
    ScriptedRuntime.script = ["<think>hm</think>one", "two"]
    async with open_chat() as t:
        await t.ask("Go")
        t.answers[0].focus()
        await t.press("t")
        await t.until(lambda: t.answers[0].thinking.unfolded)
        await t.press("e")
        assert t.chat.prompt.text == "Go"
        await t.press("escape")
        t.answers[0].focus()
        await t.press("r")
        await t.settled()
        assert t.contents == ["Go", "two"]
        t.answers[0].focus()
        await t.press("left_square_bracket")
        await t.until(lambda: t.contents == ["Go", "one"])


async def test_sending_while_an_answer_comes_keeps_the_words(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    ScriptedRuntime.tokens_per_s = 20
    async with open_chat() as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.chat.busy)
        await t.ask("More", wait=False)
        assert t.chat.prompt.text == "More"
        assert "Esc stops" in t.toasts
        await t.press("escape")
        await t.settled()


# settings


async def test_system_prompt_and_sampling_of_a_session(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#system", TextArea).text = "Answer like a sailor."
        t.app.screen.query_one("#temperature", Input).value = "hot"
        await t.press("ctrl+s")
        assert "not a number" in str(t.app.screen.query_one(".problem", Static).render())
        t.app.screen.query_one("#temperature", Input).value = "1.25"
        t.app.screen.query_one("#max_tokens", Input).value = "3"
        await t.press("ctrl+s")
        await t.until(lambda: t.app.screen is t.chat)
        await t.ask("Go")
        sampling = t.rt.samplings[-1]
        assert sampling is not None
        assert sampling.temperature == 1.25
        assert "Answer like a sailor." in t.rt.prompts[-1]
        assert t.app.session.path[-1].state == "length"
        assert "token limit" in t.screen_text()
        stored = t.app.store.get(t.app.session.id or "")
        assert stored.options == {"temperature": 1.25, "max_tokens": 3}
        assert stored.system == "Answer like a sailor."


async def test_thinking_is_turned_off_and_limited_in_a_session(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("Go")
        n_free = t.app.session.path[-1].report["n_thinking"]
        for written, most in (("off", 3), ("auto", 5)):
            await t.press("f4")
            await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
            screen = t.app.screen
            screen.query_one("#think", Input).value = "perhaps"
            await t.press("ctrl+s")
            assert "thinking: 'perhaps' is not auto, on, off" in str(screen.query_one(".problem", Static).render())
            screen.query_one("#think", Input).value = written
            screen.query_one("#think_budget", Input).value = "none" if written == "off" else "2"
            screen.query_one("#effort", Input).value = "low"
            await t.press("ctrl+s")
            await t.until(lambda: t.app.screen is t.chat)
            await t.ask("Again")
            answer = t.app.session.path[-1]
            assert answer.report["n_thinking"] <= most < n_free
            assert answer.content == "The **sea** is wide."
        assert t.rt.thoughts[-1] == ThinkingConfig(effort="low", budget_tokens=2)
        stored = t.app.store.get(t.app.session.id or "")
        assert stored.options == {"effort": "low", "think_budget": 2}


async def test_sampling_is_what_the_models_file_says(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ScriptedRuntime, "suggested", {"temperature": 0.6, "top_k": 20})
    async with open_chat(top_k=7) as t:
        await t.ask("Go")
        sampling = t.rt.samplings[-1]
        assert sampling is not None
        assert (sampling.temperature, sampling.top_k, sampling.repeat_penalty) == (0.6, 7, 1.0)


async def test_a_preset_is_chosen_for_a_session(open_chat: Open, tmp_path: Path, monkeypatch: Any) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[presets.sailor]\nsystem = "Aye."\ntemp = 1.5\nthink = false\nstop = "wide"\n')
    monkeypatch.setenv("TRIATTN_CONFIG", str(config))
    async with open_chat() as t:
        (command,) = [c for c in t.app.get_system_commands(t.chat) if c.title == "Preset: sailor"]
        command.callback()
        await t.ask("Go")
        assert "Aye." in t.rt.prompts[-1]
        assert t.rt.samplings[-1].temperature == 1.5
        assert t.rt.thoughts[-1] == ThinkingConfig(enabled=False)
        # the form has all of it, and keeps what it does not show
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        assert t.app.screen.query_one("#think", Input).value == "off"
        assert t.app.screen.query_one("#temperature", Input).value == "1.5"
        await t.press("ctrl+s")
        await t.until(lambda: t.app.screen is t.chat)
        assert t.app.session.stop(()) == ("wide",)


async def test_memory_settings_load_the_model_anew(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#budget", Input).value = "3"
        await t.press("ctrl+s")
        assert "budget 3 must be larger" in str(t.app.screen.query_one(".problem", Static).render())
        t.app.screen.query_one("#budget", Input).value = "100"
        await t.press("ctrl+s")
        await t.until(lambda: len(ScriptedRuntime.loads) == 2 and not t.app.loading)
        assert t.rt.eviction is not None
        assert t.rt.eviction.budget_tokens == 100
        assert ScriptedRuntime.loads[0].closed


def planned(monkeypatch: pytest.MonkeyPatch, **chosen: Any) -> None:
    """Let the plan choose these instead of defaults."""

    def plan_run(path: Path, settings: Settings, **options: Any) -> Any:
        plan = as_written(path, settings, **options)
        ours = {name: value for name, value in chosen.items() if not settings.is_given(name)}
        return as_written(path, settings.changed("plan", **ours), **options) if ours else plan

    monkeypatch.setattr(planning, "plan_run", plan_run)


async def test_the_settings_show_what_was_planned(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, ctx=12345, budget=777)
    async with open_chat(ctx=None, budget=None) as t:
        await t.until(lambda: not t.app.loading)
        assert (t.rt.config.n_ctx, t.rt.eviction and t.rt.eviction.budget_tokens) == (12345, 777)
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        shown = [t.app.screen.query_one(f"#{name}", Input).value for name in ("ctx", "budget")]
        assert shown == ["12345", "777"]
        await t.press("ctrl+s")
        await t.until(lambda: t.app.screen is t.chat)
        assert len(ScriptedRuntime.loads) == 1
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#budget", Input).value = str(Settings.budget)  # a default, but now it is meant
        await t.press("ctrl+s")
        await t.until(lambda: len(ScriptedRuntime.loads) == 2 and not t.app.loading)
        assert (t.rt.config.n_ctx, t.rt.eviction and t.rt.eviction.budget_tokens) == (12345, Settings.budget)


async def test_the_plan_chooses_again_on_request(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    planned(monkeypatch, ctx=12345, budget=777)
    async with open_chat(ctx=4096, budget=64) as t:
        await t.until(lambda: not t.app.loading)
        assert (t.rt.config.n_ctx, t.rt.eviction and t.rt.eviction.budget_tokens) == (4096, 64)
        for values, n_loads, want in (
            ({"budget": "Auto"}, 2, (4096, 777)),
            ({"ctx": "auto"}, 3, (12345, 777)),
            ({"budget": "auto"}, 3, (12345, 777)),
        ):
            await t.press("f4")
            await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
            for name, value in values.items():
                t.app.screen.query_one(f"#{name}", Input).value = value
            await t.press("ctrl+s")
            await t.until(lambda: t.app.screen is t.chat and not t.app.loading)
            assert len(ScriptedRuntime.loads) == n_loads
            assert (t.rt.config.n_ctx, t.rt.eviction and t.rt.eviction.budget_tokens) == want


async def test_a_toast_leaves_the_prompt_and_the_end_of_the_answer_in_sight(open_chat: Open) -> None:
    async with open_chat(size=(60, 20), notifications=True) as t:
        t.app.notify("chosen for this machine " * 4)
        await t.until(lambda: "chosen" in t.screen_text())
        (toast,) = t.app.screen.query("Toast")
        assert toast.region.bottom <= 9
        assert toast.region.y >= 1


async def test_what_was_chosen_is_said(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_run(path: Path, settings: Settings, **options: Any) -> Any:
        plan = as_written(path, settings, **options)
        plan.why = "context 8,192, budget 2,048, 20.0 GiB to spare"
        return plan

    monkeypatch.setattr(planning, "plan_run", plan_run)
    async with open_chat() as t:
        await t.until(lambda: "20.0 GiB to spare" in t.toasts)


async def test_a_model_that_does_not_fit_is_said_before_it_is_loaded(
    open_chat: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan_run(path: Path, settings: Settings, **options: Any) -> Any:
        raise DoesNotFitError("needs 40.0 GiB of GPU", fix="nearest that fits: --budget 1024")

    monkeypatch.setattr(planning, "plan_run", plan_run)
    async with open_chat() as t:
        await t.until(lambda: "--budget 1024" in t.notices)
        assert ScriptedRuntime.loads == []


async def test_themes_are_remembered(open_chat: Open) -> None:
    async with open_chat() as t:
        t.app.theme = "triattn-light"
        await t.pilot.pause()
    async with open_chat() as t:
        assert t.app.theme == "triattn-light"
    async with open_chat(theme="nord") as t:
        assert t.app.theme == "nord"
    with pytest.raises(UsageError, match="not a theme"):
        async with open_chat(theme="mauve"):
            pass


async def test_keys_can_be_set(open_chat: Open) -> None:
    async with open_chat(keys="sessions=ctrl+f,send=f10,stop=f12") as t:
        await t.write("Go")
        await t.press("f10")
        await t.settled()
        assert len(t.contents) == 2
        t.answers[0].focus()
        await t.press("ctrl+f")
        await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
    with pytest.raises(UsageError, match="did you mean 'sessions'"):
        async with open_chat(keys="session=ctrl+f"):
            pass


async def test_help_shows_every_key_with_its_name(open_chat: Open) -> None:
    async with open_chat(size=(120, 60), keys="sessions=ctrl+f") as t:
        await t.press("f1")
        await t.until(lambda: isinstance(t.app.screen, HelpScreen))
        screen = t.screen_text()
        for words in ("Ctrl+F", "sessions", "Esc", "Ctrl+J", "newline", "Answer anew"):
            assert words in screen
        await t.press("escape")
        await t.until(lambda: t.app.screen is t.chat)


async def test_command_palette_has_our_commands(open_chat: Open) -> None:
    async with open_chat() as t:
        titles = {command.title for command in t.app.get_system_commands(t.chat)}
        assert {"Theme", "Sessions", "Models", "Memory map", "Answer anew"} <= titles
        assert "Maximize" not in titles
        await t.press("ctrl+p")
        await t.until(lambda: t.app.screen is not t.chat)
        await t.pilot.press(*"keys")
        await t.pilot.pause(0.5)
        await t.press("enter")
        await t.until(lambda: isinstance(t.app.screen, HelpScreen))
        await t.press("escape")
        await t.press("ctrl+p")
        await t.until(lambda: t.app.screen is not t.chat)
        await t.pilot.press(*"memory map")
        await t.pilot.pause(0.5)
        await t.press("enter")
        await t.until(lambda: isinstance(t.app.screen, MapScreen))


# memory


async def test_the_memory_panel_says_what_the_runtime_says(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    async with open_chat() as t:
        await t.ask("Go")
        stats = t.rt.stats()
        assert stats.n_evictions > 0
        screen = t.screen_text()
        for words in (
            f"{stats.n_past:,} of {stats.n_ctx:,}",
            f"{stats.n_cells_used:,} of {stats.n_cells:,}",
            f"evicted   {stats.tokens_evicted:,} tokens",
            f"rounds    {stats.n_evictions}",
            "KV cache  1.8 MiB",
            "full      128 MiB",
            "tok/s",
        ):
            assert words in screen, words
        await t.press("f5")
        assert "KV cache  " not in t.screen_text()
        await t.press("f5")
        assert "KV cache  " in t.screen_text()


async def test_the_status_line_is_there_in_every_width(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    for width in (200, 120, 80, 50, 30):
        async with open_chat(size=(width, 24)) as t:
            await t.ask("Go")
            stats = t.rt.stats()
            last = t.screen_text().splitlines()[-1]
            assert str(stats.n_past) in last
            assert ("evicted" in last or "−" in last) == (width >= 50), last
            assert "KV cache" in t.screen_text() if width >= 100 else "KV cache" not in t.screen_text()


async def test_the_status_line_of_80_columns_has_all_numbers(open_chat: Open) -> None:
    numbers = {"n_ctx": 131072, "n_past": 118_442, "n_cells_used": 2101, "budget_tokens": 2048}
    async with open_chat(size=(80, 24)) as t:
        stats = dataclasses.replace(
            t.rt.stats(),
            **numbers,
            n_evictions=1270,
            tokens_evicted=116_341,
            kv_bytes=394 << 20,
            kv_bytes_full=18 << 30,
        )
        t.app.engine.read_cache = lambda session=None, path=(): None  # type: ignore[method-assign]
        t.chat.status.stats = stats
        for state, last in (("133.1 tok/s", "−116k"), ("ready", "1,270 rounds −116k")):
            t.chat.status.state = state
            await t.pilot.pause()
            line = t.screen_text().splitlines()[-1].strip()
            assert line.endswith(f"118k/131k ctx · 2.1k/2.0k kept · KV 394M/18G · {last}"), line
        t.chat.status.stats = dataclasses.replace(stats, n_evictions=0, tokens_evicted=0)
        await t.pilot.pause()
        assert "nothing evicted" in t.screen_text()


async def test_a_setting_that_cannot_be_taken_is_said_where_it_is_seen(open_chat: Open) -> None:
    async with open_chat(size=(60, 16)) as t:
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#temperature", Input).value = "hot"
        await t.press("ctrl+s")
        await t.until(lambda: "'hot' is not a number" in t.screen_text())


async def test_the_map_shows_what_is_kept_and_its_words(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG]
    async with open_chat() as t:
        await t.ask("Go")
        await t.press("f8")
        await t.until(lambda: isinstance(t.app.screen, MapScreen) and "positions" in t.screen_text())
        assert "12 layers" in t.screen_text()
        await t.press("end")
        await t.until(lambda: "held by" in t.screen_text())
        await t.press("home", "right", "right", "right")
        await t.press(*["pagedown"] * 4)
        text = t.screen_text()
        assert "positions" in text
        assert "word" in text
        forgotten = False
        for _ in range(100):
            await t.press("right")
            forgotten = forgotten or "forgotten" in t.screen_text()
        assert forgotten
        await t.press("escape")
        await t.until(lambda: t.app.screen is t.chat)


async def test_what_is_forgotten_is_dimmed_on_request(open_chat: Open) -> None:
    paragraphs = "\n\n".join(" ".join(f"p{i}w{j}" for j in range(12)) for i in range(40))
    ScriptedRuntime.script = [paragraphs, "Yes."]
    async with open_chat() as t:
        await t.ask("Go")
        await t.ask("Sure?")
        assert not t.chat.query(".forgotten")
        await t.press("f9")
        await t.until(lambda: len(t.chat.query(".forgotten")) > 0)
        retained = t.chat._retained
        assert retained is not None
        dimmed = {str(w.render()) for w in t.answers[0].query(".forgotten")}
        assert dimmed
        held = retained.share.any(axis=0)
        text = "".join(t.rt.detokenize([token], special=True) for token in t.rt.tokens)
        for paragraph in paragraphs.split("\n\n"):
            first = text[: text.index(paragraph)]
            begin = len(t.rt.tokenize(first))
            n = len(t.rt.tokenize(paragraph))
            assert (paragraph in dimmed) == (not held[begin : begin + n].any()), paragraph
        await t.press("f9")
        await t.until(lambda: not t.chat.query(".forgotten"))


# sessions


async def test_sessions_are_listed_searched_renamed_deleted_and_brought_back(open_chat: Open) -> None:
    ScriptedRuntime.script = ["Lighthouses shine.", "Goats climb."]
    async with open_chat() as t:
        await t.ask("Tell me about the sea")
        sea = t.app.session.id
        await t.press("ctrl+n")
        await t.until(lambda: t.contents == [])
        await t.ask("Tell me about hills")
        await t.press("f2")
        await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
        screen = t.app.screen
        assert "Tell me about the sea" in t.screen_text()
        await t.press("slash")
        await t.pilot.press(*"lightho")
        await t.until(lambda: screen.query_one(OptionList).option_count == 1)
        assert "Lighthouses" in t.screen_text()
        await t.press("down")
        await t.press("r")
        await t.until(lambda: t.app.screen is not screen)
        t.app.screen.query_one(Input).value = "The sea"
        await t.press("enter")
        await t.until(lambda: "The sea" in t.screen_text())
        await t.press("d")
        await t.until(lambda: "nothing found" in t.screen_text())
        await t.press("u")
        await t.until(lambda: "The sea" in t.screen_text())
        await t.press("enter")
        await t.until(lambda: t.app.session.id == sea)
        assert t.contents == ["Tell me about the sea", "Lighthouses shine."]
        assert "Lighthouses shine." in t.screen_text()


async def test_export_and_import(open_chat: Open, tmp_path: Path) -> None:
    async with open_chat() as t:
        await t.ask("How is the sea?")
        for key, name in (("m", "out.md"), ("j", "out.json")):
            await t.press("f2")
            await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
            await t.press(key)
            await t.until(lambda: not isinstance(t.app.screen, SessionsScreen))
            t.app.screen.query_one(Input).value = str(tmp_path / name)
            await t.press("enter")
            await t.until(lambda name=name: (tmp_path / name).is_file())
            await t.press("i")
            await t.until(lambda: not isinstance(t.app.screen, SessionsScreen))
            t.app.screen.query_one(Input).value = str(tmp_path / name)
            await t.press("enter")
            await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
            await t.press("escape")
        assert "The **sea** is wide." in (tmp_path / "out.md").read_text()
        assert len(t.app.store.sessions()) == 3


async def test_a_file_that_is_no_session_is_refused_in_the_app(open_chat: Open, tmp_path: Path) -> None:
    (tmp_path / "x.md").write_text("nothing")
    async with open_chat() as t:
        await t.press("f2")
        await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
        await t.press("i")
        await t.until(lambda: not isinstance(t.app.screen, SessionsScreen))
        t.app.screen.query_one(Input).value = str(tmp_path / "x.md")
        await t.press("enter")
        await t.until(lambda: "not a session" in str(t.app.screen.query_one(".problem", Static).render()))


async def test_continue_and_resume(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("How is the sea?")
        id_ = t.app.session.id
    for start in ({"newest": True}, {"session": id_}):
        async with open_chat(start=start) as t:
            assert t.contents == ["How is the sea?", "The **sea** is wide."]
            assert "How is the sea?" in t.screen_text()
            await t.ask("And now?")
            report = t.app.session.path[-1].report
            assert report["n_again"] == 0
            assert "cache restored from disk" in t.screen_text()
            t.app.session.select(t.app.session.path[1].id)
    with pytest.raises(UsageError, match="no session"):
        async with open_chat(start={"session": "ffffffff"}):
            pass


async def test_an_answer_that_a_crash_cut_off_is_there_and_said(open_chat: Open, tmp_path: Path) -> None:
    sessions = SessionStore(tmp_path / "sessions")
    session = sessions.create(title="Cut")
    question = sessions.add(session.id, None, "user", "Count")
    answer = sessions.add(session.id, question.id, "assistant", state="streaming")
    sessions.append(answer.id, "content", "one two three")
    sessions.close()
    async with open_chat(start={"newest": True}) as t:
        assert "one two three" in t.screen_text()
        assert "cut off" in t.screen_text()
        await t.ask("Go on")
        assert "earlier tokens read again (no snapshot of this point is kept)" in " ".join(
            t.screen_text().replace("│", " ").split()
        )


async def test_a_long_session_opens_with_its_end(open_chat: Open, tmp_path: Path) -> None:
    sessions = SessionStore(tmp_path / "sessions")
    session = sessions.create(title="Long")
    parent = None
    for i in range(120):
        parent = sessions.add(session.id, parent, "assistant" if i % 2 else "user", f"m{i} " + LONG).id
    sessions.close()
    async with open_chat(start={"newest": True}) as t:
        assert "m119" in t.screen_text() or "word149" in t.screen_text()
        n = len(t.chat.transcript.message_widgets())
        assert n < 60
        await t.chat.transcript.show_earlier()
        assert len(t.chat.transcript.message_widgets()) == n + 10


# models and errors


async def test_without_a_model_the_demo_is_fetched_converted_and_opened(
    open_chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "models"
    (models / "tiny.gguf").unlink()
    target = models / Path(store.DEMO.file).with_suffix(".triattn.gguf").name
    stages: list[str] = []
    go = threading.Event()

    def pull(spec: str, folder: Path, *, progress: Any) -> Path:
        stages.append(spec)
        progress("fetching", 30, 100)
        go.wait(10)
        return folder / store.DEMO.file

    def converted(self: Any, path: Path, n_tokens: int | None) -> Path:
        self._progress("reading the text", 5, 10)
        stages.append(f"convert {n_tokens}")
        return write_model(target)

    monkeypatch.setattr(store, "pull", pull)
    monkeypatch.setattr("triattn_local.tui.jobs.Job._convert", converted)
    monkeypatch.setattr("triattn_local.tui.screens.models.glance", lambda path: ("llama", True))
    async with open_chat(model=None) as t:
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        assert "Welcome" in t.screen_text()
        await t.press("enter")
        await t.until(lambda: "fetching" in t.screen_text())
        assert "30%" in t.screen_text()
        go.set()
        await t.until(lambda: t.app.model == target and not t.app.loading)
        assert stages == ["demo", "convert 4096"]
        await t.until(lambda: t.app.screen is t.chat)
        await t.ask("Hello")
        assert len(t.contents) == 2


async def test_convert_in_the_app_and_stop_it(open_chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triattn_local.calib_tools import convert as calibration

    source = write_model(tmp_path / "models" / "plain.gguf")

    def convert(model: Path, out: Path, *, n_tokens: int, resume: bool, progress: Any) -> Any:
        for i in range(10_000):
            progress("measuring", i, 10_000, "tokens")
            time.sleep(0.001)
        raise AssertionError("was not stopped")

    monkeypatch.setattr(calibration, "convert", convert)
    async with open_chat() as t:
        await t.press("f3")
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        screen = t.app.screen
        places = [i for i, (path, _) in enumerate(screen._models) if path == source]
        screen.query_one(OptionList).highlighted = places[0]
        await t.press("enter")
        assert "no statistics yet" in t.screen_text()
        await t.press("c")
        await t.until(lambda: "measuring" in t.screen_text())
        await t.press("s")
        await t.until(lambda: not t.app.job.running)
        await t.until(lambda: "measuring" not in t.screen_text())


async def test_pull_errors_are_shown_with_the_next_step(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def pull(spec: str, folder: Path, *, progress: Any) -> Path:
        raise UsageError(f"{spec!r} is no model", fix="name another")

    monkeypatch.setattr(store, "pull", pull)
    async with open_chat() as t:
        await t.press("f3")
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        await t.press("p")
        await t.until(lambda: not isinstance(t.app.screen, ModelsScreen))
        t.app.screen.query_one(Input).value = "org/none"
        await t.press("enter")
        await t.until(lambda: "name another" in t.screen_text())


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (StatsError("holds no TriAttention statistics", fix="convert it"), "converts it here"),
        (DoesNotFitError("needs 40 GiB, 24 GiB are free", fix="give a smaller --ctx"), "smaller context or budget"),
        (TriattnError("llama.cpp cannot load it"), "tries again; F3 chooses another model"),
    ],
)
async def test_a_model_that_cannot_be_loaded_is_no_dead_end(open_chat: Open, error: TriattnError, step: str) -> None:
    ScriptedRuntime.load_error = error
    async with open_chat() as t:
        await t.until(lambda: step in " ".join(t.screen_text().replace("│", " ").split()))
        assert error.what[1:] in t.screen_text()
        ScriptedRuntime.load_error = None
        await t.write("kept words")
        await t.press("enter")
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        await t.press("escape")
        assert t.chat.prompt.text == "kept words"


async def test_after_a_failed_load_the_settings_load_it_anew(open_chat: Open) -> None:
    ScriptedRuntime.load_error = DoesNotFitError("needs 40 GiB, 24 GiB are free", fix="give a smaller --ctx")
    async with open_chat(ctx=8192) as t:
        await t.until(lambda: "loads it anew" in " ".join(t.screen_text().replace("│", " ").split()))
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        assert t.app.screen.query_one("#ctx", Input).value == "8192"
        await t.press("ctrl+s")
        await t.until(lambda: t.app.screen is t.chat and not t.app.loading)
        assert ScriptedRuntime.loads == [], "tried again, in vain"
        assert t.app.model is None

        ScriptedRuntime.load_error = None
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#ctx", Input).value = "1024"
        await t.press("ctrl+s")
        await t.until(lambda: t.app.loaded is not None)
        assert t.rt.path.name == "tiny.gguf"
        assert t.rt.config.n_ctx == 1024
        assert t.notices == "", "what the error said is no longer so"
        await t.ask("How is the sea?")
        assert t.contents[-1] == "The **sea** is wide."


async def test_other_settings_leave_full_attention_as_it_was_chosen(open_chat: Open) -> None:
    async with open_chat(start={"evict": False}) as t:
        assert t.rt.eviction is None
        for changes, budget in (({"ctx": "1024"}, None), ({"budget": "128"}, 128), ({"budget": "off"}, None)):
            await t.press("f4")
            await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
            for name, value in changes.items():
                t.app.screen.query_one(f"#{name}", Input).value = value
            n_loads = len(ScriptedRuntime.loads)
            await t.press("ctrl+s")
            await t.until(lambda n=n_loads: len(ScriptedRuntime.loads) > n and not t.app.loading)
            assert (t.rt.eviction and t.rt.eviction.budget_tokens) == budget


async def test_a_message_beyond_the_context_is_no_dead_end(open_chat: Open) -> None:
    ScriptedRuntime.script = ["Sure."]
    async with open_chat(ctx=128) as t:
        await t.ask("Hello")
        await t.ask(f"{LONG} {LONG}")
        assert re.search(r"This message was not sent: with \d+ tokens it exceeds the context of 128", t.notices)
        assert "F4 raises the context" in t.notices
        assert "--ctx" not in t.screen_text()
        assert "read again" not in t.screen_text(), "nothing was read"
        assert t.rt.n_answers == 1
        assert t.contents[-1] == f"{LONG} {LONG}", "nothing is lost"
        assert "left out" in t.screen_text()
        await t.ask("Say hi")
        assert t.app.session.path[-1].state == "complete"
        assert LONG not in t.rt.prompts[-1]
        assert "Hello" in t.rt.prompts[-1]
        n = len(t.contents)
        await t.press("up")
        assert t.chat.prompt.text == "Say hi"
        await t.press("escape")
        await t.app.open_session(t.app.store.get(t.app.session.id or ""))
        assert len(t.contents) == n, "and the session holds it all"


async def full(t: Driver, words: str) -> None:
    """Ask beyond the context, and wait for the question what to do."""
    await t.ask(words, wait=False)
    await t.until(lambda: isinstance(t.app.screen, FullScreen) or not t.chat.busy)
    assert isinstance(t.app.screen, FullScreen)


async def test_a_full_conversation_goes_on_ten_times(open_chat: Open) -> None:
    ScriptedRuntime.script = lambda prompt, n: f"Answer {n}: " + "so " * 20
    async with open_chat(ctx=256) as t:
        n_full = n = 0
        while n_full < 10:
            n += 1
            await t.ask(f"Question {n}: " + "why " * 20, wait=False)
            await t.until(lambda: not t.chat.busy)
            if isinstance(t.app.screen, FullScreen):
                n_full += 1
                assert "Nothing was sent yet" in t.screen_text()
                await t.press("enter")
                await t.settled()
            assert t.app.session.path[-1].state == "complete"
            assert f"Question {n}:" in t.rt.prompts[-1]
        told = [m.content for m in t.app.session.path]
        assert [line.split(":")[0] for line in told[::2]] == [f"Question {i + 1}" for i in range(n)]
        assert all(answer.startswith("Answer") for answer in told[1::2]), "nothing is lost from the transcript"
        assert "--ctx" not in t.notices


async def test_a_full_conversation_can_be_shortened_raised_or_left(open_chat: Open) -> None:
    ScriptedRuntime.script = ["so " * 100]
    async with open_chat(ctx=160) as t:
        await t.ask("One")
        n_read = t.rt.n_read
        await full(t, "Two " * 40)
        assert t.rt.n_read == n_read, "said before anything is read"
        await t.press("down", "down", "enter")
        await t.until(lambda: t.chat.prompt.text.startswith("Two Two"))
        assert "edits an earlier message" in str(t.chat.prompt.border_title)
        t.chat.prompt.text = "Two"
        await t.press("enter")
        await t.until(lambda: isinstance(t.app.screen, FullScreen) or not t.chat.busy)
        await t.settled()
        assert t.contents[2] == "Two"

        await full(t, "Three " * 40)
        await t.press("escape")
        assert "was not sent" in t.notices
        assert t.contents[-1].startswith("Three")
        await t.press("ctrl+r")
        await t.until(lambda: isinstance(t.app.screen, FullScreen))
        await t.press("down", "enter")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        ctx = int(t.app.screen.query_one("#ctx", Input).value)
        assert ctx > 160
        await t.press("ctrl+s")
        await t.until(lambda: t.rt.config.n_ctx == ctx and not t.app.loading)
        await t.press("ctrl+r")
        await t.settled()
        assert t.contents[-1].startswith("so so")
        assert "Three Three" in t.rt.prompts[-1]


async def test_the_context_ends_amid_an_answer_and_the_chat_goes_on(open_chat: Open) -> None:
    ScriptedRuntime.script = ["so " * 200, "Short."]
    async with open_chat(ctx=128) as t:
        await t.ask("Go")
        assert t.app.session.path[-1].state == "context"
        assert t.notices == "", "the answer is there: no error"
        assert "the context is full: F4 raises it" in t.screen_text()
        await full(t, "And on?")
        await t.press("enter")
        await t.settled()
        assert t.contents[-1] == "Short."


async def test_a_turn_is_left_out_and_taken_in_again(open_chat: Open) -> None:
    ScriptedRuntime.script = ["First.", "Second.", "Third.", "Fourth."]
    async with open_chat() as t:
        await t.ask("One")
        await t.ask("Two")
        await t.press("shift+tab", "shift+tab", "shift+tab", "d")
        assert [m.left_out for m in t.app.session.path] == [True, True, False, False]
        assert t.screen_text().count("left out") == 2
        t.chat.prompt.focus()
        await t.ask("Three")
        assert "One" not in t.rt.prompts[-1]
        assert "First." not in t.rt.prompts[-1]
        assert "Two" in t.rt.prompts[-1]
        assert t.contents[:2] == ["One", "First."]
        t.answers[0].focus()
        await t.press("d")
        assert not any(m.left_out for m in t.app.session.path)
        t.chat.prompt.focus()
        await t.ask("Four")
        assert "First." in t.rt.prompts[-1]


async def test_an_error_amid_an_answer_keeps_what_came(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(prompt: str, n: int) -> str:
        raise ValueError("boom")

    async with open_chat() as t:
        await t.ask("Fine")
        monkeypatch.setattr(ScriptedRuntime, "script", staticmethod(broken))
        await t.ask("Break")
        assert "boom" in t.notices
        assert not t.chat.busy
        monkeypatch.setattr(ScriptedRuntime, "script", ["mended"])
        await t.press("ctrl+r")
        await t.settled()
        assert t.contents[-1] == "mended"


async def test_no_color_and_few_colors(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    ScriptedRuntime.script = [LONG]
    monkeypatch.setenv("NO_COLOR", "1")
    async with open_chat() as t:
        await t.ask("Go")
        assert t.app.no_color
        text = t.screen_text()
        assert "█" in text
        assert any(shade in text for shade in "░▒▓")
        for strip in t.app.screen._compositor.render_strips():
            for segment in strip:
                color = segment.style.color if segment.style else None
                if color is not None and color.triplet is not None:
                    assert len(set(color.triplet)) == 1, "grey"


async def test_the_grounds_of_a_theme_are_greys_among_256_colours() -> None:
    for theme in THEMES:
        for ground in (theme.background, theme.surface, theme.panel):
            number = RichColor.parse(ground or "").downgrade(ColorSystem.EIGHT_BIT).number
            assert number is not None
            assert number in (16, 231) or number >= 232, ground


@pytest.mark.parametrize("theme", ["triattn-light", "triattn-dark"])
async def test_sixteen_colours_are_readable(open_chat: Open, monkeypatch: pytest.MonkeyPatch, theme: str) -> None:
    """No words in one of the terminal's two whites on one of them."""
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "standard")
    async with open_chat(theme=theme) as t:
        await t.ask("How is the sea?")
        for key in ("", "f4", "f2"):
            if key:
                await t.press(key)
                await t.until(lambda: t.app.screen is not t.chat)
            for strip in t.app.screen._compositor.render_strips():
                for text, style, _ in strip:
                    if any(map(str.isalnum, text)) and style and style.color and style.bgcolor:
                        ink, ground = (c.downgrade(ColorSystem.STANDARD).number for c in (style.color, style.bgcolor))
                        assert ink != ground or key, text  # what lies behind a dialog may go
                        assert not (ink in (7, 15) and ground in (7, 15)), text
            if key:
                await t.press("escape")
                await t.until(lambda: t.app.screen is t.chat)


@pytest.mark.parametrize("size", [(20, 8), (40, 12), (80, 24), (300, 100)])
async def test_every_screen_in_every_size(open_chat: Open, size: tuple[int, int]) -> None:
    async with open_chat(size=size) as t:
        await t.ask("How is the sea?")
        for key in ("f1", "f2", "f3", "f4", "f8", "ctrl+o"):
            await t.press(key)
            await t.until(lambda: t.app.screen is not t.chat)
            assert t.screen_text().strip()
            await t.press("escape")
            await t.until(lambda: t.app.screen is t.chat)


# the body of an answer


def paragraphs(n: int) -> str:
    return "\n\n".join(f"Paragraph {i}. " + "Some words. " * 20 for i in range(n))


async def test_streaming_cuts_as_opening_does(open_chat: Open) -> None:
    text = paragraphs(60)
    ScriptedRuntime.script = [text]
    async with open_chat() as t:
        await t.ask("Go")
        body = t.answers[0].body
        assert body.text == text
        assert body.shown[-1].piece == pieces(text)[-1]
        for part in body.shown:
            assert part.piece in pieces(text)
            assert part.section is not None
            assert part.section.source == part.text


LISTS = """Some words:

- **One** has `code`, and so many words that they do not fit into one line of this narrow window
  - below *it*
    - below that
- Two

3. Third

   more of it

   ```python
   x = 1
   ```
7. Fourth

| name | what | n |
|---|---|--:|
| sea | is wide and deep, and its cell has more words than fit into one line of the table | 1 |
| [light](https://example.org) | turns | 22 |

> quoted

End."""


@pytest.mark.parametrize("n", [1, 3, 50])
async def test_a_streamed_answer_looks_as_an_opened_one(open_chat: Open, n: int) -> None:
    ScriptedRuntime.script = [LISTS]
    async with open_chat(size=(70, 60)) as t:
        await t.ask("Go")
        await t.chat.transcript.show(t.app.session.path, t.app.session.siblings)
        await t.until(lambda: "End." in t.screen_text())
        opened = t.screen_text()
        for line in ("• One has code", "  ▪ below it", "    ‣ below that", " 3. Third", "4. Fourth", "│ turns", "┿━━"):
            assert line in opened
        body = t.answers[0].body
        written = LongMarkdown()
        await body.parent.mount(written, after=body)
        await body.remove()
        for at in range(0, len(LISTS), n):
            await written.write(LISTS[at : at + n])
        await t.until(lambda: "End." in t.screen_text())
        lines = [line for line in t.screen_text().splitlines() if line.strip()]
        assert lines == [line for line in opened.splitlines() if line.strip()]


async def test_a_list_that_grows_keeps_its_widgets(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("Go")
        words = LongMarkdown()
        await t.chat.transcript.mount(words)
        await words.write("- one\n- two with `code`\n")
        widgets = list(words.query("*"))
        for i in range(30):
            await words.write(f"- item {i}\n")
        await words.finish()
        assert list(words.query("*")) == widgets
        await words.write("\n  ```python\n  x = 1\n  ```\n- last")
        await words.finish()
        assert list(words.query("*"))[: len(widgets)] == widgets
        await t.until(lambda: "last" in t.screen_text() and "x = 1" in t.screen_text())


async def test_lists_and_tables_can_be_selected_and_have_links(open_chat: Open) -> None:
    text = "- one\n- [two](https://example.org)\n\n| a | b |\n|---|---|\n| x | [y](https://example.org/y) |"
    async with open_chat() as t:
        await t.ask("Go")
        words = LongMarkdown(text)
        await t.chat.transcript.mount(words)
        await t.until(lambda: "• two" in t.screen_text() and "│ y" in t.screen_text())
        found = [block.get_selection(SELECT_ALL) for block in words.query(Lines)]
        assert [lines[0].split() for lines in found if lines] == [
            ["•", "one", "•", "two"],
            ["a", "│", "b", "━━━┿━━━", "x", "│", "y"],
        ]
        for word, address in (("two", "https://example.org"), ("y", "https://example.org/y")):
            block = next(b for b in words.query(Lines) if word in str(b.render()))
            y, line = next((i, x) for i, x in enumerate(str(block.render()).split("\n")) if x.strip().endswith(word))
            await t.pilot.click(block, offset=(line.rindex(word), y))
            assert t.app.clipboard == address


async def test_a_block_in_several_pieces_looks_and_copies_as_one(open_chat: Open) -> None:
    code = "\n".join(f"value_{i} = compute({i})" for i in range(300))
    ScriptedRuntime.script = [f"Here:\n\n```python\n{code}\n```\n\nEnd."]
    async with open_chat(size=(80, 24)) as t:
        await t.ask("Go")
        await t.until(lambda: "End." in t.screen_text())
        assert len(pieces(t.answers[0].body.text)) > 2
        t.answers[0].query(CodeBlock).last().focus()
        await t.press("c")
        assert t.app.clipboard == code
        t.chat.transcript.scroll_home(animate=False)
        seen: list[str] = []
        while True:
            await t.pilot.pause(0.3)
            lines = [line[3:-3].strip() for line in t.screen_text().splitlines()]
            seen += [line for line in lines if line.startswith(("╭", "╰", "│ value"))]
            if t.chat.transcript.scroll_y >= t.chat.transcript.max_scroll_y:
                break
            t.chat.transcript.scroll_relative(y=10, animate=False)
        numbers = [int(line.split("_")[1].split()[0]) for line in dict.fromkeys(seen) if "value" in line]
        assert numbers == list(range(300))
        assert len({line for line in seen if line.startswith(("╭─ python", "╰"))}) == 2, "one frame"


async def test_only_what_is_in_sight_of_a_long_answer_is_laid_out(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(400)]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        words, transcript = t.answers[0].body, t.chat.transcript
        await t.until(lambda: len(words.shown) < 6)
        assert "Paragraph 399." in t.screen_text()
        assert len(t.chat.query("*")) < 120
        height = transcript.virtual_size.height
        transcript.scroll_home(animate=False)
        await t.until(lambda: "Paragraph 0." in t.screen_text())
        await t.until(lambda: len(words.shown) < 6)
        assert transcript.virtual_size.height == height
        assert len(t.chat.query("*")) < 120
        assert words.text == paragraphs(400)


async def test_a_long_answer_that_is_opened_is_read_upwards_without_a_gap(open_chat: Open) -> None:
    """What is above was never laid out, its height is a guess: what is read must not move when that was wrong."""
    link = "[words](https://example.org/" + "a-long-way/" * 30 + ")"
    ScriptedRuntime.script = ["\n\n".join(f"Paragraph {i}. Some {link} and {link}." for i in range(60))]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        await t.chat.transcript.show(t.app.session.path, t.app.session.siblings)
        await t.until(lambda: "Paragraph 59." in t.screen_text())
        assert len(t.answers[0].body.shown) < 6

        def seen() -> list[int]:
            return [int(n) for n in re.findall(r"Paragraph (\d+)\.", t.screen_text())]

        await t.until(seen)
        top = seen()[0]
        while top > 0:
            t.chat.transcript.scroll_relative(y=-8, animate=False)
            await t.pilot.pause(0.25)
            await t.until(lambda: seen() and seen() == list(range(seen()[0], seen()[-1] + 1)))
            await t.pilot.pause(0.25)
            assert top - 8 <= seen()[0] <= top, "8 lines higher, and not somewhere else"
            top = seen()[0]


async def test_a_long_answer_grows_while_its_beginning_is_read(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(300)]
    ScriptedRuntime.tokens_per_s = 4000
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: len(t.answers) == 1 and len(t.answers[0].body.text) > 8000)
        t.chat.transcript.scroll_home(animate=False)
        await t.until(lambda: "Paragraph 0." in t.screen_text())
        await t.settled()
        assert "Paragraph 0." in t.screen_text(), "it does not run away from its reader"
        words = t.answers[0].body
        await t.until(lambda: len(words.shown) < 6)
        t.chat.transcript.scroll_end(animate=False)
        await t.until(lambda: "Paragraph 299." in t.screen_text())
        assert [s.source for s in words.query(Section)] == [part.text for part in words.shown]


async def test_home_is_obeyed_before_what_was_just_written_has_its_place(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(300)]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        words = t.answers[0].body
        sections = set(words.query(Section))
        with t.app.batch_update():  # nothing is laid out meanwhile
            await words.write("\n\n" + paragraphs(40))
            assert next(s.size.height for s in words.query(Section) if s not in sections) == 0
            t.chat.transcript.scroll_home(animate=False, immediate=True)
        await t.until(lambda: "Paragraph 0." in t.screen_text())


async def test_a_scroll_counts_when_the_layout_has_just_moved_what_is_read(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(300)]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        transcript = t.chat.transcript
        transcript.scroll_to(y=700, animate=False)
        words = t.answers[0].body
        await t.until(lambda: "Paragraph" in t.screen_text())
        await t.looked()
        seen = re.findall(r"Paragraph \d+", t.screen_text())
        space = words.query(Space).first()
        was = transcript.scroll_y
        with t.app.batch_update():
            space.set_height(space.size.height + 5)
        await t.until(lambda: transcript.scroll_y == was + 5)
        assert re.findall(r"Paragraph \d+", t.screen_text()) == seen, "what is read is held"

        # at once after the next layout, where the action of a key may run
        scrolls = [partial(transcript.scroll_to, y=0, animate=False, immediate=True)]
        signal = t.chat.screen_layout_refresh_signal
        signal.subscribe(t.chat, lambda _: [scrolls.pop()() for _ in list(scrolls)], immediate=True)
        with t.app.batch_update():
            space.set_height(space.size.height + 5)
        await t.until(lambda: not scrolls)
        await t.until(lambda: "Paragraph 0." in t.screen_text())


async def test_what_a_scroll_brings_into_sight_is_laid_out_before_the_scroll_is_drawn(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(300)]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        words = t.answers[0].body
        transcript = t.chat.transcript
        await t.looked()
        with t.app.batch_update():  # nothing is drawn meanwhile
            transcript.scroll_home(animate=False, immediate=True)
            await transcript.lay_out()
        assert words.shown[0].text.startswith("Paragraph 0.")


async def test_a_tall_window_is_full_of_what_was_opened(open_chat: Open) -> None:
    ScriptedRuntime.script = ["\n\n".join(f"Paragraph {i}." for i in range(2000))]
    async with open_chat(size=(80, 300), batch=512, ctx=32768) as t:
        await t.ask("Go")
        transcript = t.chat.transcript

        def seen() -> int:
            return len(re.findall(r"Paragraph \d+", t.screen_text()))

        await t.until(lambda: seen() > 140)
        for when_s in (0.0, 0.02, 0.05, 0.1):
            with t.app.batch_update():  # a slow terminal: nothing is laid out yet when it looks
                await transcript.show(t.app.session.path, t.app.session.siblings)
                await t.pilot.pause(when_s)
                await transcript.lay_out()
            await t.until(lambda: seen() > 140)


async def test_the_end_is_followed_again_after_page_down(open_chat: Open) -> None:
    ScriptedRuntime.script = [paragraphs(300)]
    ScriptedRuntime.tokens_per_s = 300
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go", wait=False)
        transcript = t.chat.transcript

        async def written(n_chars: int) -> None:
            before = len(t.answers[0].body.text) if t.answers else 0
            await t.until(lambda: t.answers and len(t.answers[0].body.text) > before + n_chars)
            assert t.chat.busy

        await written(8000)
        t.chat.action_scroll(1)  # it is there already; the pilot's keys wait for an idle moment, and there is none
        await written(2000)
        assert transcript.scroll_y == transcript.max_scroll_y
        t.chat.action_scroll(-1)
        t.chat.action_scroll(-1)
        await written(2000)
        assert transcript.scroll_y < transcript.max_scroll_y - 20, "it stays where it is"
        while transcript.scroll_y < transcript.max_scroll_y:
            t.chat.action_scroll(1)
            await t.pilot.pause(0.1)
        await written(2000)
        assert transcript.scroll_y == transcript.max_scroll_y
        await t.pilot.press("escape")


async def test_long_thinking_unfolds_without_laying_out_all_of_it(open_chat: Open) -> None:
    ScriptedRuntime.script = [f"<think>\n{paragraphs(300)}\n</think>\n\nDone."]
    async with open_chat(size=(80, 24), batch=512, ctx=32768) as t:
        await t.ask("Go")
        t.answers[0].thinking.toggle()
        await t.until(lambda: t.answers[0].thinking.query(LongMarkdown))
        words = t.answers[0].thinking.query_one(LongMarkdown)
        assert len(words.text) > 50_000
        await t.until(lambda: len(words.shown) < 6)
        t.chat.transcript.scroll_home(animate=False)
        await t.until(lambda: "Paragraph 0." in t.screen_text())


async def test_widgets_say_what_they_are(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("Go")
        assert t.chat.query_one(UserMessage).message.content == "Go"
        assert t.chat.query_one(Thinking).thinking == LONG


# what must not be lost


@asynccontextmanager
async def full_disk(t: Driver) -> AsyncIterator[None]:
    """SQLite's own limit: it says that the disk is full."""
    t.app.store._db.execute("PRAGMA max_page_count=1")  # it takes the number of pages that there are
    try:
        yield
    finally:
        t.app.store._db.execute("PRAGMA max_page_count=1000000")


async def test_a_disk_that_fills_ends_the_answer_and_not_the_chat(open_chat: Open) -> None:
    ScriptedRuntime.script = [f"{LONG} " * 300, "There is room."]
    ScriptedRuntime.tokens_per_s = 3000
    async with open_chat(ctx=65536) as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.answers and "word9 " in t.answers[0].body.text)
        async with full_disk(t):
            await t.until(lambda: not t.chat.busy)
            assert "make room on this disk" in t.notices
            assert "F4" not in t.notices, "no smaller context makes room on a disk"
            assert "failed" in t.screen_text()
            shown = t.answers[0].body.text
            await t.ask("Again, with so many words that a page more is needed: " + LONG * 20)
            assert "your words are still in the prompt" in t.notices
            await t.press("escape")
        await t.press("enter")
        await t.settled()
        assert t.contents[-1] == "There is room."
        assert t.contents[1].startswith(shown.rstrip()), "what was on the screen is stored"
        states = [m.state for m in t.app.store.messages(t.app.session.id or "")]
        assert states == ["complete", "failed", "complete", "complete"]


@pytest.mark.parametrize("error", [TriattnError("boom"), MemoryError(), ValueError("odd"), OSError(5, "I/O error")])
async def test_whatever_ends_a_turn_or_a_load_ends_the_waiting(
    open_chat: Open, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise error

    async with open_chat() as t:
        monkeypatch.setattr(ScriptedRuntime, "generate", fails)
        await t.ask("Go")
        assert t.app.session.path[-1].state == "failed"
        monkeypatch.setattr(planning, "plan_run", fails)
        t.app.load_model(t.app.model or Path())
        await t.until(lambda: not t.app.loading)
        assert not t.chat.status.busy


async def test_a_full_disk_is_told_by_every_key_that_writes(open_chat: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise TriattnError("cannot be written: database or disk is full", fix="make room on this disk")

    async with open_chat(notifications=True) as t:
        await t.ask("One")
        await t.press("ctrl+r")
        await t.settled()
        monkeypatch.setattr(SessionStore, "_writing", full)
        for key in ("f5", "f5", "f9", "alt+left", "ctrl+r"):
            t.app.clear_notifications()
            await t.press(key)
            await t.until(lambda: "make room" in t.toasts)
        assert not t.chat.busy
        await t.press("f2")
        await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
        for keys in (["d"], ["r", "x", "enter"]):
            await t.press(*keys)
            await t.until(
                lambda: "make room" in str(t.app.screen.query_one(".problem", Static).render()),
            )
        await t.press("escape")
        await t.press("f4")
        await t.until(lambda: isinstance(t.app.screen, SettingsScreen))
        t.app.screen.query_one("#seed", Input).value = "7"
        await t.press("ctrl+s")
        await t.until(lambda: "make room" in str(t.app.screen.query_one(".problem", Static).render()))
        await t.press("escape")
        monkeypatch.undo()
        assert t.app.is_running


async def test_a_session_that_another_chat_has_open_is_not_deleted(open_chat: Open, tmp_path: Path) -> None:
    other = SessionStore(tmp_path / "sessions")
    theirs = other.create(title="Theirs")
    other.add(theirs.id, None, "user", "Hello")
    async with open_chat() as t:
        await t.press("f2")
        await t.until(lambda: isinstance(t.app.screen, SessionsScreen))
        await t.press("d")
        assert "is open in another triattn-local; close it there first" in t.screen_text()
        assert [s.id for s in other.sessions()] == [theirs.id]
        other.release(theirs.id)
        await t.press("d")
        await t.until(lambda: other.sessions() == [])
        assert "is open in another" not in t.screen_text()
    other.close()


# numbers


async def test_a_new_conversation_has_its_own_numbers(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG, "Short."]
    async with open_chat(size=(140, 40)) as t:
        empty = t.screen_text()
        for line in ("context   0 of", "rounds    0", "evicted   0 tokens"):
            assert line in empty
        await t.ask("Go")
        first = t.rt.stats()
        assert first.n_evictions > 1
        assert f"rounds    {first.n_evictions}" in t.screen_text()
        first_session = t.app.session.id
        await t.press("ctrl+n")
        for line in ("context   0 of", "cells     0 of", "rounds    0", "evicted   0 tokens"):
            assert line in t.screen_text(), "at once, and not when the engine has looked"
        await t.settled()
        await t.press("f8")
        assert "Nothing is in the cache yet." in t.screen_text()
        await t.press("escape")
        for line in ("context   0 of", "cells     0 of", "rounds    0", "evicted   0 tokens"):
            assert line in t.screen_text()
        assert t.chat.panel.heatmap.share is None or not t.chat.panel.heatmap.share.any()
        await t.ask("Go")
        assert t.chat.status.stats is not None
        assert t.chat.status.stats.n_past == t.rt.stats().n_past
        assert t.chat.status.stats.n_evictions == t.rt.stats().n_evictions - first.n_evictions == 0
        await t.app.open_session(t.app.store.get(first_session or ""))
        await t.settled()
        assert f"rounds    {first.n_evictions}" in t.screen_text()
        assert "context   0 of" in t.screen_text(), "its rounds are its own; the cache holds another one"


async def test_what_the_engine_says_of_a_conversation_that_was_left_is_not_shown(open_chat: Open) -> None:
    async with open_chat(size=(140, 40)) as t:
        await t.ask("Go")
        stats = t.chat.status.stats
        assert stats is not None
        left = t.app.session.id
        await t.press("ctrl+n")
        await t.settled()
        t.chat.post_message(events.CacheRead(left, stats, None, 0))
        await t.pilot.pause(0.1)
        assert t.chat.status.stats is not None
        assert t.chat.status.stats.n_past == 0


async def test_an_answer_that_ends_amid_an_update_is_shown_to_its_end(
    open_chat: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = AnswerMessage.write

    async def slow(self: AnswerMessage, *args: Any) -> None:
        await write(self, *args)
        await asyncio.sleep(0.5)  # the answer ends in that time

    monkeypatch.setattr(AnswerMessage, "write", slow)
    ScriptedRuntime.script = [LONG]
    ScriptedRuntime.tokens_per_s = 500
    async with open_chat() as t:
        await t.ask("Go")
        assert t.answers[0].body.text == LONG


MATHS = "Inline \\( \\alpha \\) here.\n\n\\[\nx = 1 \\\\\ny = \\frac{1}{2}\n\\]\n\nRoses\nare red. \u202ederaeppasid\n"


async def test_maths_can_be_read_and_is_copied_and_exported_as_it_was_written(
    open_chat: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    copied: list[str] = []
    monkeypatch.setattr(ChatApp, "copy_to_clipboard", lambda self, text: copied.append(text))
    ScriptedRuntime.script = [MATHS]
    ScriptedRuntime.tokens_per_s = 100
    async with open_chat() as t:
        await t.ask("Go")
        shown = t.screen_text()
        for words in ("Inline α here.", "x = 1 ", "y = 1/2", "Roses ", "are red."):
            assert words in shown
        t.answers[0].focus()
        await t.press("c")
        assert copied == [MATHS]
        session = t.app.store.get(t.app.session.id or "")
        messages = t.app.store.messages(session.id)
        for written, read in ((to_json, from_json), (to_markdown, from_markdown)):
            assert read(written(session, messages)).messages[1].content.rstrip("\n") == MATHS.rstrip("\n")


# small things that cost much


async def test_ctrl_x_takes_the_last_attachment_and_never_the_words(open_chat: Open, tmp_path: Path) -> None:
    async with open_chat() as t:
        await t.write("one line\nand another")
        await t.press("ctrl+x")
        assert t.chat.prompt.text == "one line\nand another"
        t.chat._set_files([Attachment("a.txt", "a"), Attachment("b.txt", "b")])
        await t.press("ctrl+x")
        assert [file.name for file in t.chat._files] == ["a.txt"]
        assert t.chat.prompt.text == "one line\nand another"
        t.chat.prompt.select_all()
        await t.press("ctrl+x")
        assert t.chat.prompt.text == "", "what is selected is cut"
        assert [file.name for file in t.chat._files] == ["a.txt"]
        await t.press("ctrl+x")
        assert t.chat._files == []


async def open_file(t: Driver, key: str, path: str) -> None:
    await t.press("f3")
    await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
    await t.press(key)
    await t.until(lambda: isinstance(t.app.screen, AskScreen))
    t.app.screen.query_one(Input).value = path
    await t.press("enter")
    await t.until(lambda: not isinstance(t.app.screen, AskScreen))


@pytest.mark.parametrize("key", ["o", "p"])
async def test_f3_opens_a_file_by_its_path(
    open_chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    mine = write_model(tmp_path / "elsewhere.gguf")
    monkeypatch.chdir(tmp_path)
    async with open_chat() as t:
        await open_file(t, key, "elsewhere.gguf")
        assert "no statistics yet" in t.screen_text()
        assert str(mine)[:20] in t.screen_text()
        await t.press("f")
        await t.until(lambda: t.app.model == mine and not t.app.loading)
        assert t.rt.eviction is None
        monkeypatch.setattr("triattn_local.tui.screens.models.glance", lambda path: ("llama", True))
        await open_file(t, key, str(mine))
        await t.until(lambda: len(ScriptedRuntime.loads) == 3 and not t.app.loading)


@pytest.mark.parametrize(("path", "words"), [("/none/x.gguf", "no such file"), ("text.txt", "is not a GGUF")])
async def test_f3_says_what_is_wrong_with_a_path(
    open_chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, words: str
) -> None:
    (tmp_path / "text.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    async with open_chat() as t:
        await open_file(t, "o", path)
        assert words in str(t.app.screen.query_one(".problem", Static).render())


async def test_a_model_that_was_made_in_the_background_is_opened_if_there_is_none(
    open_chat: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny.gguf").unlink()
    made = write_model(tmp_path / "models" / "made.gguf")
    monkeypatch.setattr("triattn_local.tui.app.glance", lambda path: ("llama", True))
    async with open_chat(model=None) as t:
        await t.until(lambda: isinstance(t.app.screen, ModelsScreen))
        await t.press("escape")
        t.app.post_message(JobDone(made, None))
        await t.until(lambda: t.app.model == made and not t.app.loading)
        await t.ask("Hello")
        assert len(t.contents) == 2


async def test_lines_formulas_and_columns_are_where_they_were_written(open_chat: Open) -> None:
    ScriptedRuntime.script = [
        "- one\n  two\n  \\[ a = 1 \\\\ b = 2 \\]\n- three\n\n"
        "| a | amount | mid |\n|---|--:|:-:|\n| x | 12 | z |\n\n> quoted\n> lines\n\n123 Main St\nSpringfield"
    ]
    async with open_chat(size=(90, 50)) as t:
        await t.ask("Go")
        await t.looked()
        shown = [line.rstrip() for line in t.screen_text().splitlines()]
        at = next(i for i, line in enumerate(shown) if line.endswith("• one"))
        indent = len(shown[at]) - len("one")
        texts = [line[indent:] for line in shown[at : at + 5]]
        assert texts == ["one", "two", "  a = 1", "  b = 2", "three"]
        assert any(line.endswith(" x │     12 │  z") for line in shown)
        for first, second in (("quoted", "lines"), ("123 Main St", "Springfield")):
            at = next(i for i, line in enumerate(shown) if line.endswith(first))
            assert shown[at + 1].endswith(second)


async def test_a_stopped_answer_goes_on_behind_its_last_letter(open_chat: Open) -> None:
    ScriptedRuntime.script = ["The sea is wide and more", " deep, and cold."]
    async with open_chat(max_tokens=4) as t:
        await t.ask("How is the sea?")
        assert t.app.session.path[-1].state == "length"
        cut = t.app.session.path[-1].content
        assert cut.startswith("The sea is wide")
        assert "F6 goes on" in t.screen_text()
        await t.press("f6")
        await t.settled()
        last = t.app.session.path[-1]
        assert last.content == cut + " deep, and cold."
        assert last.state == "complete"
        assert t.rt.prompts[-1].endswith(f"<|im_start|>assistant\n{cut}"), "the prompt ends with what it said"
        assert t.answers[-1].body.text == last.content, "one text on the screen"
        assert "The sea is wide" in t.screen_text()
        assert "deep, and cold." in t.screen_text()
        assert int(last.report["n_content"]) > 4, "tokens of both parts"
        await t.press("alt+left")
        await t.until(lambda: t.contents == ["How is the sea?", cut])
        await t.press("alt+right")
        await t.ask("And the sky?")
        assert last.content in t.rt.prompts[-1]


async def test_an_answer_that_escape_cut_goes_on_from_its_message(open_chat: Open) -> None:
    ScriptedRuntime.script = [LONG, " the end"]
    ScriptedRuntime.tokens_per_s = 50
    async with open_chat() as t:
        await t.ask("Go", wait=False)
        await t.until(lambda: t.answers and "word5 " in t.answers[0].body.text)
        await t.press("escape")
        await t.settled()
        cut = t.contents[-1]
        t.answers[0].focus()
        await t.press("o")
        await t.settled()
        assert t.contents == ["Go", cut + " the end" if not cut.endswith(" ") else cut + "the end"]


async def test_thinking_that_was_cut_goes_on_thinking(open_chat: Open) -> None:
    ScriptedRuntime.script = ["<think>\nFirst this, then more", " that.</think>It is wide."]
    async with open_chat(max_tokens=4) as t:
        await t.ask("Go")
        first = t.app.session.path[-1]
        assert (first.content, first.state) == ("", "length")
        assert first.thinking.startswith("First this")
        await t.press("f6")
        await t.settled()
        last = t.app.session.path[-1]
        assert t.rt.prompts[-1].endswith(f"<think>\n{first.thinking}")
        assert last.thinking.startswith(first.thinking)
        assert "that." in last.thinking
        assert last.content.startswith("It is")


async def test_a_whole_answer_does_not_go_on(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.press("f6")
        await t.ask("Go")
        n = len(t.app.session.messages)
        await t.press("f6")
        t.answers[0].focus()
        await t.press("o")
        assert not t.chat.busy
        assert len(t.app.session.messages) == n
        assert "This answer is whole" in t.toasts


async def test_an_answer_without_room_is_there_and_the_way_on_is_said(open_chat: Open) -> None:
    ScriptedRuntime.script = ["so " * 200, "Short."]
    async with open_chat(ctx=128) as t:
        await t.ask("Go")
        before = t.contents
        assert t.app.session.path[-1].state == "context"
        await t.press("f6")
        await t.settled()
        assert t.contents == before
        assert not any(m.left_out for m in t.app.session.path)
        assert "There is no room to go on" in t.notices
        assert "F4 raises it" in t.notices


async def test_an_answer_is_edited_and_the_model_goes_on_from_there(open_chat: Open) -> None:
    ScriptedRuntime.script = ["The sea is red.", "Because of the sky.", " and wide."]
    async with open_chat() as t:
        await t.ask("How is the sea?")
        t.answers[0].focus()
        await t.press("w")
        assert t.chat.prompt.text == "The sea is red."
        assert "edits an answer" in str(t.chat.prompt.border_title)
        t.chat.prompt.clear()
        await t.ask("The sea is blue,")
        assert t.contents == ["How is the sea?", "The sea is blue,"]
        assert t.rt.n_answers == 1, "nothing is asked"
        assert "edited by you" in t.screen_text()
        assert "‹ 2/2 ›" in t.screen_text()
        assert not t.chat.prompt.has_class("editing")
        await t.ask("Why?")
        assert "The sea is blue," in t.rt.prompts[-1]
        assert "red" not in t.rt.prompts[-1]
        t.answers[0].focus()
        await t.press("o")
        await t.settled()
        assert t.contents == ["How is the sea?", "The sea is blue, and wide."]
        await t.press("alt+left", "alt+left")
        await t.until(lambda: t.contents == ["How is the sea?", "The sea is red."])


async def test_escape_leaves_an_answer_as_it_is(open_chat: Open) -> None:
    async with open_chat() as t:
        await t.ask("Go")
        t.answers[0].focus()
        await t.press("w", "escape")
        assert t.chat.prompt.text == ""
        assert len(t.app.session.messages) == 2
        t.chat.query(UserMessage).first().focus()
        await t.press("w", "o")
        assert t.chat.prompt.text == ""
        assert len(t.app.session.messages) == 2
