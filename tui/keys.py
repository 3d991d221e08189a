"""Keys by name: what the help shows, and what ``keys`` in the settings may set. Knows no screen."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from textual.binding import Binding
from textual.dom import DOMNode

from triattn_local.errors import UsageError

Group = tuple[str, list[Binding]]
"""place, and the bindings there that have a name"""


def group(place: str, *classes: type[DOMNode]) -> Group:
    """What the classes of a place bind, in their order."""
    return place, [b for kind in classes for b in kind.BINDINGS if isinstance(b, Binding) and b.id]


def check_keys(keys: Mapping[str, str], groups: Iterable[Group], where: str | None) -> None:
    """Raise UsageError for a name that no key has."""
    names = [binding.id for _, bindings in groups for binding in bindings if binding.id]
    for name in keys:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            raise UsageError(
                f"{name!r} is not the name of a key",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"the names are {', '.join(names)}",
            )


def spelled(key: str) -> str:
    """ctrl+j,alt+enter -> Ctrl+J, Alt+Enter"""
    special = {
        "left_square_bracket": "[",
        "right_square_bracket": "]",
        "slash": "/",
        "pageup": "PgUp",
        "pagedown": "PgDn",
        "escape": "Esc",
    }
    return ", ".join(
        "+".join(
            special.get(part, part.upper() if len(part) == 1 and "+" in one else part.capitalize())
            if len(part) > 1 or "+" in one
            else part
            for part in one.split("+")
        )
        for one in key.split(",")
    )
