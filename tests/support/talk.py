"""A conversation of tests: it is asked, and says what was read for the answer."""

from __future__ import annotations

import threading
from pathlib import Path

from scripted_runtime import ScriptedRuntime

from triattn_local.engine.runtime import Runtime
from triattn_local.sessions import Message, SnapshotCache
from triattn_local.sessions.conversation import Answered, Conversation, Event, Piece, Ready, Settled


class Talk:
    """A conversation as a session would keep it: messages with ids and parents."""

    def __init__(self, rt: Runtime | ScriptedRuntime, folder: Path | None = None, memory_bytes: int = 1 << 28) -> None:
        self.snapshots = SnapshotCache(folder, memory_bytes=memory_bytes, disk_bytes=1 << 28)
        self.conversation = Conversation(rt, self.snapshots)  # type: ignore[arg-type]
        self.path: list[Message] = []
        self.n_messages = 0
        self.system = "Be brief."
        self.ready: Ready
        self.answered: Answered
        self.settled: Settled | None = None

    def message(self, role: str, content: str, thinking: str = "") -> Message:
        self.n_messages += 1
        return Message(self.n_messages, "s", None, role, content, thinking)  # type: ignore[arg-type]

    def ask(self, text: str, **options: object) -> Message:
        self.path.append(self.message("user", text))
        return self.answer(**options)

    def answer(self, **options: object) -> Message:
        """Answer the last message of the path, and settle."""
        events = list(self.conversation.respond("s", self.system, self.path, **options))  # type: ignore[arg-type]
        assert isinstance(events[0], Ready)
        assert isinstance(events[-1], Answered)
        self.ready, self.answered = events[0], events[-1]
        parts = {"thinking": "", "content": ""}
        for event in events:
            if isinstance(event, Piece):
                parts[event.kind] += event.text
        answer = self.message("assistant", parts["content"], parts["thinking"])
        self.path.append(answer)
        self.settle()
        return answer

    def settle(self, cancel: threading.Event | None = None) -> list[Event]:
        events = list(self.conversation.settle("s", self.system, self.path, cancel=cancel))
        last = events[-1] if events else None
        self.settled = last if isinstance(last, Settled) else None
        return events

    @property
    def n_read(self) -> int:
        """Tokens of the prompt that the answer had to wait for."""
        return self.answered.n_prompt - self.answered.n_cached
