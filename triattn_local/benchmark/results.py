"""What stays of a benchmark: every figure as JSON, a table to read, a picture."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError
from ..support.atomic import check_writable, write_whole
from .report import BenchReport, markdown, summary


def check_folder(folder: Path) -> None:
    """Make the folder, before hours are spent on what goes into it.

    Raises
    ------
    UsageError, DoesNotFitError
        It cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"is no folder: {error.strerror}", where=f"--out {folder}") from None
    check_writable(folder / "bench.json", 0)


def write_results(folder: Path, reports: Sequence[BenchReport], command: str) -> list[str]:
    """Write bench.json, bench.md, and bench.png if matplotlib is installed; returns the names.

    Raises
    ------
    UsageError
        The folder cannot be made or written.
    """
    check_folder(folder)
    files = {
        "bench.json": (json.dumps({"command": command, **summary(reports)}, indent=1) + "\n").encode(),
        "bench.md": (f"    {command}\n\n" + "\n".join(markdown(report) for report in reports)).encode(
            "utf-8", "replace"
        ),
    }
    if importlib.util.find_spec("matplotlib") is not None:
        from .plots import picture

        files["bench.png"] = picture(reports).png()
    for name, data in files.items():
        write_whole(folder / name, data)
    return list(files)
