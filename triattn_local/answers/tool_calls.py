"""Tools, for models whose template knows them and for those whose template does not; and their calls, out of the text.

A call is text between marks that holds JSON with a name and arguments. Works on text as it streams. Knows nothing of
models but these marks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .messages import for_templates
from .text_stream import overlap

MARKS: tuple[tuple[str, str], ...] = (
    ("<tool_call>", "</tool_call>"),  # Hermes, Qwen
    ("<|tool_call|>", "<|/tool_call|>"),  # Phi 4
    ("[TOOL_CALLS]", "\0"),  # Mistral: up to the end
    ("<|python_tag|>", "\0"),  # Llama 3
)

_PROMPT = """# Tools

You may call functions. Their signatures:
<tools>
{tools}
</tools>

To call one, write a JSON object with its name and arguments between these tags, and nothing else:
<tool_call>
{{"name": <name>, "arguments": <object>}}
</tool_call>"""


@dataclass(frozen=True)
class ToolCall:
    """The model wants a function to be called."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    def as_message(self) -> dict[str, Any]:
        """As an assistant's message has it among its `tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}


def for_template(
    template: str | None, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages as a template takes them: arguments as objects; tools and calls as text if it knows none.

    Raises
    ------
    UsageError
        They are no messages as OpenAI's protocol has them, or hold something else than text.
    """
    turns = for_templates(messages)
    if template is not None and "tools" in template:
        return turns
    plain: list[dict[str, Any]] = []
    for turn in turns:
        text = turn["content"]
        if turn.get("tool_calls"):
            calls = [_json(call["function"], "tool_calls") for call in turn["tool_calls"]]
            text = "\n".join([text, *(f"<tool_call>\n{call}\n</tool_call>" for call in calls)]).strip()
        if turn["role"] == "tool":
            plain.append({"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"})
        else:
            plain.append({"role": turn["role"], "content": text})
    if tools:
        told = _PROMPT.format(tools="\n".join(_json(tool, "tools") for tool in tools))
        if plain and plain[0]["role"] == "system":
            plain[0]["content"] = f"{plain[0]['content']}\n\n{told}"
        else:
            plain.insert(0, {"role": "system", "content": told})
    return plain


def _json(value: object, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"holds what JSON cannot: {error}", where=where) from None


class ToolCallSplitter:
    """Takes the calls out of an answer, piece by piece. What is between marks and is no call stays text."""

    def __init__(self) -> None:
        self._held = ""
        self._open: tuple[str, str] | None = None
        self._n_calls = 0

    def push(self, text: str) -> list[str | ToolCall]:
        """Text and calls that are certain now."""
        self._held += text
        parts: list[str | ToolCall] = []
        while True:
            if self._open is None:
                found = [(self._held.find(marks[0]), marks) for marks in MARKS if marks[0] in self._held]
                if not found:
                    n_sure = len(self._held) - max(overlap(self._held, opening) for opening, _ in MARKS)
                    parts += [self._held[:n_sure]] if n_sure else []
                    self._held = self._held[n_sure:]
                    return parts
                at, self._open = min(found)
                parts += [self._held[:at]] if at else []
                self._held = self._held[at + len(self._open[0]) :]
            body, closing, rest = self._held.partition(self._open[1])
            if not closing:
                return parts
            parts += self._calls(body, closing)
            self._open, self._held = None, rest

    def flush(self) -> list[str | ToolCall]:
        """The rest, at the end of the answer."""
        held, self._held = self._held, ""
        if self._open is not None:
            return self._calls(held, "")
        return [held] if held else []

    def _calls(self, body: str, closing: str) -> list[str | ToolCall]:
        assert self._open is not None
        try:
            found = json.loads(body)
            calls = found if isinstance(found, list) else [found]
            return [self._call(call) for call in calls]
        except (ValueError, KeyError, TypeError):
            return [self._open[0] + body + closing]

    def _call(self, call: dict[str, Any]) -> ToolCall:
        arguments = call.get("arguments", call.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(call["name"], str) or not isinstance(arguments, dict):
            raise TypeError("no call")
        self._n_calls += 1
        return ToolCall(f"call_{self._n_calls}", call["name"], arguments)
