"""The interface does not slow down while a very long answer streams, seen from the other end of the terminal."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from pathlib import Path

import pytest
from chat_process import ChatProcess
from machine import slowness

N_TOKENS = 20_000
TOKENS_PER_S = 200
KEYS = [(letter, letter) for letter in map(chr, range(0x0431, 0x044D))] + [("\x15", "sk anything")]
"""and what shows that each was answered: letters that the answer does not have, and Ctrl+U, which clears the line"""
PAUSE_S = (0.08, 0.4)
"""between two keys of somebody who types, now fast, now slowly"""


def long_answer() -> str:
    """Markdown with all that costs: paragraphs, emphasis, lists, code, headings."""
    rng = random.Random(1)
    words = ["sea", "light", "*wave*", "`rope`", "keeper", "**storm**", "and", "the", "of", "harbour", "stone", "rain"]
    parts: list[str] = []
    n = 0
    while n < N_TOKENS:
        kind = rng.random()
        if kind < 0.7:
            block = " ".join(rng.choice(words) for _ in range(60))
        elif kind < 0.8:
            block = "\n".join(f"- {' '.join(rng.choice(words) for _ in range(8))}" for _ in range(5))
        elif kind < 0.9:
            block = "```python\n" + "\n".join(f"x{i} = f({i}, 'rope')" for i in range(12)) + "\n```"
        else:
            block = f"## Part {n}"
        parts.append(block)
        n += len(block.split()) + 2
    return "\n\n".join(parts)


def typed_while_streaming(folder: Path, answer: str, seconds: float) -> tuple[list[float], list[int]]:
    """Press keys while an answer comes; returns the seconds until each was shown, and bytes of memory now and then."""
    chat = ChatProcess(folder, script=[answer], tokens_per_s=TOKENS_PER_S)
    try:
        chat.wait_for("Ask anything")
        chat.drain(1.0)
        chat.write("go\r")
        chat.drain(3.0)
        latencies: list[float] = []
        memory = []
        rng = random.Random(2)
        end_s = time.monotonic() + seconds
        for i, (key, shown) in enumerate(itertools.cycle(KEYS)):
            if time.monotonic() > end_s:
                break
            chat.write(key)
            latencies.append(chat.wait_for(shown))
            chat.drain(rng.uniform(*PAUSE_S))
            if i % 10 == 0:
                memory.append(chat.resident_bytes())
        return latencies, memory
    finally:
        chat.close()


def long_blocks() -> str:
    """What has no paragraphs for long: lists in lists, code, tables, one paragraph of many lines."""
    rng = random.Random(1)

    def some(n: int) -> str:
        return " ".join(rng.choice(["sea", "light", "*wave*", "`rope`", "keeper", "**storm**"]) for _ in range(n))

    items = "\n".join(f"{'  ' if i % 3 else ''}- **{some(1)}**: {some(14)}" for i in range(60))
    code = "\n".join(f"value_{i} = compute({i}, 'rope') + other[{i}]" for i in range(150))
    rows = "\n".join(f"| {some(3)} | {some(9)} | {i} |" for i in range(50))
    lines = "\n".join(some(9) for _ in range(100))
    blocks = [items, f"```python\n{code}\n```", f"| a | b | n |\n|---|---|---|\n{rows}", lines]
    return "\n\n".join(f"Here it is:\n\n{block}" for block in [*blocks, *blocks])


@pytest.mark.slow
def test_keys_are_answered_while_long_blocks_stream(tmp_path: Path) -> None:
    latencies, _ = typed_while_streaming(tmp_path, long_blocks(), 30.0)
    p95 = statistics.quantiles(latencies, n=20)[-1] * 1000
    print(f"{len(latencies)} keys: median {statistics.median(latencies) * 1000:.1f} ms, 95 % {p95:.1f} ms")
    assert p95 < 50 * slowness()


@pytest.mark.slow
def test_keys_are_answered_while_20000_tokens_stream(tmp_path: Path) -> None:
    latencies, memory = typed_while_streaming(tmp_path, long_answer(), N_TOKENS / TOKENS_PER_S - 6)
    assert len(latencies) > 200, "enough to speak of 95 %"
    quarter = len(latencies) // 4
    p95 = statistics.quantiles(latencies, n=20)[-1] * 1000
    p95_last = statistics.quantiles(latencies[-quarter:], n=20)[-1] * 1000
    grown = (memory[-1] - memory[len(memory) // 4]) / 2**20
    print(
        f"{len(latencies)} keys: median {statistics.median(latencies) * 1000:.1f} ms, 95 % {p95:.1f} ms, "
        f"in the last quarter {p95_last:.1f} ms; memory {memory[-1] / 2**20:.0f} MiB, grown by {grown:.1f} MiB"
    )
    assert p95 < 50 * slowness()
    assert p95_last < 50 * slowness()
    assert grown < 64, "the text itself and its layout, and nothing that piles up"
