"""A setting is one line: a field of a dataclass that says what it holds, its limits, and what it is called where.

``config`` and ``settings`` have such lines. Flags and their help, variables, keys of config.toml, the pages of the
documentation, KV overrides and the C struct are made of them; ``check`` holds values to them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .formats import parse_size
from .paths import decode, expanded

INT32 = 2**31 - 1
"""what llama.cpp's fields hold: ctypes would cut off the rest without a word"""

_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


@dataclass(frozen=True)
class Kind:
    """What a setting holds."""

    flag: type
    """what its flag takes on the command line"""
    read: Callable[[object], object]
    """from a flag, a variable or config.toml; raises ValueError that says what is wanted"""
    check: Callable[[Any, Setting], object] | None = None
    """from a program; raises UsageError, returns the value as it is kept"""


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    kind: Kind
    help: str = ""
    panel: str = ""
    """heading of its flag in --help; no flag without one"""
    metavar: str = ""
    spelled: tuple[str, ...] = ()
    """its flags, where they are not the name behind two dashes"""
    default: Any = None
    name: str = ""
    """key in config.toml, in capitals behind TRIATTN_ the variable; "": it is no setting of the program"""
    field: str = ""
    choices: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    planned: str = ""
    """what a plan chooses, in the words of --help; a setting that has this may be `auto`"""
    c_name: str = ""
    """in ``llama_triattn_params``, and behind "triattention." as a KV override"""

    @property
    def flags(self) -> tuple[str, ...]:
        if not self.panel or self.spelled:
            return self.spelled
        dashed = self.name.replace("_", "-")
        return (f"--{dashed}/--no-{dashed}",) if self.kind is TRUTH else (f"--{dashed}",)

    @property
    def flag(self) -> str | None:
        """The first of them."""
        return self.flags[0].partition("/")[0] if self.flags else None

    @property
    def where(self) -> str:
        """What an error calls it."""
        return self.flag or self.name or self.field


def setting(default: Any, kind: Kind, help: str = "", panel: str = "", metavar: str = "", **more: Any) -> Any:
    """A field of a dataclass with its line; see Setting. Without a help text it is no setting of the program."""
    line = Setting(kind, help, panel, metavar, default=None if callable(default) else default, **more)
    if callable(default):
        return field(default_factory=default, metadata={"setting": line})
    return field(default=default, metadata={"setting": line})


def lines(config: Any) -> tuple[Setting, ...]:
    """The lines of a class of settings, in the order of its fields."""
    made = []
    for entry in dataclasses.fields(config):
        if line := entry.metadata.get("setting"):
            name = line.name or (entry.name if line.help else "")
            made.append(dataclasses.replace(line, field=entry.name, name=name, c_name=line.c_name or entry.name))
    return tuple(made)


def check(config: Any) -> None:
    """Hold every field to its line. Raises UsageError."""
    for line in lines(type(config)):
        value = getattr(config, line.field)
        if line.kind.check and not (value is None and line.default is None):
            object.__setattr__(config, line.field, line.kind.check(value, line))


def one_of(choices: tuple[str, ...]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}"


# ---- what is written: flags, variables, config.toml


def _read_whole(value: object) -> int:
    # bool is an int in Python, but `budget = true` is a mistake
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("a whole number")
    try:
        return int(value)
    except ValueError:
        raise ValueError("a whole number") from None


def _read_whole_or(word: str, meaning: object, wanted: str) -> Callable[[object], object]:
    """A reader that takes a word too."""

    def read(value: object) -> object:
        if isinstance(value, str) and value.strip().lower() == word:
            return meaning
        try:
            return _read_whole(value)
        except ValueError as error:
            raise ValueError(f"{error}{wanted}") from None

    return read


def _read_bytes(value: object) -> int | str:
    """``off``, ``auto``, or bytes with or without a unit."""
    word = value.strip() if isinstance(value, str) else value
    if word == "off" or word == "auto":
        return str(word)
    try:
        return parse_size(str(word), "")
    except UsageError:
        raise ValueError("off, auto or a number of bytes such as 8GiB") from None


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a number")
    try:
        number = float(value)
    except ValueError:
        raise ValueError("a number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _read_truth(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise ValueError("true or false (1, 0, yes, no, on, off)")


def _read_word(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a word in quotes")
    return value.strip()


def _read_path(value: object) -> Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("a path")
    return expanded(value)


def _read_keys(value: object) -> Mapping[str, str]:
    """A table in the file; ``send=ctrl+s,stop=f12`` elsewhere, where no key can be a comma or an equals sign."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): key.strip() for name, _, key in pairs}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) and key for key in value.values()):
        raise ValueError('a table of keys, such as { stop = "f12" }')
    return dict(value)


def _read_text(value: object) -> str:
    """Words for the model: what a shell hands over need not be UTF-8."""
    if not isinstance(value, str):
        raise ValueError("a text")
    try:
        return decode(os.fsencode(value))
    except UnicodeError:
        raise ValueError("UTF-8 text") from None


def _read_texts(value: object) -> tuple[str, ...]:
    """One text stands for a list of it."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise ValueError("a list of texts")
    return tuple(_read_text(text) for text in texts if text)


# ---- what a program gives


def _in_limits(number: float, line: Setting, low: float, high: float) -> None:
    if line.low is not None and line.high is None and number < line.low:
        raise UsageError(f"must be at least {line.low}, not {number}", where=line.where)
    if not low <= number <= high:
        raise UsageError(f"{number} is not in {low} ... {high}", where=line.where)


def _whole(value: Any, line: Setting) -> int:
    """A whole number, NumPy's too."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UsageError(f"{value!r} is not a whole number", where=line.where) from None
    _in_limits(
        number, line, -INT32 if line.low is None else int(line.low), INT32 if line.high is None else int(line.high)
    )
    return number


def _number(value: Any, line: Setting) -> float:
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{value!r} is not a number", where=line.where) from None
    if not math.isfinite(number):
        raise UsageError(f"must be finite, not {number}", where=line.where)
    _in_limits(number, line, -math.inf if line.low is None else line.low, math.inf if line.high is None else line.high)
    return number


def _bytes(value: Any, line: Setting) -> int | str:
    return str(value) if isinstance(value, str) and value in ("off", "auto") else _whole(value, line)


def _truth(value: Any, line: Setting) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is not True or False", where=line.where)
    return value


def _word(value: Any, line: Setting) -> Any:
    if line.choices and value not in line.choices:
        raise UsageError(f"{value!r} is not one of {', '.join(line.choices)}", where=line.where)
    return value


WHOLE = Kind(int, _read_whole, _whole)
WHOLE_OR_OFF = Kind(int, _read_whole_or("off", None, ", off"), _whole)  # the library's own word for no eviction
WHOLE_OR_AUTO = Kind(str, _read_whole_or("auto", "auto", " or auto"), _whole)
BYTES = Kind(str, _read_bytes, _bytes)
NUMBER = Kind(float, _read_number, _number)
TRUTH = Kind(bool, _read_truth, _truth)
WORD = Kind(str, _read_word, _word)
PATH = Kind(Path, _read_path)
KEYS = Kind(str, _read_keys)
TEXT = Kind(str, _read_text)
TEXTS = Kind(list[str], _read_texts)
