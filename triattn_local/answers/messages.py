"""Messages of OpenAI's protocol as chat templates take them: text in one piece, arguments of calls as objects.

What is no such message is refused here, with its number, before a template makes something of it. Knows no templates.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UsageError


def for_templates(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the messages, their content a text and the arguments of their calls objects.

    Raises
    ------
    UsageError
        No list of messages, or one that holds something else than text.
    """
    return [_message(message, f"messages[{i}]") for i, message in enumerate(mappings(messages, "messages"))]


def mappings(values: object, where: str) -> list[Mapping[str, Any]]:
    """A list of mappings, or UsageError."""
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__iter__"):
        raise UsageError(f"is a {type(values).__name__}, and a list of dictionaries is wanted", where=where)
    rows = list(values)
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise UsageError(f"is a {type(row).__name__}, and a dictionary is wanted", where=f"{where}[{i}]")
    return rows


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise UsageError("has no role", where=where, fix='such as {"role": "user", "content": "Hello"}')
    turn = {**message, "content": _text(message.get("content"), f"{where}.content")}
    if message.get("tool_calls"):
        calls = mappings(message["tool_calls"], f"{where}.tool_calls")
        turn["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    return turn


def _text(content: object, where: str) -> str:
    """Parts are joined as llama-server joins them."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = []
    for i, part in enumerate(mappings(content, where)):
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise UsageError(f"is {part.get('type')!r}, and only text can be read", where=f"{where}[{i}]")
        texts.append(part["text"])
    return "\n".join(texts)


def _call(call: Mapping[str, Any], where: str) -> dict[str, Any]:
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UsageError("has no function with a name", where=where)
    return {**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}}


def _arguments(given: object) -> Mapping[str, Any]:
    """The protocol has them as JSON in a text, empty for none, and templates want the object."""
    read = given
    if isinstance(given, str):
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(given) if given.strip() else None
    if read is None:
        return {}
    return read if isinstance(read, Mapping) else {"text": given}
