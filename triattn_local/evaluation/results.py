"""What stays of an evaluation: the tables as Markdown, and with matplotlib a picture of each task and a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ..support.atomic import write_whole
from .report import markdown
from .summary import SummaryRow


def write_files(rows: Sequence[SummaryRow], title: str, command: str, folder: Path) -> None:
    """report.md, and with matplotlib report.html and a PNG for each task."""
    files = {"report.md": markdown(rows, title, command).encode("utf-8", "replace")}
    if importlib.util.find_spec("matplotlib") is not None:
        from .plots import page, picture

        files |= {f"{task}.png": picture(rows, task, title).png() for task in dict.fromkeys(row.task for row in rows)}
        files["report.html"] = page(rows, title, command).encode("utf-8", "replace")
    for name, data in files.items():
        write_whole(folder / name, data)
