"""Bytes of tokens to text that can be shown: whole characters, and nothing that may still become a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes of tokens to text: whole characters only, and nothing of a stop text."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(s for s in stop if s)
        self._held = ""  # the end of what came, which may be the beginning of a stop text
        self.stopped = False

    @property
    def is_whole(self) -> bool:
        """Whether the last character is complete."""
        return not self._decoder.getstate()[0]

    def push(self, data: bytes) -> str:
        return self._cut(self._held + self._decoder.decode(data))

    def flush(self) -> str:
        if self.stopped:
            return ""
        rest = self._held + self._decoder.decode(b"", True)
        self._held = ""
        return rest

    def _cut(self, text: str) -> str:
        found = [i for i in (text.find(s) for s in self._stop) if i >= 0]
        if found:
            self.stopped = True
            return text[: min(found)]
        n_held = max((overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - n_held :]
        return text[: len(text) - n_held]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
