"""Which servers there are: tables ``[mcp.NAME]`` of the config file, and what ``--mcp`` says."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..support.paths import expanded

TIMEOUT_S = 60.0
"""that a call may take"""
_KEYS = ("command", "args", "env", "cwd", "url", "headers", "timeout")
_URL = re.compile(r"https?://[^\s/]+", re.IGNORECASE)
_STARTERS = ("npx", "uvx", "node", "python", "python3", Path(sys.executable).name)
_COMMON = re.compile(r"(?:mcp-server-|server-|mcp-)")


@dataclass(frozen=True)
class Server:
    """A program that is started, or an address that is asked."""

    name: str
    command: tuple[str, ...] = ()
    """program and arguments; empty for an address"""
    url: str | None = None
    """of streamable HTTP"""
    env: Mapping[str, str] = field(default_factory=dict)
    """variables for the program, beside those that every program needs; of the others it gets none"""
    headers: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    timeout_s: float = TIMEOUT_S
    """seconds that a call may take"""

    @property
    def place(self) -> str:
        """What it is, on one line."""
        return self.url or shlex.join(self.command)


def from_tables(tables: Mapping[str, Any], where: str) -> list[Server]:
    """The servers of a config file.

    Raises
    ------
    UsageError
        A table that is none, a key that is unknown, or a value that cannot be taken.
    """
    if not isinstance(tables, Mapping) or not all(isinstance(table, Mapping) for table in tables.values()):
        raise UsageError("are tables, such as [mcp.files]", where=f"mcp in {where}")
    return [_server(name, table, f"[mcp.{name}] of {where}") for name, table in tables.items()]


def from_words(words: Sequence[str]) -> list[Server]:
    """The servers of ``--mcp``: each an address, or a command line. They are named by the last word that tells."""
    servers: list[Server] = []
    for word in words:
        server = _of_word(word)
        taken = [other.name for other in servers]
        name, n = server.name, 1
        while name in taken:
            n += 1
            name = f"{server.name}{n}"
        servers.append(Server(name, server.command, server.url))
    return servers


def _of_word(word: str) -> Server:
    if _URL.match(word.strip()):
        return Server(_name(word.strip().split("//")[1].split("/")[0].split(":")[0]), url=word.strip())
    try:
        parts = shlex.split(word)
    except ValueError as error:
        raise UsageError(f"{word!r} is no command line: {error}", where="--mcp") from None
    if not parts:
        raise UsageError(
            "names no server", where="--mcp", fix="give a command line, or an address that begins with http"
        )
    telling = [part for part in parts if not part.startswith("-") and Path(part).name not in _STARTERS]
    return Server(_name(Path((telling or parts)[0]).stem), tuple(_home(part) for part in parts))


def _name(text: str) -> str:
    return _COMMON.sub("", re.sub(r"[^A-Za-z0-9_-]+", "-", text)).strip("-") or "tools"


def _home(word: str) -> str:
    """A shell does that for who writes to it; nobody does in a config file."""
    return str(expanded(word)) if word == "~" or word.startswith("~/") else word


def _server(name: str, table: Mapping[str, Any], where: str) -> Server:
    for key in table:
        if key not in _KEYS:
            raise UsageError(f"{key!r} is no key of a server", where=where, fix=f"the keys are {', '.join(_KEYS)}")
    if ("command" in table) == ("url" in table):
        raise UsageError("has either a command or a url", where=where, fix='such as command = "npx"')
    command: tuple[str, ...] = ()
    url: str | None = None
    if "url" in table:
        url = table["url"]
        if not isinstance(url, str) or not _URL.match(url):
            raise UsageError(f"{url!r} is no address that begins with http", where=f"url in {where}")
    else:
        first = table["command"]
        words = [first] if isinstance(first, str) else first
        command = tuple(
            _home(word)
            for word in [*_words(words, f"command in {where}"), *_words(table.get("args", []), f"args in {where}")]
        )
        if not command or not command[0]:
            raise UsageError("is empty", where=f"command in {where}")
    timeout = table.get("timeout", TIMEOUT_S)
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 86400:
        raise UsageError(f"{timeout!r} is no number of seconds above 0", where=f"timeout in {where}")
    cwd = table.get("cwd")
    if cwd is not None and (not isinstance(cwd, str) or not cwd.strip() or "\0" in cwd):
        raise UsageError(f"{cwd!r} is no folder", where=f"cwd in {where}")
    return Server(
        name,
        command,
        url,
        env=_texts(table.get("env", {}), f"env in {where}"),
        headers=_texts(table.get("headers", {}), f"headers in {where}"),
        cwd=expanded(cwd) if cwd is not None else None,
        timeout_s=float(timeout),
    )


def _words(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(word, str) and "\0" not in word for word in value):
        raise UsageError(f"{value!r} is no list of texts", where=where)
    return list(value)


def _texts(value: object, where: str) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(text, str) and "\0" not in text for text in value.values()):
        raise UsageError(f"{value!r} is no table of texts", where=where)
    return dict(value)
