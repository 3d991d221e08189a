"""What the user allows: each tool is asked for until it is said for good that it may, or may not, be called.

What was said holds for a tool of this server as it described itself then. A server that comes from somewhere else, or a
tool that suddenly says that it does something else, is asked for anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from .host import Tool

Word = Literal["ask", "always", "never"]


class Permissions:
    """Remembers, by what it is given.

    Parameters
    ----------
    read : callable
        Gives what ``write`` was given last: a mapping that JSON can hold.
    write : callable
        Keeps it.
    """

    def __init__(self, read: Callable[[], Mapping[str, Any]], write: Callable[[Mapping[str, Any]], None]) -> None:
        self._read, self._write = read, write

    def of(self, tool: Tool) -> Word:
        """What was said of a tool; ``ask`` if nothing was."""
        said = self._read().get(f"{tool.server}/{tool.own_name}")
        if isinstance(said, Mapping) and said.get("seal") == _seal(tool) and said.get("word") in ("always", "never"):
            return said["word"]  # type: ignore[no-any-return]
        return "ask"

    def say(self, tool: Tool, word: Word) -> None:
        """From now on."""
        said = dict(self._read())
        said.pop(f"{tool.server}/{tool.own_name}", None)
        if word != "ask":
            said[f"{tool.server}/{tool.own_name}"] = {"word": word, "seal": _seal(tool)}
        self._write(said)


def _seal(tool: Tool) -> str:
    told = json.dumps([tool.place, tool.own_name, tool.description, tool.parameters], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
