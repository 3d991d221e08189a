"""One tool call there and back over a stream, as an agent does it: the quickest proof that a server is fit for one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import TriattnError
from .api import Api

_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome", "Lima"]}},
            "required": ["city"],
        },
    },
}
_QUESTIONS = ("What is the weather in Oslo?", "And in Rome?")
_SKY = '{"sky": "clear", "celsius": 3}'
_MAX_TOKENS = 256


def call_a_tool(api: Api, model: str, **more: object) -> float:
    """Have the model call a tool, answer it, and read what the model says to that. Returns the seconds it took.

    Parameters
    ----------
    more
        Further fields of the first request.

    Raises
    ------
    TriattnError
        What of the protocol does not hold.
    """
    start_s = time.monotonic()
    body: dict[str, Any] = {"model": model, "max_tokens": _MAX_TOKENS, "temperature": 0, "tools": [_TOOL]}
    # the second call is the model's own: the first one shows it how, for a small one does not know
    earlier = [
        {"role": "user", "content": _QUESTIONS[0]},
        *with_result("get_weather", {"city": "Oslo"}, _SKY),
        {"role": "assistant", "content": "Clear, 3 degrees."},
        {"role": "user", "content": _QUESTIONS[1]},
    ]
    called = assemble(api.stream_chat({**body, "messages": earlier, "tool_choice": "required", **more}))
    if called["finish_reason"] != "tool_calls" or not called["tool_calls"]:
        words = (called["content"] or called["reasoning_content"])[:60]
        raise TriattnError(f"the model was to call a tool, and says {words!r}", where=api.root)
    call = called["tool_calls"][0]
    try:
        arguments = json.loads(call["function"]["arguments"])
    except ValueError:
        arguments = None
    if call["function"]["name"] != "get_weather" or not isinstance(arguments, dict) or not call["id"]:
        raise TriattnError(f"the call is {json.dumps(call)}", where=api.root)
    if not called["usage"] or "prompt_tokens" not in called["usage"]:
        raise TriattnError("the stream has no usage at its end", where=api.root)
    messages = [
        *earlier,
        {"role": "assistant", "content": None, "tool_calls": called["tool_calls"]},
        {"role": "tool", "tool_call_id": call["id"], "content": _SKY},
    ]
    told = assemble(api.stream_chat({**body, "messages": messages, "max_tokens": 16}))
    if told["finish_reason"] not in ("stop", "length", "tool_calls"):
        raise TriattnError(f"the answer to the tool ended with {told['finish_reason']!r}", where=api.root)
    return time.monotonic() - start_s


def with_result(name: str, arguments: Mapping[str, object], result: str) -> list[dict[str, Any]]:
    """A call and its result, as the two messages that a conversation has of them."""
    function = {"name": name, "arguments": json.dumps(arguments)}
    return [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_0", "content": result},
    ]


def assemble(chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The message that the chunks of a stream make: content, reasoning_content, tool_calls, finish_reason, usage."""
    message: dict[str, Any] = {
        "content": "",
        "reasoning_content": "",
        "tool_calls": [],
        "finish_reason": None,
        "usage": None,
    }
    calls: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        message["usage"] = chunk.get("usage") or message["usage"]
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            for kind in ("content", "reasoning_content"):
                message[kind] += delta.get(kind) or ""
            for part in delta.get("tool_calls") or ():
                call = calls.setdefault(
                    part["index"], {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
                )
                call["id"] = part.get("id") or call["id"]
                for field, text in (part.get("function") or {}).items():
                    call["function"][field] += text or ""
            message["finish_reason"] = choice.get("finish_reason") or message["finish_reason"]
    message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message
