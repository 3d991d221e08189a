"""What a benchmark found, and how it reads as rows of a table. Numbers only: nothing is measured or drawn here."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

from ..support.formats import size
from ..version import __version__


@dataclass(frozen=True)
class Point:
    """One context at one depth. Speeds are of all its sequences together, in tokens per second."""

    depth: int
    """tokens of each sequence before the first block"""
    n_seq: int
    """sequences that decode in one batch"""
    n_cells: int
    """of all sequences"""
    kv_bytes: int
    """of all sequences, sliding-window layers included"""
    memory_bytes: int
    """on the device that holds the most, weights included, after decoding; 0 where it is not known"""
    prefill_tps: float
    decode_tps: float
    """median over the blocks"""
    decode_tps_min: float
    decode_tps_max: float


@dataclass(frozen=True)
class DepthRow:
    """One depth. Ratios are medians of the ratios block by block."""

    depth: int
    limit: Point
    """full attention at depth = budget, as many sequences as `evicting`"""
    full: Point | None
    """None: it does not fit"""
    evicting: Point
    of_limit: float
    """evicting / limit, decode speed"""
    speedup: float | None
    """evicting / full, decode speed of all sequences"""
    kv_ratio: float
    """full attention's KV bytes a sequence at this depth / the evicting cache's"""
    kv_bytes_full: int
    """KV bytes that full attention needs for one sequence of this depth, whether or not they fit"""
    in_turns: bool
    """True: the three stood side by side and decoded block by block in turns; False: one after another"""
    n_rounds: int
    round_ms: float
    """mean of the rounds while decoding, of one sequence each"""
    round_share: float
    """part of the evicting side's decode time that rounds took"""


@dataclass(frozen=True)
class BenchReport:
    """One model."""

    model: str
    device: str
    """what holds the layers"""
    driver: str | None
    vram_bytes: int | None
    """what the device's memory was held to; None: all of it"""
    weights_bytes: int
    threads: int
    cache_type_k: str
    cache_type_v: str
    flash_attn: bool
    mode: str
    policy: str
    budget: int
    window: int
    n_batch: int
    n_blocks: int
    block_tokens: int
    left_out: tuple[int, ...]
    """depths beyond the context that the model was trained for"""
    rows: tuple[DepthRow, ...]

    def as_dict(self) -> dict[str, object]:
        return asdict(self)

    def title(self) -> str:
        vram = f", held to {size(self.vram_bytes)}" if self.vram_bytes else ""
        return (
            f"{self.model}: {self.policy}, {self.mode}, budget {self.budget:,}, window {self.window}, "
            f"{self.cache_type_k}/{self.cache_type_v} cache, {self.device}{vram}, {self.threads} threads"
        )


def summary(reports: Sequence[BenchReport]) -> dict[str, object]:
    """What is written as JSON: every figure, and when and with which version they were taken."""
    return {
        "triattn_local": __version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "runs": [report.as_dict() for report in reports],
    }


SPEED_COLUMNS = ("", "depth", "seqs", "cells", "KV cache", "memory", "prompt tok/s", "decode tok/s", "(min to max)")
RATIO_COLUMNS = ("depth", "speed-up", "of the limit", "KV cache", "rounds", "ms a round", "of decode time")


def speed_cells(report: BenchReport) -> list[tuple[str, ...]]:
    """A line for the limit, and two for each depth."""
    lines: list[tuple[str, ...]] = []
    for i, row in enumerate(report.rows):
        points = [("full attention", row.limit)] if i == 0 else []
        points += [("full attention", row.full)] if row.full else []
        for name, point in [*points, (report.policy, row.evicting)]:
            lines.append(
                (
                    name,
                    f"{point.depth:,}",
                    str(point.n_seq),
                    f"{point.n_cells:,}",
                    size(point.kv_bytes),
                    size(point.memory_bytes) if point.memory_bytes else "?",
                    f"{point.prefill_tps:,.0f}",
                    f"{point.decode_tps:,.1f}",
                    f"{point.decode_tps_min:,.1f} to {point.decode_tps_max:,.1f}",
                )
            )
        if row.full is None:
            needs = f"{size(row.kv_bytes_full)} a sequence"
            lines.append(("full attention", f"{row.depth:,}", "0", "", needs, "does not fit", "", "", ""))
    return lines


def ratio_cells(report: BenchReport) -> list[tuple[str, ...]]:
    return [
        (
            f"{row.depth:,}",
            "-" if row.speedup is None else f"{row.speedup:.2f} x",
            f"{row.of_limit:.3f}",
            f"1/{row.kv_ratio:.1f}",
            str(row.n_rounds),
            f"{row.round_ms:.1f}",
            f"{row.round_share:.2%}",
        )
        for row in report.rows
    ]


def markdown(report: BenchReport) -> str:
    """A title and a table with a line for each depth."""
    limit = report.rows[0].limit
    lines = [
        f"{report.title()}. Full attention at depth {limit.depth:,}, the limit: {limit.decode_tps:,.1f} tok/s.",
        "",
        "| depth | full: KV | prompt tok/s | decode tok/s | TriAttention: KV | prompt tok/s | decode tok/s "
        "| decode, times full | of the limit | KV | ms a round | of decode time |",
        "|" + "---:|" * 12,
    ]
    for row in report.rows:
        full, evicting = row.full, row.evicting
        cells = [
            f"{row.depth:,}" + (f" × {evicting.n_seq}" if evicting.n_seq > 1 else ""),
            *(
                ("does not fit", "", "")
                if full is None
                else (_kv(full, evicting), f"{full.prefill_tps:,.0f}", f"{full.decode_tps:,.1f}")
            ),
            size(evicting.kv_bytes),
            f"{evicting.prefill_tps:,.0f}",
            f"{evicting.decode_tps:,.1f}",
            "" if row.speedup is None else f"**{row.speedup:.2f}**",
            f"{row.of_limit:.3f}",
            f"1/{row.kv_ratio:.1f}",
            f"{row.round_ms:.1f}",
            f"{row.round_share:.2%}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _kv(full: Point, evicting: Point) -> str:
    return size(full.kv_bytes) + (f" (× {full.n_seq})" if full.n_seq != evicting.n_seq else "")


def median_ratio(a: Sequence[float], b: Sequence[float]) -> float:
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)
