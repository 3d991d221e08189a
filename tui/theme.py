"""Two quiet themes of our own, beside those that Textual brings."""

from __future__ import annotations

from textual.theme import Theme


def _theme(name: str, selected: str, bar: str, bar_pointed: str, **colours: str) -> Theme:
    """A theme whose cursor, keys and scrollbar have the colours of the rest."""
    return Theme(
        name=name,
        dark=name.endswith("dark"),
        warning=colours["accent"],
        variables={
            "block-cursor-background": colours["primary"],
            "block-cursor-foreground": colours["background"],
            "footer-key-foreground": colours["accent"],
            "input-selection-background": f"{colours['primary']} {selected}",
            "scrollbar": bar,
            "scrollbar-background": colours["background"],
            "scrollbar-hover": bar_pointed,
            "scrollbar-active": colours["primary"],
        },
        **colours,  # type: ignore[arg-type]  # none of them is a number or a truth
    )


# fmt: off
DARK = _theme(
    "triattn-dark", "35%", "#2b3038", "#3c434e",
    primary="#7fa7c9", secondary="#8fae9b", accent="#d6a96a", success="#8fae7f", error="#d07a74",
    foreground="#d3d6db", background="#14161a", surface="#191c21", panel="#21252c",
)
LIGHT = _theme(
    "triattn-light", "25%", "#dbd8d2", "#c7c3bc",
    primary="#2f6390", secondary="#4a7560", accent="#9a5f1f", success="#4f7a3a", error="#a83b35",
    # warmer ones would be pink among 256 colours
    foreground="#2a2d33", background="#fbf9f5", surface="#f4f3f1", panel="#ebe9e5",
)
# fmt: on

THEMES = (DARK, LIGHT)
DEFAULT = DARK.name
