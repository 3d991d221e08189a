"""Stands between the SDK and a server that is a program, in a process of its own: hands on what it says, line by line.

The SDK keeps a line until it is whole, however long it grows, and reads lines as fast as they come. A server that runs
wild would take the chat's memory and its thread; here it is ended, with a word about why on stderr.

    python relay.py PROGRAM ARGUMENT...
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from typing import IO

MOST_BYTES = 16 << 20
"""of a line"""
WITHIN_S = 10.0
MOST_LINES = 20_000
"""within that time"""
MOST_COMPLAINTS = 64 << 10
"""bytes of its stderr that are kept"""


def main(command: list[str]) -> int:
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        _say(f"{command[0]}: {error.strerror}")
        return 127
    assert child.stdout is not None
    assert child.stderr is not None
    threading.Thread(target=_complain, args=(child.stderr,), daemon=True).start()
    began_s, n_lines = time.monotonic(), 0
    while line := child.stdout.readline(MOST_BYTES):
        now_s = time.monotonic()
        if now_s - began_s > WITHIN_S:
            began_s, n_lines = now_s, 0
        n_lines += 1
        if not line.lstrip().startswith(b"{") and line.endswith(b"\n"):
            line = b""  # what is printed for people, and no message
        if n_lines > MOST_LINES or (len(line) == MOST_BYTES and not line.endswith(b"\n")):
            child.kill()
            what = (
                f"more than {MOST_LINES:,} lines in {WITHIN_S:.0f} s"
                if n_lines > MOST_LINES
                else "a line that does not end"
            )
            _say(f"it was ended, for it sent {what}")
            return 1
        while line:
            line = line[os.write(1, line) :]
    return child.wait()


def _complain(pipe: IO[bytes]) -> None:
    left = MOST_COMPLAINTS
    while part := os.read(pipe.fileno(), 4096):
        with contextlib.suppress(OSError):
            os.write(2, part[:left])
        left = max(0, left - len(part))


def _say(what: str) -> None:
    os.write(2, f"{what}\n".encode("utf-8", "replace"))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BrokenPipeError:  # the chat is gone
        sys.exit(1)
