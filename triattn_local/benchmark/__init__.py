"""How fast a forgetting cache is beside full attention, and what memory the two take: what ``bench`` reports."""

from __future__ import annotations

from .job import Job, parse_depths
from .report import BenchReport, DepthRow, Point, summary
from .results import check_folder, write_results
from .run import pick_device, run_bench

__all__ = [
    "Job",
    "Point",
    "BenchReport",
    "DepthRow",
    "check_folder",
    "parse_depths",
    "pick_device",
    "run_bench",
    "summary",
    "write_results",
]
