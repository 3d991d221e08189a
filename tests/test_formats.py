"""Numbers as people read them: the same everywhere."""

from __future__ import annotations

import pytest

from triattn_local.support import formats


@pytest.mark.parametrize(
    ("n_bytes", "unit", "shown"),
    [
        (0, "", "0 KiB"),
        (1023 << 10, "", "1,023 KiB"),
        (int(22.54 * 2**20), "", "22.5 MiB"),
        (317 << 20, "", "317 MiB"),
        (1 << 30, "", "1.0 GiB"),
        (-5 << 30, "", "-5.0 GiB"),
        (-5 << 20, "", "-5.0 MiB"),
        (128 << 30, "", "128 GiB"),
        (64 << 20, "GiB", "0.1 GiB"),
        (18_800 << 20, "MiB", "18,800.0 MiB"),
    ],
)
def test_bytes(n_bytes: int, unit: str, shown: str) -> None:
    assert formats.size(n_bytes, unit) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.44, "0.4 s"), (12.4, "12 s"), (185, "3:05"), (3723, "1:02:03")])
def test_times(seconds: float, shown: str) -> None:
    assert formats.seconds(seconds) == shown
