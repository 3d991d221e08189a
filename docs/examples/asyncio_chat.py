"""Events of a chat in an event loop; a deadline cancels the answer like any other task.

python asyncio_chat.py MODEL.triattn.gguf "Tell me about the sea."
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from triattn_local import EvictionConfig, Runtime, RuntimeConfig, Text, in_thread


async def tell(rt: Runtime, question: str) -> None:
    messages = [{"role": "user", "content": question}]
    async for event in in_thread(lambda cancel: rt.chat(messages, max_tokens=200, cancel=cancel)):
        if isinstance(event, Text):
            print(event.text, end="", flush=True)


async def main() -> None:
    with Runtime.load(Path(sys.argv[1]), RuntimeConfig(n_ctx=8192), EvictionConfig(budget_tokens=1024)) as rt:
        try:
            await asyncio.wait_for(tell(rt, sys.argv[2]), timeout=60)
        except asyncio.TimeoutError:
            print("\n(stopped)")


asyncio.run(main())
