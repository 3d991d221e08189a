"""The tools of the chat: what the model is told of, what the user allows, and how much of a result the model reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from triattn_local.support.stop import Stop
from triattn_local.tools.host import Result, Tool, ToolHost
from triattn_local.tools.permissions import Permissions, Word

MOST_IN_A_ROW = 25
"""calls before the user has to say a word: a small model calls the same tool for ever"""
SHARE = 4
"""of the context, one part for a result"""
LEAST_TOKENS = 64


class Toolbox:
    """Servers and permissions together.

    Parameters
    ----------
    count_tokens : callable
        Tokens of a text; None without a model.
    """

    def __init__(self, host: ToolHost, permissions: Permissions, count_tokens: Callable[[str], int | None]) -> None:
        self.host, self.permissions = host, permissions
        self._count_tokens = count_tokens

    def functions(self, stop: Stop) -> list[dict[str, Any]]:
        """What the model is told of, once it is known: all but what it may never call."""
        return [tool.as_function() for tool in self.host.offered(stop) if self.word(tool) != "never"]

    def find(self, name: str) -> Tool | None:
        return next((tool for tool in self.host.tools() if tool.name == name), None)

    def word(self, tool: Tool) -> Word:
        return self.permissions.of(tool)

    def cut(self, result: Result, n_ctx: int) -> str:
        """The text for the model: of a long one the beginning, and how much there is."""
        text, most = result.text or "(nothing)", max(LEAST_TOKENS, n_ctx // SHARE)
        n_tokens = self._count_tokens(text)
        if n_tokens is None or n_tokens <= most:
            return text
        n_chars = len(text) * most // n_tokens
        size = f"{len(text):,} characters, {n_tokens:,} tokens"
        return f"{text[:n_chars]}\n[cut: the result has {size}; these are the first {n_chars:,} characters]"


def spelled(name: str, arguments: Mapping[str, Any], width: int = 60) -> str:
    """A call on one line."""
    shown = ", ".join(f"{key}={_short(value)}" for key, value in arguments.items())
    return f"{name}({shown if len(shown) <= width else shown[: width - 1] + '…'})"


def _short(value: object) -> str:
    return " ".join(repr(value).split())
