"""Numbers as people read them, short enough for a terminal: counts, bytes, times."""

from __future__ import annotations

import time

_UNITS = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10}


def short(n: int) -> str:
    """987, 6.1k, 131k, 2.4M"""
    for limit, unit in ((1_000_000, "M"), (1_000, "k")):
        if n >= limit:
            value = n / limit
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return str(n)


def size(n_bytes: float, unit: str = "") -> str:
    """22.5 MiB, 317 MiB, -1.2 GiB; with a decimal in any case where the unit is given"""
    name = unit or next((name for name, one in _UNITS.items() if abs(n_bytes) >= one), "KiB")
    value = n_bytes / _UNITS[name]
    n_decimals = 0 if not unit and (abs(value) >= 100 or name == "KiB") else 1
    return f"{value:,.{n_decimals}f} {name}"


def short_size(n_bytes: float) -> str:
    """22.5M, 1.2G: binary, too"""
    number, unit = size(n_bytes).split()
    return f"{number.removesuffix('.0')}{unit[0]}"


def seconds(s: float) -> str:
    """0.4 s, 12 s, 3:05, 1:02:03"""
    if s < 10:
        return f"{s:.1f} s"
    if s < 60:
        return f"{s:.0f} s"
    minutes, rest = divmod(round(s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(then: float, now: float | None = None) -> str:
    """When something was: just now, 5 min ago, 3 h ago, yesterday, 12 Mar 2026"""
    passed = (time.time() if now is None else now) - then
    if passed < 60:
        return "just now"
    if passed < 3600:
        return f"{passed // 60:.0f} min ago"
    if passed < 24 * 3600:
        return f"{passed // 3600:.0f} h ago"
    if passed < 48 * 3600:
        return "yesterday"
    return time.strftime("%d %b %Y", time.localtime(then)).lstrip("0")


def plural(n: int, word: str) -> str:
    """1 round, 2 rounds"""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
