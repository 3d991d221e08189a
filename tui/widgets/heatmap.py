"""What each layer keeps over the positions of the conversation: one row a layer, old on the left, new on the right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

_SHADES = " ░▒▓█"


def bins(share: NDArray[np.float32], n_rows: int, n_columns: int) -> NDArray[np.float32]:
    """Mean share of the layers and positions that fall into each cell of the picture: float32 [n_rows, n_columns]."""
    n_layer, n_past = share.shape
    if not n_past or not n_layer:
        return np.zeros((n_rows, n_columns), np.float32)
    rows = np.minimum(np.arange(n_rows + 1) * n_layer // n_rows, n_layer)
    columns = np.minimum(np.arange(n_columns + 1) * n_past // n_columns, n_past)
    total = np.zeros((n_layer + 1, n_past + 1), np.float64)
    total[1:, 1:] = share.cumsum(0, dtype=np.float64).cumsum(1)
    top, left = rows[:-1], columns[:-1]
    bottom, right = np.maximum(rows[1:], top + 1), np.maximum(columns[1:], left + 1)
    sums = (
        total[np.ix_(bottom, right)]
        - total[np.ix_(top, right)]
        - total[np.ix_(bottom, left)]
        + total[np.ix_(top, left)]
    )
    areas = np.outer(bottom - top, right - left)
    return (sums / areas).astype(np.float32)


class Heatmap(Widget):
    """Two layers a line as half blocks; shades of one character where colours are few."""

    DEFAULT_CSS = "Heatmap { height: 1fr; min-height: 2; background: $surface; color: $primary; }"

    share: reactive[NDArray[np.float32] | None] = reactive(None, always_update=True)
    column: reactive[int | None] = reactive(None)
    """a column to point at"""

    @property
    def n_columns(self) -> int:
        return max(1, self.size.width)

    def positions(self, column: int) -> tuple[int, int]:
        """Positions [first, last) behind a column."""
        n_past = 0 if self.share is None else self.share.shape[1]
        first = column * n_past // self.n_columns
        return first, max(first + 1, (column + 1) * n_past // self.n_columns)

    @property
    def _few_colors(self) -> bool:
        return self.app.no_color or self.app.console.color_system not in ("truecolor", "256")

    def watch_share(self) -> None:
        self._cells: NDArray[np.float32] | None = None

    def on_resize(self) -> None:
        self._cells = None

    def _picture(self) -> NDArray[np.float32] | None:
        if self.share is None or not self.size.width or not self.size.height or not self.share.shape[1]:
            return None
        n_lines = self.size.height if self._few_colors else 2 * self.size.height
        n_rows = min(n_lines, self.share.shape[0])
        # whole multiples: a layer is never taller than its neighbour
        if getattr(self, "_cells", None) is None or self._cells is None:
            self._cells = np.repeat(bins(self.share, n_rows, self.n_columns), n_lines // n_rows, axis=0)
        return self._cells

    def render_line(self, y: int) -> Strip:
        cells = self._picture()
        style = self.rich_style
        if cells is None:
            return Strip([Segment(" " * self.size.width, style)])
        pointed = self.column
        ground, ink, point = self._colors()
        blend = _blend_grey if self.app.console.color_system == "256" else Color.blend
        segments: list[Segment] = []
        if self._few_colors:
            row = cells[y] if y < len(cells) else np.zeros(cells.shape[1], np.float32)
            for x, value in enumerate(row):
                glyph = _SHADES[min(len(_SHADES) - 1, int(np.ceil(value * (len(_SHADES) - 1))))]
                segments.append(Segment(glyph, style + Style(reverse=x == pointed)))
        else:
            pair = [cells[i] if i < len(cells) else None for i in (2 * y, 2 * y + 1)]
            for x in range(cells.shape[1]):
                upper, lower = (
                    ground if row is None else blend(ground, point if x == pointed else ink, _curve(float(row[x])))
                    for row in pair
                )
                segments.append(Segment("▀", Style(color=upper.rich_color, bgcolor=lower.rich_color)))
        return Strip(segments).adjust_cell_length(self.size.width, style)

    def _colors(self) -> tuple[Color, Color, Color]:
        variables = self.app.theme_variables
        ground = Color.parse(variables.get("surface", "#191c21"))
        ink = Color.parse(variables.get("primary", "#7fa7c9"))
        point = Color.parse(variables.get("accent", "#d6a96a"))
        if ground.ansi is not None or ink.ansi is not None:  # a theme of terminal colours cannot be blended
            return Color.parse("#000000"), Color.parse("#5f87af"), Color.parse("#d7af5f")
        return ground, ink, point


def _blend_grey(ground: Color, ink: Color, share: float) -> Color:
    """Of the 256 colours only the greys have steps as fine as these."""
    return ground.monochrome.blend(ink.monochrome, share)


def _curve(share: float) -> float:
    """A single head of many is to be seen: the square root lifts small shares."""
    return 0.0 if share <= 0 else 0.12 + 0.88 * share**0.5
