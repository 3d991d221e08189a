"""Runtime.chat: tools, their calls out of the text, thinking told apart; the same in an event loop."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from triattn_local import Runtime
from triattn_local.answers.tool_calls import ToolCall, ToolCallSplitter, for_template
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine.runtime import Done, Prefill, Text
from triattn_local.support.aio import in_thread

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def split(*pieces: str) -> list[str | ToolCall]:
    splitter = ToolCallSplitter()
    parts = [part for piece in pieces for part in splitter.push(piece)] + splitter.flush()
    merged: list[str | ToolCall] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_calls_come_out_of_the_text(size: int) -> None:
    text = f"I look. {CALL}\n{CALL} Done."
    parts = split(*(text[i : i + size] for i in range(0, len(text), size)))
    assert parts == ["I look. ", ToolCall("call_1", "f", {"a": 1}), "\n", ToolCall("call_2", "f", {"a": 1}), " Done."]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', ["f", "g"]),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', ["f"]),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', ["f"]),
        ('<tool_call>{"name": "f"}', ["f"]),
    ],
)
def test_other_ways_to_call(text: str, found: list[str]) -> None:
    assert [part.name for part in split(text) if isinstance(part, ToolCall)] == found


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>not json</tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        "a <b> c",
        '<tool_call>{"name": "f"',
        "<tool",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert split(*text) == [text]


def test_a_template_without_tools_gets_them_as_text() -> None:
    called = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [
        {"role": "user", "content": "Go."},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "1", "content": "done"},
    ]
    plain = for_template("{{ messages }}", messages, [TOOL])
    assert [turn["role"] for turn in plain] == ["system", "user", "assistant", "user"]
    assert '"name": "f"' in plain[0]["content"]
    assert split(plain[2]["content"]) == [ToolCall("call_1", "f", {"a": 1})]
    assert "done" in plain[3]["content"]
    known = for_template("{{ tools }}", messages, [TOOL])
    assert known[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert messages[1]["content"] is None


def test_events_in_a_loop() -> None:
    threads = set()

    def count(cancel: threading.Event) -> Iterator[int]:
        for i in range(1000):
            threads.add(threading.get_ident())
            if cancel.is_set():
                return
            yield i

    async def all_of_them() -> list[int]:
        return [i async for i in in_thread(count)]

    assert asyncio.run(all_of_them()) == list(range(1000))
    assert threads.isdisjoint({threading.get_ident()})


def test_a_cancelled_task_stops_the_work() -> None:
    stopped = threading.Event()

    def endless(cancel: threading.Event) -> Iterator[int]:
        try:
            i = 0
            while not cancel.wait(0.01):
                yield (i := i + 1)
        finally:
            stopped.set()

    async def too_long() -> None:
        async for _ in in_thread(endless):
            pass

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(too_long(), 0.2)

    asyncio.run(main())
    assert stopped.wait(10)


@pytest.mark.slow
def test_chat(qwen25_triattn: Path) -> None:
    """A model that knows tools: it calls one, and takes up the answer."""
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    with Runtime.load(qwen25_triattn, RuntimeConfig(n_ctx=2048), EvictionConfig(budget_tokens=256)) as rt:
        question = [{"role": "user", "content": "Call get_weather for Oslo."}]
        events = list(rt.chat(question, tools=[tool], max_tokens=80))
        assert isinstance(events[0], Prefill)
        assert isinstance(events[-1], Done)
        calls = [event for event in events if isinstance(event, ToolCall)]
        text = "".join(event.text for event in events if isinstance(event, Text))
        assert [call.name for call in calls] == ["get_weather"] or '"get_weather"' in text
        result = {"role": "tool", "tool_call_id": "call_1", "content": json.dumps({"celsius": -3})}
        called = {
            "role": "assistant",
            "content": "",
            "tool_calls": [ToolCall("call_1", "get_weather", {"city": "Oslo"}).as_message()],
        }
        told = list(rt.chat([*question, called, result], tools=[tool], max_tokens=40))
        assert any(isinstance(event, Text) for event in told)


@pytest.mark.slow
@pytest.mark.parametrize("example", ["agent.py", "asyncio_chat.py", "llama_cpp_llama.py", "rankings.py"])
def test_examples_run(example: str, smollm2_triattn: Path) -> None:
    command = [sys.executable, EXAMPLES / example, smollm2_triattn, "Say hello."]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_the_agent_is_short() -> None:
    assert len((EXAMPLES / "agent.py").read_text().splitlines()) <= 66
