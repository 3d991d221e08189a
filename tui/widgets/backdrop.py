"""What stands behind the text of a conversation: containers that grow with it and show nothing of their own.

These are no widgets but what is mixed into some: a widget takes its style from its first base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.geometry import Region, Size
from textual.reactive import Reactive
from textual.strip import Strip

if TYPE_CHECKING:
    from textual.widget import Widget
else:
    Widget = object


class Growing(Widget):
    """Laid out once when it grows: Textual would lay out everything a second time, should scrollbars have come."""

    virtual_size = Reactive(Size(0, 0))


class Backdrop(Growing):
    """Draws one empty line, and that for all of them, instead of each anew whenever its height changes.

    Neither borders nor titles: a container that has them is none.
    """

    def render_lines(self, crop: Region) -> list[Strip]:
        strip = Strip.blank(crop.width, self.visual_style.rich_style)
        for line_filter in self.get_line_filters():
            strip = strip.apply_filter(line_filter, self.background_colors[1])
        return [strip] * crop.height
