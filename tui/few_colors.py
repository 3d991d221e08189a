"""Sixteen colours on a light ground: a theme's quiet greys all become the terminal's "white", which nobody can read.

Knows nothing of widgets: a filter over lines that are about to be shown.
"""

from __future__ import annotations

import functools

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_LIGHT_GROUND = 160
_LIGHT_TEXT = 120
"""grey values: text above on a ground above would be white on white"""
_GREY = Style(color=RichColor.parse("#555555"))
"""the terminal's "bright black", the only grey among its sixteen that is dark"""


@functools.lru_cache(4096)
def readable(style: Style) -> Style:
    """The style, with a darker grey for text that would vanish."""
    if style.color is None or style.bgcolor is None or style.color.triplet is None or style.bgcolor.triplet is None:
        return style
    text, ground = (Color.from_rich_color(color).monochrome.r for color in (style.color, style.bgcolor))
    return style + _GREY if ground > _LIGHT_GROUND and text > _LIGHT_TEXT else style


class ReadableOnLight(LineFilter):
    """For a light theme where there are sixteen colours."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002  # of the base class
        return [Segment(text, style and readable(style), control) for text, style, control in segments]
