"""How soon a key is shown while a very long answer streams, seen from the other end of the terminal.

    python scripts/measure_chat_speed.py            paragraphs and long blocks: two minutes, on a machine that is idle
    python scripts/measure_chat_speed.py blocks     the long blocks alone

At 95 % it was 13 to 23 ms on two cores; other work on the machine adds to it, so that no test has a limit.
"""

from __future__ import annotations

import itertools
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from chat_process import ChatProcess

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


def measure(name: str, answer: str, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        latencies, memory = typed_while_streaming(Path(folder), answer, seconds)
    last = latencies[-(len(latencies) // 4) :]
    p95, p95_last = (statistics.quantiles(some, n=20)[-1] * 1000 for some in (latencies, last))
    grown = (memory[-1] - memory[len(memory) // 4]) / 2**20
    print(
        f"{name}: {len(latencies)} keys, median {statistics.median(latencies) * 1000:.1f} ms, 95 % {p95:.1f} ms, in "
        f"the last quarter {p95_last:.1f} ms; memory {memory[-1] / 2**20:.0f} MiB, grown by {grown:.1f} MiB"
    )


if __name__ == "__main__":
    measure("long blocks", long_blocks(), 30.0)
    if "blocks" not in sys.argv[1:]:
        measure("paragraphs", long_answer(), N_TOKENS / TOKENS_PER_S - 6)
