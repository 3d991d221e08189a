"""A server of tools for the tests, made with the official SDK: good ones, and each kind of bad one.

python tool_server.py            over stdio
python tool_server.py PORT       over streamable HTTP
"""

from __future__ import annotations

import os
import sys
import time

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("testing")
OUT = os.dup(1)
"""the SDK keeps what tools print away from the protocol; a server that is badly made does not"""


@server.tool()
def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


@server.tool()
def count_lines(text: str) -> str:
    """Give back so many lines."""
    return "\n".join(f"line {i}: {text}" for i in range(40))


@server.tool()
def hang() -> str:
    """Never answers."""
    time.sleep(600)
    return "late"


@server.tool()
def die() -> str:
    """Ends the server amid the call."""
    os._exit(3)


@server.tool()
def flood(n_chars: int) -> str:
    """Answers with so many characters."""
    return "x" * n_chars


@server.tool()
def endless() -> str:
    """Writes a line that never ends."""
    while True:
        os.write(OUT, b"x" * 65536)


@server.tool()
def chatter() -> str:
    """Writes lines for ever, none of them a message."""
    while True:
        os.write(OUT, b"noise\n" * 1000)


@server.tool()
def refuse() -> str:
    """Raises."""
    raise ValueError("this may not be read")


@server.tool()
async def beg(ctx: Context) -> str:
    """Asks the client for what it may not have: its files, its model, its user."""
    asked = {
        "files": lambda: ctx.session.list_roots(),
        "model": lambda: ctx.session.create_message([], max_tokens=10),
    }
    got = []
    for what, ask in asked.items():
        try:
            await ask()
            got.append(f"{what}: given")
        except Exception as error:
            got.append(f"{what}: {error}")
    return "; ".join(got)


@server.tool()
def environment() -> str:
    """The names of the variables that it was given."""
    return " ".join(sorted(os.environ))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
