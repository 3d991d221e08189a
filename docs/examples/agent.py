"""An agent in one process: the model, its tools and the loop between them.

python agent.py MODEL.triattn.gguf "What is 17 times 23, and which files are here?"
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from triattn_local import EvictionConfig, Runtime, RuntimeConfig, Text, ToolCall


def multiply(a: float, b: float) -> float:
    """The product of two numbers."""
    return a * b


def list_files(folder: str = ".") -> list[str]:
    """The names of the files in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())[:20]


TOOLS = {function.__name__: function for function in (multiply, list_files)}
TYPES = {"float": "number", "str": "string"}


def described(function: Any) -> dict[str, Any]:
    types = {name: kind for name, kind in function.__annotations__.items() if name != "return"}
    properties = {name: {"type": TYPES[kind]} for name, kind in types.items()}
    parameters = {"type": "object", "properties": properties}
    return {
        "type": "function",
        "function": {"name": function.__name__, "description": function.__doc__, "parameters": parameters},
    }


def answer(rt: Runtime, question: str, max_turns: int = 5) -> str:
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for _ in range(max_turns):
        said, calls = "", []
        for event in rt.chat(messages, tools=[described(f) for f in TOOLS.values()], max_tokens=400):
            if isinstance(event, Text) and event.kind == "content":
                said += event.text
            elif isinstance(event, ToolCall):
                calls.append(event)
        messages.append({"role": "assistant", "content": said, "tool_calls": [call.as_message() for call in calls]})
        if not calls:
            return said
        for call in calls:
            try:
                result = TOOLS[call.name](**call.arguments)
            except Exception as error:  # the model hears of its mistakes
                result = f"{type(error).__name__}: {error}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(result)})
    return "too many turns"


if __name__ == "__main__":
    with Runtime.load(Path(sys.argv[1]), RuntimeConfig(n_ctx=32768), EvictionConfig(budget_tokens=2048)) as runtime:
        print(answer(runtime, sys.argv[2]))
