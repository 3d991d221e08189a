"""What the engine and the jobs tell the interface: one typed message an event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from textual.message import Message as TextualMessage

from triattn_local.config import EvictionConfig
from triattn_local.engine.runtime import RuntimeStats
from triattn_local.errors import TriattnError
from triattn_local.sessions import Message
from triattn_local.sessions.conversation import Ready, Retained, Settled, TooLongError


class EngineEvent(TextualMessage):
    """From the thread that owns the model."""


class Loaded(EngineEvent):
    """A model is there, and with it a context."""

    def __init__(
        self,
        path: Path,
        stats: RuntimeStats,
        eviction: EvictionConfig | None,
        why: str | None,
        suggested: Mapping[str, float],
    ) -> None:
        super().__init__()
        self.path, self.stats, self.eviction = path, stats, eviction
        self.why = why
        """what was chosen for it, and why, on one line"""
        self.suggested = suggested
        """how its file says that tokens are to be drawn, by the fields of SamplingConfig"""


class LoadFailed(EngineEvent):
    """There is no model now."""

    def __init__(self, path: Path, error: TriattnError) -> None:
        super().__init__()
        self.path, self.error = path, error


class Failed(EngineEvent):
    """Something that belongs to no answer went wrong."""

    def __init__(self, error: TriattnError) -> None:
        super().__init__()
        self.error = error


class TurnReady(EngineEvent):
    """The cache is where the turn starts from."""

    def __init__(self, answer: int, ready: Ready) -> None:
        super().__init__()
        self.answer, self.ready = answer, ready


class Reading(EngineEvent):
    """One more batch of the prompt is in the cache."""

    def __init__(self, n_done: int, n_total: int, tokens_per_s: float) -> None:
        super().__init__()
        self.n_done, self.n_total, self.tokens_per_s = n_done, n_total, tokens_per_s


class CacheRead(EngineEvent):
    """What the cache holds of a session; what every head holds only if somebody wants to know."""

    def __init__(
        self, session: str | None, stats: RuntimeStats, retained: Retained | None, snapshot_bytes: int
    ) -> None:
        super().__init__()
        self.session = session
        self.stats, self.retained, self.snapshot_bytes = stats, retained, snapshot_bytes


class TooLong(EngineEvent):
    """The conversation has no room in the context: nothing was read, there is no answer.

    Without ``oldest`` it would have ``n_after`` tokens; if these are too many too, it is the last message alone.
    """

    def __init__(self, answer: int, error: TooLongError, oldest: Sequence[Message], n_after: int) -> None:
        super().__init__()
        self.answer, self.error, self.oldest, self.n_after = answer, error, oldest, n_after


class Summarised(EngineEvent):
    """The model has summarised these messages; None: it was stopped, or failed."""

    def __init__(self, messages: Sequence[Message], text: str | None, error: TriattnError | None = None) -> None:
        super().__init__()
        self.messages, self.text, self.error = messages, text, error


class TurnEnded(EngineEvent):
    """The answer is stored as it is; with the error that ended it, if one did."""

    def __init__(self, answer: Message, error: TriattnError | None = None) -> None:
        super().__init__()
        self.answer, self.error = answer, error


class TurnSettled(EngineEvent):
    """The cache holds the conversation without the thinking."""

    def __init__(self, answer: int, settled: Settled) -> None:
        super().__init__()
        self.answer, self.settled = answer, settled
