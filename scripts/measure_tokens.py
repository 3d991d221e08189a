"""How many calibration tokens it takes until the centres stop moving.

    python scripts/measure_tokens.py MODEL.gguf ...

For rising numbers of tokens of the bundled text: how far the centres lie from those of half as many, and from those of
the held-out texts, in lengths of the centre, median of heads. What more tokens of this kind cannot mend is the
difference of the texts; where the last column stops falling, the centres know as much as they will.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from triattn_local.calib_tools.calibrate import calibrate
from triattn_local.calib_tools.corpus import heldout_corpus
from triattn_local.model.stats import TriattnStats

SIZES = (512, 1024, 2048, 4096, 8192, 12288)


def distance(a: TriattnStats, b: TriattnStats) -> np.ndarray:
    """|q̄_a - q̄_b| / |q̄_b| of all heads."""
    parts = zip(a.q_mean, b.q_mean, strict=True)
    return np.concatenate([np.linalg.norm(x - y, axis=-1) / np.linalg.norm(y, axis=-1) for x, y in parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    results = []
    for model in options.models:
        held_out = calibrate(model, heldout_corpus(), 6000, engine="torch", n_threads=options.threads)
        print(
            f"{model.name}\n{'tokens':>8} {'from half as many':>18} {'from held-out':>14} {'q_abs from held-out':>20}"
        )
        before = None
        for size in SIZES:
            stats = calibrate(model, None, size, engine="torch", n_threads=options.threads)
            moved = float("nan") if before is None else float(np.median(distance(before, stats)))
            off = float(np.median(distance(stats, held_out)))
            a = np.concatenate([x.sum(-1) / y.sum(-1) for x, y in zip(stats.q_abs, held_out.q_abs, strict=True)])
            results.append({"model": model.name, "tokens": stats.n_tokens, "moved": moved, "held_out": off})
            print(f"{stats.n_tokens:8} {moved:18.3f} {off:14.3f} {float(np.median(np.abs(a - 1))):20.4f}", flush=True)
            before = stats
    print(json.dumps(results))


if __name__ == "__main__":
    main()
