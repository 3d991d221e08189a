"""The chat in a process of its own, behind a pseudo-terminal: on a scripted runtime, or the program as it is.

python chat_process.py OPTIONS      the scripted one; OPTIONS is JSON: script, tokens_per_s, batch_s, env, start
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyte


class ChatProcess:
    """Starts the chat, writes keys, reads the screen's bytes.

    Parameters
    ----------
    arguments : sequence of str
        Of the installed program, with a real model among them; then ``screen`` knows what a terminal shows. Without
        any the scripted runtime runs with `options`.
    """

    def __init__(
        self, folder: Path, *, size: tuple[int, int] = (120, 40), arguments: Sequence[str] = (), **options: Any
    ) -> None:
        self.folder = folder
        (folder / "models").mkdir(parents=True, exist_ok=True)
        model = folder / "models" / "scripted.gguf"
        model.write_bytes(b"GGUF")
        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "TRIATTN_SESSIONS": str(folder / "sessions"),
            "TRIATTN_MODELS": str(folder / "models"),
            **options.pop("env", {}),
        }
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", size[1], size[0], 0, 0))
        program = [str(Path(sys.executable).parent / "triattn-local"), *arguments]
        if not arguments:
            program = [sys.executable, __file__, json.dumps({"model": str(model), **options})]
        self.process = subprocess.Popen(
            program,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            close_fds=True,
            start_new_session=True,
        )
        os.close(slave)
        self.seen = b""
        self._screen = pyte.Screen(*size)
        self._terminal = pyte.ByteStream(self._screen) if arguments else None  # takes longer than a program writes

    def read(self, timeout_s: float) -> bytes:
        """What comes within the time, as soon as something comes."""
        ready, _, _ = select.select([self.master], [], [], timeout_s)
        if not ready:
            return b""
        try:
            data = os.read(self.master, 1 << 16)
        except OSError:
            return b""
        self.seen = (self.seen + data)[-1_000_000:]
        if self._terminal is not None:
            self._terminal.feed(data)
        return data

    def screen(self) -> list[str]:
        """The lines that are shown now."""
        return [line.rstrip() for line in self._screen.display]

    def wait_until_shown(self, words: str, timeout_s: float = 120) -> None:
        """Until the words stand on the screen, on several lines perhaps."""
        end_s = time.perf_counter() + timeout_s
        while words not in " ".join(" ".join(self.screen()).split()):
            assert time.perf_counter() < end_s, "\n".join([f"{words!r} was not shown:", *self.screen()])
            self.read(0.5)

    def wait_for(self, words: str, timeout_s: float = 90) -> float:
        """Until the bytes come; returns the seconds."""
        start_s = time.perf_counter()
        wanted, tail = words.encode(), b""
        while time.perf_counter() - start_s < timeout_s:
            data = self.read(0.5)
            tail = (tail + data)[-len(data) - 4096 :]
            if wanted in tail:
                return time.perf_counter() - start_s
        raise AssertionError(f"{words!r} did not come within {timeout_s} s; the last was {tail[-2000:]!r}")

    def drain(self, seconds: float) -> None:
        """Let it write for some time."""
        end_s = time.perf_counter() + seconds
        while (left_s := end_s - time.perf_counter()) > 0:
            self.read(left_s)

    def wait_for_end(self, timeout_s: float) -> int:
        """Its exit code. A terminal reads to the end: a program that nobody reads cannot write its last lines."""
        end_s = time.perf_counter() + timeout_s
        while self.process.poll() is None:
            assert time.perf_counter() < end_s, f"still there after {timeout_s} s; the last was {self.seen[-2000:]!r}"
            self.read(0.05) or time.sleep(0.01)
        return self.process.returncode

    def write(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def main() -> None:
    from fake_plan import as_written
    from scripted_runtime import ScriptedRuntime

    from triattn_local import planning
    from triattn_local.engine import runtime
    from triattn_local.settings import Settings
    from triattn_local.tui.app import Start
    from triattn_local.tui.run import run_chat

    options = json.loads(sys.argv[1])
    ScriptedRuntime.script = options.get("script", ["The sea is wide."])
    ScriptedRuntime.tokens_per_s = options.get("tokens_per_s")
    ScriptedRuntime.batch_s = options.get("batch_s", 0.0)
    runtime.Runtime = ScriptedRuntime  # type: ignore[assignment, misc]
    planning.plan_run = as_written  # type: ignore[assignment]
    flags = {"ctx": 65536, "budget": 512, **options.get("flags", {})}
    run_chat(Settings.load(flags), Start(Path(options["model"]), **options.get("start", {})))


if __name__ == "__main__":
    main()
