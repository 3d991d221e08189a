"""A process that is kept alive: started, waited for until it answers, started again when it crashes, and stopped.

Knows nothing of models: a command, an environment, and a question whether it is ready.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import json
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Literal

from ..errors import DoesNotFitError, TriattnError, UsageError

GRACE_S = 10.0
"""from the first request to stop until it is killed"""

WITHIN_S = 600.0
"""crashes that are further apart than this are not counted together"""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL_S = 0.1
_STACK_BYTES = 256 << 20  # of address space for each thread: only what is used takes memory
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing may be
_KEPT_LINES = 200
_LAST_LINES = 5

Level = Literal["debug", "info", "warn", "error"]
_LEVELS: dict[object, Level] = {"debug": "debug", "info": "info", "warn": "warn", "warning": "warn", "error": "error"}


@dataclass(frozen=True)
class Line:
    """One line of the log."""

    level: Level
    text: str

    @classmethod
    def read(cls, raw: str) -> Line:
        """A line as llama-server writes it with --log-jsonl; what is none is text of a library below it."""
        try:
            entry = json.loads(raw)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            return cls("info", raw.rstrip())
        # those without words are figures for programs
        return cls(_LEVELS.get(entry.get("level"), "info"), str(entry.get("msg", "")).rstrip())


class ServerProcess:
    """One process, and what it said last. Its log is read in a thread of its own."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Callable[[Line], None]) -> None:
        self.lines: collections.deque[Line] = collections.deque(maxlen=_KEPT_LINES)
        self._process = subprocess.Popen(
            list(command),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            # Ctrl-C in a terminal is sent to the whole group: it is to come from here, once
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, log), daemon=True)
        self._reader.start()

    def _read(self, pipe: IO[str], log: Callable[[Line], None]) -> None:
        for raw in pipe:
            line = Line.read(raw)
            if line.text:
                self.lines.append(line)
                log(line)

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit code, once its log is read to the end; None if it still runs after the time."""
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        self._reader.join(GRACE_S)
        return code

    def end(self) -> None:
        """Ask it to end, and kill it if it does not."""
        self.send(signal.SIGTERM)
        if self.wait(GRACE_S) is None:
            self.send(signal.SIGKILL)
            self.wait()

    def send(self, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signum)


class Supervisor:
    """Keeps one child running until a signal comes.

    Parameters
    ----------
    start : callable
        Makes a new child.
    is_ready : callable
        Whether the child answers.
    log : callable
        Takes a line of our own.
    max_restarts : int
        Crashes within ten minutes that are mended by starting again.
    start_s : float
        Seconds until a child must answer.
    """

    def __init__(
        self,
        start: Callable[[], ServerProcess],
        is_ready: Callable[[], bool],
        log: Callable[[Line], None],
        max_restarts: int,
        *,
        start_s: float = 600.0,
    ) -> None:
        self._start = start
        self._is_ready = is_ready
        self._log = log
        self._max_restarts = max_restarts
        self._start_s = start_s
        self._child: ServerProcess | None = None
        self._stopped_by: int | None = None

    def run(self, ready: Callable[[int], None]) -> int | None:
        """Run until a signal comes, whose number is returned; None if the child ended by itself without an error.

        Parameters
        ----------
        ready : callable
            Called with the pid each time that the child begins to answer.

        Raises
        ------
        TriattnError
            It does not start, does not answer in time, or crashes too often.
        """
        crashes: collections.deque[float] = collections.deque()
        has_run = False
        with self._forwarding():
            while not self._is_stopped():
                child = self._child = self._start()
                if self._is_stopped():  # while it was made
                    child.send(signal.SIGTERM)
                if self._wait_ready(child):
                    ready(child.pid)
                    has_run = True
                code = child.wait()
                if not has_run and code is not None and not self._is_stopped():
                    raise why_it_ended(child, code)
                if self._is_stopped():
                    break
                if code == 0:
                    return None
                now = time.monotonic()
                crashes.append(now)
                while now - crashes[0] > WITHIN_S:
                    crashes.popleft()
                if len(crashes) > self._max_restarts:
                    raise TriattnError(
                        f"crashed {len(crashes)} times within {WITHIN_S / 60:.0f} minutes, at last it {_ended(code)}",
                        where="llama-server",
                        fix="its log above says why; --restarts allows more",
                    )
                self._log(Line("error", f"llama-server {_ended(code)}; starting it again"))
        return self._stopped_by

    def _is_stopped(self) -> bool:
        return self._stopped_by is not None

    def _wait_ready(self, child: ServerProcess) -> bool:
        """Wait until it answers. False if it ended, or is asked to."""
        deadline_s = time.monotonic() + self._start_s
        while not self._is_ready():
            if child.wait(_POLL_S) is not None or self._is_stopped():
                return False
            if time.monotonic() > deadline_s:
                child.end()
                said = " | ".join(line.text for line in list(child.lines)[-_LAST_LINES:]) or "nothing"
                raise TriattnError(
                    f"runs and does not answer after {self._start_s:.0f} s; it said at last: {said}",
                    where="llama-server",
                    fix="--start-timeout gives it longer",
                )
        return True

    @contextlib.contextmanager
    def _forwarding(self) -> Iterator[None]:
        """Signals go to the child; it is killed if it does not end, or if Ctrl-C comes twice."""

        def forward(signum: int, _frame: object) -> None:
            child = self._child
            again = self._stopped_by is not None
            self._stopped_by = self._stopped_by or signum
            if child is None:
                return
            child.send(signal.SIGKILL if again else signal.SIGTERM)
            if not again:
                timer = threading.Timer(GRACE_S, child.send, (signal.SIGKILL,))
                timer.daemon = True
                timer.start()

        before = {signum: signal.signal(signum, forward) for signum in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
            if self._child is not None and self._child.wait(0) is None:
                self._child.send(signal.SIGKILL)
                self._child.wait()


def why_it_ended(child: ServerProcess, code: int) -> TriattnError:
    """What a child that did not come up said about it."""
    errors = [line.text for line in child.lines if line.level == "error"]
    said = " ".join(line.text for line in child.lines)
    if "bind" in said and "HTTP server" in said:
        return UsageError("cannot be listened on: another program may have it", where="--port", fix="give --port 0")
    if any(words in said for words in ("out of memory", "failed to allocate", "unable to allocate")):
        return DoesNotFitError(
            "the model or its cache does not fit the memory",
            where="llama-server",
            fix="give a smaller --budget, --slots or --gpu-layers; its log above has the numbers",
        )
    return TriattnError(f"{_ended(code)}: {errors[0] if errors else 'no reason was given'}", where="llama-server")


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent is killed: a model must not stay in the memory without its keeper.

    And for deep stacks, which the threads that take requests begin with: the patterns of some tokenizers call
    themselves for each letter of a long word, and one such request would end those of all others.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY and 0 <= soft < _STACK_BYTES:
        resource.setrlimit(resource.RLIMIT_STACK, (_STACK_BYTES if hard < 0 else min(hard, _STACK_BYTES), hard))
    _LIBC.prctl(1, signal.SIGTERM)
