"""An agent's requests, as many of them as it takes to use a tool ten times, and what they cost.

    python tests/support/agent_trace.py MODEL [--tokens 6000] [--turns 10] [--answer 24] [--budget 1024] [--ctx 8192]

Serves the model three times: as `serve` does, without saved states, and with full attention and llama-server's own
prompt cache (the same library with eviction off, which computes what an unpatched one computes, bit for bit). The
requests are the same each time: the client sends a scripted call in place of what the model answered, as one does that
strips its thinking.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from served import Served
from texts import prose

SIDES: dict[str, tuple[str, ...]] = {
    "saved states": (),
    "no saved states": ("--cache-ram", "0"),
    "full attention": ("--no-evict",),
}


@dataclass(frozen=True)
class Turn:
    """One request of the trace."""

    n_prompt: int
    n_common: int
    """tokens that the prompt shares with the one before it"""
    n_cached: int
    """of them not read again, as the server's usage says"""
    first_s: float
    """to the first token"""
    whole_s: float
    """to the end of the answer"""

    @property
    def share(self) -> float:
        return self.n_cached / self.n_common if self.n_common else 1.0


def tools(n: int) -> list[dict[str, Any]]:
    """n tools with a description each."""
    return [
        {
            "type": "function",
            "function": {
                "name": f"tool_{i}",
                "description": prose(40, seed=100 + i),
                "parameters": {
                    "type": "object",
                    "properties": {
                        "path": {"type": "string", "description": prose(10, seed=200 + i)},
                        "count": {"type": "integer", "description": prose(10, seed=300 + i)},
                    },
                    "required": ["path"],
                },
            },
        }
        for i in range(n)
    ]


class Agent:
    """One conversation of a system prompt, tools and calls; grows by a call and its result each turn."""

    def __init__(self, server: Served, n_tokens: int, seed: int = 0, n_tools: int = 12) -> None:
        self.tools = tools(n_tools)
        self.server = server
        self.seed = seed
        n_words = 0
        while True:  # as long as asked for, whatever the template makes of the tools
            self.messages: list[dict[str, Any]] = [{"role": "system", "content": prose(n_words)}]
            missing = n_tokens - len(self.tokens([*self.messages, {"role": "user", "content": "?"}]))
            if missing < 20:
                break
            n_words += max(10, missing // 2)
        self.messages.append({"role": "user", "content": f"Task {seed}: {prose(20, seed=seed + 1)}"})
        self.turn = 0

    def tokens(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        prompt = self.server.post("/apply-template", {"messages": messages, "tools": self.tools})["prompt"]
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        return list(self.server.post("/tokenize", asked)["tokens"])

    def body(self, n: int) -> dict[str, Any]:
        return {"messages": self.messages, "tools": self.tools, "max_tokens": n, "temperature": 0}

    def use_tool(self, n_words: int = 60) -> None:
        """What the client makes of an answer: a call, and what the tool said."""
        self.turn += 1
        name = f"call_{self.turn}"
        arguments = json.dumps({"path": f"/data/{self.seed}/{self.turn}", "count": self.turn})
        call = {"id": name, "type": "function", "function": {"name": f"tool_{self.turn % 8}", "arguments": arguments}}
        self.messages += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": name, "content": prose(n_words, seed=1000 * self.seed + self.turn)},
        ]


def run(server: Served, n_tokens: int, n_turns: int, n_answer: int = 24) -> list[Turn]:
    """The trace, request by request."""
    agent = Agent(server, n_tokens)
    turns: list[Turn] = []
    before: list[int] = []
    for _ in range(n_turns):
        tokens = agent.tokens(agent.messages)
        n_common = next((i for i, (a, b) in enumerate(zip(before, tokens, strict=False)) if a != b), len(before))
        before = tokens
        start = time.perf_counter()
        first_s, usage = 0.0, {}
        # as long as asked for: what an answer leaves behind is a part of what is measured
        body = {**agent.body(n_answer), "ignore_eos": True, "stream_options": {"include_usage": True}}
        for data in server.events(body):
            if data == "[DONE]":
                break
            chunk = json.loads(data)
            usage = chunk.get("usage") or usage
            deltas = [choice["delta"] for choice in chunk.get("choices", [])]
            if not first_s and any(
                delta.get(kind) for delta in deltas for kind in ("content", "reasoning_content", "tool_calls")
            ):
                first_s = time.perf_counter() - start
        whole_s = time.perf_counter() - start
        n_cached = usage["prompt_tokens_details"]["cached_tokens"]
        turns.append(Turn(usage["prompt_tokens"], n_common, n_cached, first_s or whole_s, whole_s))
        agent.use_tool()
    return turns


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=6000, help="of system prompt and tools")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument(
        "--answer", type=int, default=24, help="tokens of each answer; beyond the window it cannot be rewound"
    )
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("serve", nargs="*", help="more flags of `triattn-local serve`, behind --")
    arguments = parser.parse_args()

    found: dict[str, list[Turn]] = {}
    for side in arguments.sides.split(","):
        flags = ["--ctx", str(arguments.ctx), "--budget", str(arguments.budget), *SIDES[side], *arguments.serve]
        with tempfile.TemporaryDirectory() as folder, Served(arguments.model, Path(folder) / "log", *flags) as server:
            found[side] = run(server, arguments.tokens, arguments.turns, arguments.answer)
    print("turn  prompt  common" + "".join(f"  {side:>32}" for side in found))
    for i, row in enumerate(zip(*found.values(), strict=True)):
        cells = "".join(f"  {t.n_cached:6d} cached {t.first_s:6.2f} of {t.whole_s:6.2f} s" for t in row)
        print(f"{i + 1:4d}  {row[0].n_prompt:6d}  {row[0].n_common:6d}{cells}")
    print(json.dumps({side: [asdict(turn) for turn in turns] for side, turns in found.items()}))


if __name__ == "__main__":
    main()
