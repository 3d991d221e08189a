"""Places in which a program may be started, none of them friendly: what each does to a child before it runs.

Being root is no excuse: rights that only root has are dropped in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pty
import resource
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triattn_local.sessions import SessionStore

PROGRAM = Path(sys.executable).parent / "triattn-local"

NAMELESS = (
    "import os, pwd, sys\n"
    "def nobody(uid): raise KeyError(f'getpwuid(): uid not found: {uid}')\n"
    "pwd.getpwuid = nobody\n"
    "from triattn_local.cli import main\n"
    "main()\n"
)
"""the program, run by a user that no list of users knows, as containers do"""

_LIBC = ctypes.CDLL(None)
_STARTING = threading.Lock()
"""one child at a time is started: between fork and exec no other thread may hold a lock of Python's"""

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 24, 1, 2


def drop_rights() -> None:
    """What is executed next may enter no folder that its owner may not."""
    if sys.platform == "linux" and os.geteuid() == 0:
        for right in (_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH):
            _LIBC.prctl(_PR_CAPBSET_DROP, right, 0, 0, 0)


@dataclass
class Place:
    """One environment; its folder holds ``models`` with the models m and s, and ``home``."""

    folder: Path
    variables: dict[str, str | None] = field(default_factory=dict)
    """to set; None to take away"""
    in_child: list[Callable[[], object]] = field(default_factory=lambda: [drop_rights])
    stdin: Any = subprocess.DEVNULL
    stdout: Any = subprocess.PIPE
    stderr: Any = subprocess.PIPE
    program: tuple[str, ...] = (str(PROGRAM),)
    undo: list[Callable[[], object]] = field(default_factory=list)
    heard: bool = True
    """whether anybody hears what it says on stderr"""

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def environment(self) -> dict[str, str]:
        """Nothing of the machine's own, and no network."""
        base = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "TRIATTN_MODELS": str(self.models),
            "TRIATTN_SESSIONS": str(self.folder / "sessions"),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PIP_NO_INDEX": "1",
            "HF_HUB_OFFLINE": "1",
            **{name: value for name, value in os.environ.items() if name in ("LD_LIBRARY_PATH", "VIRTUAL_ENV")},
        }
        merged = {**base, **self.variables}
        return {name: value for name, value in merged.items() if value is not None}

    def run(self, words: list[str | bytes], timeout_s: float = 120) -> tuple[int, str, str]:
        """(exit code, stdout, stderr); a code below 0 is a signal."""

        def before() -> None:
            for act in self.in_child:
                act()

        with _STARTING:
            child = subprocess.Popen(
                [*self.program, *words],
                env=self.environment(),
                stdin=self.stdin,
                stdout=self.stdout,
                stderr=self.stderr,
                preexec_fn=before,
                cwd=self.folder,
            )
        try:
            said = child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise
        out, err = ((text or b"").decode("utf-8", "replace") for text in said)
        return child.returncode, out, err

    def talk(self, words: list[str | bytes], timeout_s: float = 60) -> tuple[int, str]:
        """(exit code, all that was drawn) of a program at a terminal, which is left by Ctrl+Q as soon as it draws."""
        master, slave = pty.openpty()
        self.stdin = self.stdout = self.stderr = slave
        with _STARTING:
            child = subprocess.Popen(
                [*self.program, *words],
                env={"TERM": "xterm-256color", **self.environment()},
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=lambda: [act() for act in self.in_child],
                cwd=self.folder,
            )
        os.close(slave)
        screen, end, asked_s = b"", time.monotonic() + timeout_s, 0.0
        try:
            while time.monotonic() < end:
                if select.select([master], [], [], 0.2)[0]:
                    try:
                        screen += os.read(master, 65536)
                    except OSError:  # it has ended
                        break
                elif child.poll() is not None:
                    break
                if b"\x1b[?1049h" in screen and time.monotonic() - asked_s > 1:
                    asked_s = time.monotonic()
                    os.write(master, b"\x11")
            return child.wait(timeout=10), screen.decode("utf-8", "replace")
        finally:
            child.kill()
            child.wait()
            os.close(master)


def set_(**variables: str | None) -> Callable[[Place], None]:
    return lambda place: place.variables.update(variables)


def first(*acts: Callable[[], object]) -> Callable[[Place], None]:
    return lambda place: place.in_child.extend(acts)


def close(*numbers: int) -> Callable[[Place], None]:
    """Without these file descriptors at all."""

    def act() -> None:
        for number in numbers:
            with contextlib.suppress(OSError):
                os.close(number)

    def make(place: Place) -> None:
        place.in_child.append(act)
        place.heard = place.heard and 2 not in numbers

    return make


def limit(kind: int, value: int) -> Callable[[Place], None]:
    return first(lambda: resource.setrlimit(kind, (value, value)))


def forbid(*names: str, mode: int = 0) -> Callable[[Place], None]:
    """Take rights away from files and folders of the place."""

    def act(place: Place) -> None:
        for name in names:
            path = place.folder / name
            path.mkdir(parents=True, exist_ok=True)
            before = path.stat().st_mode
            path.chmod(mode)
            place.undo.append(lambda path=path, before=before: path.chmod(before))

    return act


def onto(stream: str, path: str) -> Callable[[Place], None]:
    """A stream that is a file, such as /dev/full."""

    def act(place: Place) -> None:
        file = Path(path).open("r+b" if path == "/dev/full" else "rb", buffering=0)  # noqa: SIM115  # closed by undo
        setattr(place, stream, file)
        place.heard = place.heard and stream != "stderr"
        place.undo.append(file.close)

    return act


def gone(stream: str) -> Callable[[Place], None]:
    """A pipe whose reader has left."""

    def act(place: Place) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        setattr(place, stream, writer)
        place.heard = False  # where nobody reads the answer, nothing is said either
        place.undo.append(lambda: os.close(writer))

    return act


def feed(data: bytes) -> Callable[[Place], None]:
    """Bytes on stdin, as often as it is read."""

    def act(place: Place) -> None:
        path = place.folder / "stdin"
        path.write_bytes(data)
        onto("stdin", str(path))(place)

    return act


def nameless(place: Place) -> None:
    place.program = (sys.executable, "-c", NAMELESS)
    place.variables.update(HOME=None, USER=None, LOGNAME=None)


def removed_folder(place: Place) -> None:
    """The working folder goes before the program is there."""
    place.in_child.append(lambda: _enter_and_remove(place.folder / "gone"))


def _enter_and_remove(path: Path) -> None:
    path = path.with_name(f"{path.name}-{os.getpid()}")
    path.mkdir()
    os.chdir(path)
    path.rmdir()


def foreign_files(place: Place) -> None:
    """What lies about in folders of models."""
    folder = place.models
    good = (folder / "m.gguf").read_bytes()
    (folder / "empty.gguf").touch()
    (folder / "text.gguf").write_text("not a model\n" * 9)
    (folder / "cut.gguf").write_bytes(good[:2000])
    (folder / "folder.gguf").mkdir()
    (folder / "nowhere.gguf").symlink_to(folder / "none")
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    (folder / "loop").symlink_to(folder)
    (folder / "part-00002-of-00003.gguf").write_bytes(good)
    (folder / "part-00001-of-00003.gguf").write_bytes(good)
    os.mkfifo(folder / "fifo.gguf")
    (folder / ("x" * 250 + ".gguf")).write_bytes(good)
    with contextlib.suppress(OSError):  # macOS refuses such names
        Path(os.fsdecode(os.fsencode(folder) + b"/gr\xfc\xdfe.gguf")).write_bytes(good)
    (folder / "line\nbreak\x1b[31m.gguf").write_bytes(good)
    (folder / "secret.gguf").write_bytes(good)
    (folder / "secret.gguf").chmod(0)
    (folder / "secrets").mkdir()
    (folder / "secrets" / "m2.gguf").write_bytes(good)
    (folder / "secrets").chmod(0)
    place.undo.append(lambda: (folder / "secrets").chmod(0o755))


def sessions(place: Place) -> None:
    """A good database with a session in it."""
    store = SessionStore(place.folder / "sessions")
    store.add(store.create(title="before").id, None, "user", "words that stay")
    store.close()


def foreign_sessions(place: Place) -> None:
    (place.folder / "sessions").mkdir()
    (place.folder / "sessions" / "sessions.db").write_bytes(b"something else entirely\n" * 99)


def config(data: bytes) -> Callable[[Place], None]:
    def act(place: Place) -> None:
        path = place.folder / "config.toml"
        path.write_bytes(data)
        place.variables["TRIATTN_CONFIG"] = str(path)

    return act


@contextlib.contextmanager
def at(place: Place, *makes: Callable[[Place], None]) -> Iterator[Place]:
    """The place, made so, and what was done to it undone."""
    try:
        for make in makes:
            make(place)
        yield place
    finally:
        for act in reversed(place.undo):
            with contextlib.suppress(OSError):
                act()
