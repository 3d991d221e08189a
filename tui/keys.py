"""All keys by name: what the help shows, and what ``keys`` in the settings may set."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from textual.binding import Binding
from textual.dom import DOMNode

from triattn_local.errors import UsageError


def groups() -> Iterator[tuple[str, list[Binding]]]:
    """(place, bindings that have a name) in the order of the help."""
    from .app import ChatApp
    from .screens.chat import ChatScreen
    from .screens.models import ModelsScreen
    from .screens.sessions import SessionsScreen
    from .widgets.code_block import CodeBlock
    from .widgets.messages import MessageWidget
    from .widgets.prompt import Prompt

    places: list[tuple[str, tuple[type[DOMNode], ...]]] = [
        ("Writing", (Prompt,)),
        ("Anywhere", (ChatScreen, ChatApp)),
        ("On a message (Shift+Tab from the prompt)", (MessageWidget,)),
        ("On a code block", (CodeBlock,)),
        ("In the list of sessions", (SessionsScreen,)),
        ("In the list of models", (ModelsScreen,)),
    ]
    for title, classes in places:
        bindings = [b for kind in classes for b in kind.BINDINGS if isinstance(b, Binding) and b.id]
        yield title, bindings


def check_keys(keys: Mapping[str, str], where: str | None) -> None:
    """Raise UsageError for a name that no key has."""
    names = [binding.id for _, bindings in groups() for binding in bindings if binding.id]
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
