"""What a person sees: data on stdout, progress and errors on stderr.

Bars only on a terminal; elsewhere a stage is one line, so that a log stays readable. Colours follow NO_COLOR and the
terminal. Knows nothing of models: stages, numbers, tables and errors only.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from .closing import Closing
from .formats import seconds
from .progress import Unit

_UNKNOWN = "triattn-unknown"


def _unknown(error: UnicodeError) -> tuple[str | bytes, int]:
    """A question mark for what a stream cannot show; but the bytes of a file name that is no text stay as they are."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    shown = b"".join(bytes([ord(c) - 0xDC00]) if 0xDC80 <= ord(c) <= 0xDCFF else b"?" for c in bad)
    return shown, error.end


codecs.register_error(_UNKNOWN, _unknown)


def prepare() -> None:
    """Make stdin, stdout and stderr usable, however the program was started. To be called first.

    No character makes a write fail, and one that is closed is the null device: else the next file that is opened gets
    its number, and what C code prints goes into that.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened == number:  # else somebody has taken it meanwhile
                os.set_inheritable(number, True)
            if mode == "w":  # a stdin that is None says that there is none
                setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8", errors=_UNKNOWN))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_UNKNOWN)


def drop_unwritten() -> None:
    """Forget what stdout and stderr do not take, which Python would try to write once more at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_table(table: Table) -> None:
    """On stdout; one that is piped is neither cut to a width nor padded to one."""
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    text = io.StringIO()
    Console(file=text, width=100_000, highlight=False, color_system=None).print(table)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in text.getvalue().splitlines()))


class _Stderr(Console):
    """What is said beside the data is dropped where it cannot be written: the work goes on without."""

    def print(self, *objects: Any, **options: Any) -> None:
        with contextlib.suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        self.quiet = True


def stderr() -> Console:
    return _Stderr(stderr=True, highlight=False, soft_wrap=True)


def write_json(value: Mapping[str, object] | Sequence[object], *, to_stderr: bool = False) -> None:
    """One JSON value on one line; what the stream cannot show is escaped, so that nothing is lost."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    stream = sys.stderr if to_stderr else sys.stdout
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    with contextlib.suppress(OSError) if to_stderr else contextlib.nullcontext():
        stream.write(text + "\n")
        stream.flush()


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """A table on stdout; the columns in ``right`` are numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    _print_table(table)


def write_pairs(title: str, pairs: Iterable[tuple[str, str]]) -> None:
    """A title and its properties on stdout, one a line."""
    print(title)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, Text(value))
    _print_table(table)


def write_checks(checks: Iterable[tuple[str, str, str, str | None]]) -> None:
    """(name, ok / warn / fail, what was found, what mends it) on stdout."""
    styles = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, status, found, fix in checks:
        lines = Text(found)
        if fix:
            lines.append(f"\n{fix}", style="dim")
        table.add_row(Text(status, style=styles[status]), name, lines)
    _print_table(table)


def write_report(summary: str, report: Mapping[str, object]) -> None:
    """A report on stderr: for a person if one is looking, and always as one JSON line."""
    if stderr().is_terminal:
        say(summary, style="dim")
    write_json(report, to_stderr=True)


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


_GLYPHS = (("\u2588", "blue"), ("\u2593", "green"), ("\u2592", "yellow"), ("\u25a0", "magenta"))
_ASCII = ("#", "=", "+", "%")
_FREE, _LEFT_ALONE = "\u00b7", "-"
_BAR = 48


def write_bars(bars: Sequence[tuple[str, Sequence[tuple[str, int]], int, int, str]]) -> None:
    """(name, (part, bytes), bytes left alone, bytes in all, what to say) on stdout, a bar each, and what the parts are.

    Bars are told apart without colour too. One that holds more than it has room for is drawn to a smaller scale.
    """
    glyphs: Sequence[tuple[str, str]] = _GLYPHS
    free = _FREE
    if not _can_show("".join(glyph for glyph, _ in _GLYPHS)):
        glyphs, free = [(own, style) for own, (_, style) in zip(_ASCII, _GLYPHS, strict=True)], "."
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    legend = Text("  ".join(f"{glyph} {part}" for (part, _), (glyph, _) in zip(bars[0][1], glyphs, strict=False)))
    legend.append(f"  {free} free  {_LEFT_ALONE} left alone")
    for name, parts, left_alone, total, told in bars:
        used = sum(size for _, size in parts)
        scale = _BAR / max(total, used + left_alone, 1)
        bar, drawn, held = Text(), 0, 0
        for (_, size), (glyph, style) in zip(parts, glyphs, strict=False):
            held += size
            n = max(round(held * scale) - drawn, 1 if size else 0)
            bar.append(glyph * n, style)
            drawn += n
        n_left = round(left_alone * scale)
        bar.append(free * max(0, round(max(total, used + left_alone) * scale) - drawn - n_left), "dim")
        bar.append(_LEFT_ALONE * n_left, "dim")
        table.add_row(name, bar, Text(told, style="" if used + left_alone <= total else "bold red"))
    table.add_row("", legend, "")
    _print_table(table)


def say(text: str, *, style: str = "") -> None:
    """A line on stderr."""
    stderr().print(Text(text, style=style))


def say_error(text: str) -> None:
    """An error, on one line whatever is in it."""
    line = " ".join(text.split())
    stderr().print(Text.assemble(("error: ", "bold red"), line))


def log(level: str, text: str) -> None:
    """A line of a log on stderr, with the time of day. Level: debug, info, warn or error."""
    styles = {"debug": "dim", "warn": "yellow", "error": "bold red"}
    stderr().print(Text.assemble((f"{time.strftime('%H:%M:%S')} ", "dim"), (text, styles.get(level, ""))))


@contextlib.contextmanager
def waiting(text: str) -> Iterator[None]:
    """Something turns on stderr while there is nothing to count; nothing where no one looks."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(Text(text, style="dim")):
        yield


class Stages(Closing):
    """Shows long work on stderr: ``stages("fetching x", done, total)``, as often as there is news.

    A stage whose total is 0 or unknown is a line: what it counts shows itself, or cannot be counted. Steps have names
    of their own and one bar together: a stage that goes on where the one before stood is the next of them.
    """

    def __init__(self, unit: Unit = "bytes") -> None:
        """`unit`: what stages count that do not say it."""
        self._unit = self._shown = unit
        self._stage: str | None = None
        self._task: TaskID | None = None
        self._bars: Progress | None = None
        self._begun: tuple[float, int, int] | None = None
        """when steps were first told of, how many were done, and of how many"""

    def __call__(self, stage: str, done: int, total: int | None, unit: Unit | None = None) -> None:
        console = stderr()
        if self._shown != (unit or self._unit):  # its columns are others
            self.close()
            self._shown = unit or self._unit
        if not total or not console.is_terminal:
            self.close()
            if stage != self._stage:
                console.print(Text(f"{stage}{self._so_far(done, total)} ...", style="dim"))
            self._stage = stage
            return
        if self._bars is None:
            # a step may take minutes: how fast they go is told by all of them
            period_s = 1e6 if self._shown == "steps" else 30.0
            self._bars = Progress(*self._columns(), console=console, transient=True, speed_estimate_period=period_s)
            self._bars.start()
        if stage != self._stage and self._task is not None and self._is_next_step(done, total):
            self._bars.update(self._task, description=stage)
            self._stage = stage
        elif stage != self._stage or self._task is None:
            if self._task is not None:
                self._bars.remove_task(self._task)
            self._task = self._bars.add_task(stage, total=total)
            self._stage = stage
        self._bars.update(self._task, completed=done, total=total)

    def _is_next_step(self, done: int, total: int) -> bool:
        assert self._bars is not None
        (task,) = self._bars.tasks
        return self._shown == "steps" and task.total == total and done >= task.completed

    def _so_far(self, done: int, total: int | None) -> str:
        """Of steps that are lines: which one it is, and how long the rest takes if it goes on like that."""
        if self._shown != "steps" or not total:
            return ""
        now_s = time.monotonic()
        if self._begun is None or self._begun[2] != total or done < self._begun[1]:
            self._begun = (now_s, done, total)
        then_s, first, _ = self._begun
        left = ""
        if done > first:
            left = f", {seconds((now_s - then_s) / (done - first) * (total - done))} left"
        return f" ({done + 1} of {total}{left})"

    def _columns(self) -> list[ProgressColumn]:
        text, bar, left = TextColumn("{task.description}"), BarColumn(bar_width=30), TimeRemainingColumn(compact=True)
        if self._shown == "bytes":
            return [text, bar, DownloadColumn(binary_units=True), TransferSpeedColumn(), left]
        return [text, bar, MofNCompleteColumn(), TextColumn(self._shown), left]

    def close(self) -> None:
        """Take the bar away; the next call brings it back."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None
