"""A conversation that is longer than the context, summarised by the model itself: shown, and undone."""

from __future__ import annotations

import pytest
from chat_driver import Driver, Open
from scripted_runtime import ScriptedRuntime

from triattn_local.sessions import from_json, to_json
from triattn_local.sessions.model import SUMMARY, read_of
from triattn_local.tui.screens.full import FullScreen
from triattn_local.tui.widgets.messages import AnswerMessage

pytestmark = pytest.mark.asyncio


def answer(prompt: str, n: int) -> str:
    """A summary where one is asked for last, and long answers."""
    asks = prompt.rpartition("<|im_start|>user")[2].startswith(f"\n{SUMMARY}")
    return "Three questions about the sea." if asks else f"Answer {n}: " + "so " * 20


async def summarise(t: Driver, words: str) -> None:
    await t.ask(words, wait=False)
    await t.until(lambda: isinstance(t.app.screen, FullScreen))
    await t.press("up", "enter")
    await t.settled()


async def test_the_oldest_turns_are_summarised_and_taken_in_again(open_chat: Open) -> None:
    ScriptedRuntime.script = answer
    async with open_chat(ctx=512) as t:
        while not isinstance(t.app.screen, FullScreen):
            n = len(t.contents)
            await t.ask(f"Question {n}: " + "why " * 20, wait=False)
            await t.until(lambda: not t.chat.busy)
        await t.press("up")
        assert "Summarise the oldest" in t.screen_text()
        await t.press("enter")
        await t.settled()
        prompt = t.rt.prompts[-1]
        assert f"{SUMMARY}<|im_end|>\n<|im_start|>assistant\nThree questions about the sea.<|im_end|>" in prompt
        assert f"Question {n}:" in prompt
        assert "Question 0:" not in prompt
        assert t.app.session.path[-1].state == "complete"
        assert t.contents[0].startswith("Question 0:"), "nothing is lost from the transcript"
        (block,) = [m for m in t.app.session.path if m.summary]
        assert block.summary is not None
        widget = t.chat.transcript.find(block.id)
        assert isinstance(widget, AnswerMessage)
        assert f"in the place of {block.summary[1]} messages the model reads this:\nThree questions" in str(
            widget._foot.render()
        )
        # stored, also through a file
        session = t.app.session.session
        assert session is not None
        draft = from_json(to_json(session, t.app.session.messages))
        assert [m.content for m in read_of(draft.messages)] == [m.content for m in t.app.session.read]
        # and undone by d on any of them
        t.chat.transcript.message_widgets()[0].focus()
        await t.press("d")
        assert not any(m.left_out or m.summary for m in t.app.session.path)
        assert [m.content for m in t.app.session.read] == t.contents


async def test_ten_summaries_one_after_the_other(open_chat: Open) -> None:
    ScriptedRuntime.script = answer
    async with open_chat(ctx=512) as t:
        n_full = n = 0
        while n_full < 10:
            n += 1
            await t.ask(f"Question {n}: " + "why " * 40, wait=False)
            await t.until(lambda: not t.chat.busy)
            if isinstance(t.app.screen, FullScreen):
                n_full += 1
                await t.press("up", "enter")
                await t.settled()
            assert t.app.session.path[-1].state == "complete"
            assert f"Question {n}:" in t.rt.prompts[-1]
        assert len([m for m in t.app.session.read if m.content == SUMMARY]) == 1
        told = [m.content.split(":")[0] for m in t.app.session.path]
        assert told[::2] == [f"Question {i + 1}" for i in range(n)]


async def test_escape_stops_a_summary_and_nothing_has_changed(open_chat: Open) -> None:
    ScriptedRuntime.script = ["so " * 20, "so " * 20, "slow " * 400]
    async with open_chat(ctx=2048) as t:
        await t.ask("One")
        await t.ask("Two")
        before = t.app.session.path
        ScriptedRuntime.tokens_per_s = 20
        t.chat.action_summarise()
        assert t.chat.busy
        await t.until(lambda: len(t.rt.prompts) == 3)
        await t.press("escape")
        await t.settled()
        assert t.app.session.path == before
        assert "there is no summary" in t.notices.lower()


async def test_the_palette_summarises_all_but_the_last_turn(open_chat: Open) -> None:
    ScriptedRuntime.script = answer
    async with open_chat(ctx=2048) as t:
        await t.ask("One")
        t.chat.action_summarise()
        assert not t.chat.busy, "one turn only"
        await t.ask("Two")
        t.chat.action_summarise()
        await t.settled()
        assert [m.left_out for m in t.app.session.path] == [True, True, False, False]
        await t.ask("Three")
        assert "Three questions about the sea." in t.rt.prompts[-1]
        assert "<|im_start|>user\nOne" not in t.rt.prompts[-1]
