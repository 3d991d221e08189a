"""The flags that several commands share: those of settings are made of the table."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, get_type_hints

import typer

from ..config import ANSWER, CACHE, COMPUTE
from ..errors import UsageError
from ..settings import LOOKS, SERVER, table
from ..support.paths import decode
from ..support.setting import Setting

__all__ = ["ANSWER", "CACHE", "COMPUTE", "GRID", "LOOKS", "MACHINE", "SERVER"]
GRID, MACHINE = "Grid", "Machine"
"""headings in ``--help``"""

Given = Mapping[str, object]
"""setting -> what its flag was given, None if it was not"""


def with_settings(
    *which: str, without: Collection[str] = (), planned: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flags of settings, in the place of its parameter ``given``, which is handed their values.

    Parameters
    ----------
    which : str
        Headings, for all flags below them, and names of settings.
    without : collection of str
        Settings that the command has no flag for all the same.
    planned : bool
        What is not given is chosen, and so is what is `auto`.
    """
    chosen = [
        line
        for name, line in table().items()
        if line.panel and (name in which or line.panel in which) and name not in without
    ]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        hints = get_type_hints(function, include_extras=True)
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.name == "given":
                parameters += [_parameter(line, planned) for line in chosen]
            else:
                parameters.append(
                    parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[parameter.name])
                )

        @functools.wraps(function)
        def command(**values: Any) -> Any:
            given = {line.name: values.pop(line.name) for line in chosen}
            return function(given=given, **values)

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # Typer reads it
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return command

    return decorate


def _parameter(line: Setting, planned: bool) -> inspect.Parameter:
    """The flag of a setting: its default is told, and None is "not given"."""
    chosen = planned and line.planned
    default = chosen or ("" if line.default in (None, "", ()) else line.default)
    option = typer.Option(
        *line.flags,
        metavar=line.metavar,
        help=line.help + ("" if default == "" else f" [default: {default}]"),
        show_default=False,
        rich_help_panel=line.panel,
    )
    kind: Any = str if chosen else line.kind.flag
    return inspect.Parameter(
        line.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def switch(name: str, text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A flag without a value."""
    return typer.Option(name, *names, metavar="", help=text, show_default=False, rich_help_panel=panel, **more)


def text_argument(text: str, where: str) -> str:
    """A text from the command line, whose bytes may be anything; without the byte order mark of a file it came from.

    Raises
    ------
    UsageError
        It is not UTF-8.
    """
    try:
        return decode(os.fsencode(text))
    except UnicodeError:
        raise UsageError("is not UTF-8 text", where=where) from None


def option(name: str, metavar: str, text: str, *names: str, panel: str | None = None, **more: Any) -> Any:
    """A flag of one command; a default of None is not shown."""
    return typer.Option(name, *names, metavar=metavar, help=text, rich_help_panel=panel, **more)


grid_option = functools.partial(option, panel=GRID)


def argument(metavar: str, text: str, *, show_default: bool = False) -> Any:
    return typer.Argument(metavar=metavar, help=text, show_default=show_default)


AsJson = Annotated[bool, switch("--json", "One JSON value on stdout instead of text.")]
Verbose = Annotated[bool, switch("--verbose", "llama.cpp's own log on stderr.", "-v")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A path, a name that `ls` shows, or `demo`.")]
NoEvict = Annotated[bool, switch("--no-evict", "Full attention: a cell for every token.", panel=CACHE)]
