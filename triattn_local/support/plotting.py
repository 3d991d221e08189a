"""How this program's pictures look: one style, one palette, one way to a file.

Colours are those of Okabe and Ito, which most colour-blind people tell apart; what matters most is always the same
blue. Needs matplotlib, which only the pictures need. Knows nothing of what is drawn.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED, GREY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#8a8f98"
COLOURS = (BLUE, ORANGE, GREEN, RED, "#cc79a7", "#56b4e9", "#6b5b00")
"""for many lines, the first the most important; grey is full attention's"""

_STYLE: Any = {  # the stubs of matplotlib name every key there is
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": "#3b4048",
    "axes.edgecolor": "#b8bdc4",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "grid.linewidth": 0.8,
    "xtick.color": "#6b7078",
    "ytick.color": "#6b7078",
    "xtick.labelcolor": "#3b4048",
    "ytick.labelcolor": "#3b4048",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "svg.fonttype": "path",  # the page must look the same where the font is not installed
    "svg.hashsalt": "triattn-local",  # and the same file must come out twice
}


def style() -> AbstractContextManager[None]:
    """Draw inside of this."""
    return mpl.rc_context(_STYLE)


@dataclass(frozen=True)
class Picture:
    """A drawn picture and what stands beside it."""

    name: str
    """of the file, without ending"""
    title: str
    reading: str
    """what is seen in it, in a sentence or two"""
    figure: Figure

    def png(self) -> bytes:
        out = BytesIO()
        with style():
            self.figure.savefig(out, format="png", dpi=160, facecolor="white", metadata={"Software": None})
        return out.getvalue()

    def svg(self) -> str:
        """As an element of a page, without the head of a file."""
        out = StringIO()
        with style():
            self.figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = out.getvalue()
        return text[text.index("<svg") :]
