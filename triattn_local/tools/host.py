"""Talks to the servers, in a thread of its own: started, asked what they offer, called, ended.

Whatever a server does, a call ends: with what the tool says, or with what went wrong, both as a text for the model. One
that does not answer in time is ended with its server, which the next call starts anew. A server may ask for nothing: it
is given no model to sample from, no files, and nobody to question.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from ..errors import TriattnError
from .servers import Server

START_S = 60.0
"""until a server must have said what it offers: ``npx`` fetches it first"""
MOST_CHARS = 200_000
"""of a result"""
MOST_TOOLS = 128
"""of a server"""
_CLOSE_S = 8.0

State = Literal["starting", "ready", "failed", "ended"]


@dataclass(frozen=True)
class Tool:
    """What a model may call."""

    name: str
    """for the model: the tool's own, unless two servers have it"""
    server: str
    own_name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema"""
    place: str
    """the server's command or address"""

    def as_function(self) -> dict[str, Any]:
        """As OpenAI's protocol has it."""
        about = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": about}


@dataclass(frozen=True)
class Result:
    """What came of a call."""

    text: str
    failed: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class ServerState:
    """How a server is."""

    server: Server
    state: State
    problem: str = ""
    """why it failed"""


class Halt(Protocol):
    """threading.Event is one."""

    def is_set(self) -> bool: ...


class ToolHost:
    """The servers of a chat. Its methods may be called by any thread, and only ``offered`` and ``close`` wait."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._keepers = [_Keeper(server) for server in servers]
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __bool__(self) -> bool:
        return bool(self._keepers)

    def start(self) -> None:
        """Start all servers, in the background."""
        if self._loop is None and self._keepers:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="tools", daemon=True)
            self._thread.start()
            for keeper in self._keepers:
                asyncio.run_coroutine_threadsafe(keeper.begin(), self._loop)

    @property
    def is_starting(self) -> bool:
        return any(keeper.state == "starting" for keeper in self._keepers)

    def states(self) -> list[ServerState]:
        return [ServerState(keeper.server, keeper.state, keeper.problem) for keeper in self._keepers]

    def tools(self) -> list[Tool]:
        """What the servers that have started offer, by names that OpenAI's protocol takes, no two the same."""
        own = [tool.own_name for keeper in self._keepers for tool in keeper.tools]
        tools: dict[str, Tool] = {}
        for keeper in self._keepers:
            for tool in keeper.tools:
                plain = tool.own_name if own.count(tool.own_name) == 1 else f"{tool.server}_{tool.own_name}"
                plain = name = re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:60]
                n = 1
                while name in tools:
                    n += 1
                    name = f"{plain}_{n}"
                tools[name] = Tool(name, tool.server, tool.own_name, tool.description, tool.parameters, tool.place)
        return list(tools.values())

    def offered(self, halt: Halt | None = None) -> list[Tool]:
        """The same, once no server is starting any more, or somebody says halt."""
        while self.is_starting and not (halt is not None and halt.is_set()):
            time.sleep(0.05)
        return self.tools()

    def call(self, tool: Tool, arguments: Mapping[str, Any]) -> Future[Result]:
        """Call a tool. The future never raises, but that it can be cancelled: then the server is told, or ended."""
        assert self._loop is not None, "start first"
        keeper = next(keeper for keeper in self._keepers if keeper.server.name == tool.server)
        return asyncio.run_coroutine_threadsafe(keeper.call(tool.own_name, arguments), self._loop)

    def close(self) -> None:
        """End all servers."""
        if self._loop is None or self._thread is None:
            return

        async def end() -> None:
            await asyncio.wait_for(asyncio.gather(*(keeper.end() for keeper in self._keepers)), _CLOSE_S)

        with contextlib.suppress(Exception):  # what does not end now ends with this process, which has its pipes
            asyncio.run_coroutine_threadsafe(end(), self._loop).result(_CLOSE_S + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(1)
        self._loop = None


class _Keeper:
    """One server, from life to life. Lives in the loop of the host."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.state: State = "starting"
        self.problem = ""
        self.tools: list[Tool] = []
        self._client: Any = None
        self._complaints: TextIO | None = None
        self._task: asyncio.Task[None] | None = None
        self._leave = asyncio.Event()
        self._known = asyncio.Event()
        """it is known whether this life has begun"""

    async def begin(self) -> None:
        """A new life, unless there is one, up to where it is known whether it has begun."""
        if self._task is not None and self._leave.is_set():
            await asyncio.wait([self._task])
        if self._task is None or self._task.done():
            self.state, self.problem = "starting", ""
            self._leave, self._known = asyncio.Event(), asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._live(self._leave, self._known))
        await self._known.wait()

    def leave(self) -> None:
        """End this life: the SDK closes the server's stdin, and kills it if that does not help."""
        self._client = None
        self._leave.set()

    async def end(self) -> None:
        """The same, and wait for it."""
        self.leave()
        if self._task is not None and not (await asyncio.wait([self._task], timeout=_CLOSE_S - 1))[0]:
            self._task.cancel()

    async def _live(self, leave: asyncio.Event, known: asyncio.Event) -> None:
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
            self._complaints = complaints
            try:
                async with _connected(self.server, complaints) as client:
                    self.tools = await asyncio.wait_for(self._list(client), START_S)
                    self._client, self.state = client, "ready"
                    known.set()
                    await leave.wait()
                self.state = "ended"
            except Exception as error:
                self.state, self.problem = "failed", self._why(error)
            finally:
                self._client = None
                known.set()

    def _last_words(self) -> str:
        """What the program said last on stderr; after a break, nothing or '; it said: ...'."""
        if self._complaints is None or self._complaints.closed:
            return ""
        self._complaints.seek(0)
        lines = [line.strip() for line in self._complaints.read().splitlines() if line.strip()]
        return f"; it said: {lines[-1][:300]}" if lines else ""

    def _why(self, error: BaseException) -> str:
        first = _first(error)
        if isinstance(first, TriattnError):
            return first.what + (f"; {first.fix}" if first.fix else "")
        ended = self.server.url is None and _is_closed(error)
        return f"{'it ended at once' if ended else _words(error)}{self._last_words()}"

    async def _list(self, client: Any) -> list[Tool]:
        found: list[Any] = []
        cursor = None
        while len(found) < MOST_TOOLS:
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if not cursor:
                break
        return [
            Tool(
                tool.name,
                self.server.name,
                tool.name,
                (tool.description or tool.title or "")[:4000],
                tool.input_schema or {"type": "object", "properties": {}},
                self.server.place,
            )
            for tool in found[:MOST_TOOLS]
        ]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Result:
        start_s = time.monotonic()

        def failed(what: str) -> Result:
            return Result(what, True, time.monotonic() - start_s)

        if self._client is None:
            await self.begin()
        client = self._client
        if client is None:
            return failed(f"The server {self.server.name} is not there: {self.problem or 'it was ended'}")
        calling = asyncio.ensure_future(client.call_tool(name, dict(arguments)))
        try:
            result = await asyncio.wait_for(asyncio.shield(calling), self.server.timeout_s)
        except asyncio.TimeoutError:
            calling.cancel()
            self.leave()
            return failed(f"The tool did not answer within {self.server.timeout_s:g} s; its server was ended.")
        except asyncio.CancelledError:
            calling.cancel()
            self.leave()  # it need not heed that, and would go on with what nobody wants
            raise
        except Exception as error:
            if not _is_closed(error):
                return failed(f"The tool failed: {_words(error)}")
            self.leave()
            return failed(f"The tool failed: its server ended amid the call{self._last_words()}.")
        text = _cut(_text_of(result))
        return Result(text, bool(result.is_error), time.monotonic() - start_s)


@contextlib.asynccontextmanager
async def _connected(server: Server, complaints: TextIO) -> AsyncIterator[Any]:
    """The SDK's client of a server that has answered; the server is ended behind it."""
    try:
        import httpx2
        from mcp import Client, StdioServerParameters, stdio_client
        from mcp.client.streamable_http import streamable_http_client
    except ImportError:
        raise TriattnError("the package mcp is missing", fix="pip install 'triattn-local[tools]'") from None
    for name in ("mcp", "httpx2", "httpx"):  # tracebacks of what is told here in a line
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    async with contextlib.AsyncExitStack() as stack:
        if server.url is not None:
            http = httpx2.AsyncClient(
                headers=dict(server.headers), timeout=httpx2.Timeout(30, read=server.timeout_s + 30)
            )
            await stack.enter_async_context(http)
            transport = streamable_http_client(server.url, http_client=http)
        else:
            program = shutil.which(server.command[0], path=server.env.get("PATH"))
            if program is None:
                raise TriattnError(f"there is no program {server.command[0]!r}")
            parameters = StdioServerParameters(
                command=sys.executable,
                args=["-I", "-S", str(Path(__file__).with_name("relay.py")), program, *server.command[1:]],
                env=dict(server.env),
                cwd=server.cwd,
                encoding_error_handler="replace",
            )
            transport = stdio_client(parameters, errlog=complaints)
        yield await stack.enter_async_context(Client(transport, cache=None))


def _first(error: BaseException) -> BaseException:
    """Of a group of errors the one that tells."""
    while getattr(error, "exceptions", None):
        error = error.exceptions[0]  # type: ignore[attr-defined]
    return error


def _is_closed(error: BaseException) -> bool:
    return "closed" in str(_first(error)).lower() or type(_first(error)).__name__ in (
        "ClosedResourceError",
        "BrokenResourceError",
        "ConnectError",
    )


def _words(error: BaseException) -> str:
    first = _first(error)
    if isinstance(first, (asyncio.TimeoutError, TimeoutError)):
        return "it did not answer in time"
    return (str(first) or type(first).__name__)[:2000]


def _text_of(result: Any) -> str:
    parts = []
    for block in result.content or ():
        resource: Any = getattr(block, "resource", None)
        if block.type == "text":
            parts.append(block.text)
        elif block.type in ("image", "audio"):
            parts.append(
                f"[{block.type}, {block.mime_type}, {len(block.data) * 3 // 4:,} bytes: not shown to the model]"
            )
        elif getattr(resource, "text", None) is not None:
            parts.append(f"{resource.uri}:\n{resource.text}")
        else:
            parts.append(f"[{block.type}: {getattr(resource or block, 'uri', '')}]")
    if not parts and result.structured_content is not None:
        parts.append(json.dumps(result.structured_content, ensure_ascii=False))
    return "\n".join(parts)


def _cut(text: str) -> str:
    if len(text) <= MOST_CHARS:
        return text
    note = f"[cut: the result has {len(text):,} characters, of which these are the first {MOST_CHARS:,}]"
    return f"{text[:MOST_CHARS]}\n{note}"
