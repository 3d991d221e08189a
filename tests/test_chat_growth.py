"""The chat's memory while a very long answer streams: the text itself and its layout, and nothing that piles up."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from chat_process import ChatProcess

N_TOKENS = 10_000


@pytest.mark.slow
def test_memory_grows_by_the_text_alone(tmp_path: Path) -> None:
    answer = "\n\n".join(f"Part {i}: " + "sea *light* **storm** `rope` " * 15 for i in range(N_TOKENS // 60))
    chat = ChatProcess(tmp_path, script=[answer], tokens_per_s=200)
    try:
        chat.wait_for("Ask anything")
        chat.write("go\r")
        memory, end_s = [], time.monotonic() + N_TOKENS / 200
        while time.monotonic() < end_s:
            chat.drain(2.0)
            chat.write("x")
            memory.append(chat.resident_bytes())
    finally:
        chat.close()
    assert memory[-1] - memory[len(memory) // 4] < 64 << 20
