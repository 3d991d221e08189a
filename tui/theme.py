"""Two quiet themes of our own, beside those that Textual brings."""

from __future__ import annotations

from textual.theme import Theme

DARK = Theme(
    name="triattn-dark",
    dark=True,
    primary="#7fa7c9",
    secondary="#8fae9b",
    accent="#d6a96a",
    foreground="#d3d6db",
    background="#14161a",
    surface="#191c21",
    panel="#21252c",
    success="#8fae7f",
    warning="#d6a96a",
    error="#d07a74",
    variables={
        "block-cursor-background": "#7fa7c9",
        "block-cursor-foreground": "#14161a",
        "footer-key-foreground": "#d6a96a",
        "input-selection-background": "#7fa7c9 35%",
        "scrollbar": "#2b3038",
        "scrollbar-background": "#14161a",
        "scrollbar-hover": "#3c434e",
        "scrollbar-active": "#7fa7c9",
    },
)

LIGHT = Theme(
    name="triattn-light",
    dark=False,
    primary="#2f6390",
    secondary="#4a7560",
    accent="#9a5f1f",
    foreground="#2a2d33",
    background="#fbf9f5",
    # warmer ones would be pink among 256 colours
    surface="#f4f3f1",
    panel="#ebe9e5",
    success="#4f7a3a",
    warning="#9a5f1f",
    error="#a83b35",
    variables={
        "block-cursor-background": "#2f6390",
        "block-cursor-foreground": "#fbf9f5",
        "footer-key-foreground": "#9a5f1f",
        "input-selection-background": "#2f6390 25%",
        "scrollbar": "#dbd8d2",
        "scrollbar-background": "#fbf9f5",
        "scrollbar-hover": "#c7c3bc",
        "scrollbar-active": "#2f6390",
    },
)

THEMES = (DARK, LIGHT)
DEFAULT = DARK.name
