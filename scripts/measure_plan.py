"""A plan beside what llama.cpp then allocates: KV bytes must be equal, the sum within 3 %.

    python scripts/measure_plan.py qwen3-32b --ctx 131072 --budget 4096     20 GB of disk, two minutes
    python scripts/measure_plan.py qwen3-32b --layers 4                     3 GB, seconds
    python scripts/measure_plan.py model.gguf

Of a geometry, a synthetic file is written and deleted afterwards. Weights are mapped and the cache is allocated in main
memory; nothing is computed. A table, then one JSON line; exits with 1 if the plan is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from allocation import allocate

from triattn_local.geometry import find_geometry, write_geometry
from triattn_local.planning import MemoryProbe
from triattn_local.planning.accounting import Shape

TOLERANCE = 0.03


def compare(path: Path, shape: Shape) -> dict[str, object]:
    """Both sides, in bytes."""
    with MemoryProbe(path) as probe:
        context = probe.context(shape)
        planned = {"weights": probe.weights.total, "kv": context.kv, "compute": context.compute_most}
    there = allocate(path, shape, mmap=True)
    allocated = {"weights": there.weights, "kv": there.kv, "compute": there.compute}
    error = sum(planned.values()) / sum(allocated.values()) - 1
    return {
        "n_ctx": shape.n_ctx,
        "budget": shape.budget,
        "planned": planned,
        "allocated": allocated,
        "error": round(error, 6),
        "is_right": planned["kv"] == allocated["kv"] and abs(error) <= TOLERANCE,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a geometry, or a GGUF file")
    parser.add_argument("--layers", type=int, help="of the geometry; all if not given")
    parser.add_argument("--ctx", type=int, default=131072)
    parser.add_argument("--budget", type=int, default=4096)
    parser.add_argument("--full-ctx", type=int, default=32768, help="of full attention")
    parser.add_argument("--cache-type", default="f16")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(args.model)
        if not path.is_file():
            path = write_geometry(find_geometry(args.model).cut(args.layers), Path(folder) / f"{args.model}.gguf")
        rows = [
            compare(path, Shape(n_ctx, 512, 512, args.cache_type, args.cache_type, budget, 128))
            for n_ctx, budget in ((args.ctx, args.budget), (args.full_ctx, None))
        ]
    print(f"{'context':>9} {'budget':>7} {'':9} {'weights':>16} {'KV cache':>16} {'compute':>14}")
    for row in rows:
        for side in ("planned", "allocated"):
            sizes = row[side]
            assert isinstance(sizes, dict)
            print(
                f"{row['n_ctx']:>9,} {row['budget'] or 'full':>7} {side:9}"
                f" {sizes['weights']:>16,} {sizes['kv']:>16,} {sizes['compute']:>14,}"
            )
    print(json.dumps(rows))
    return 0 if all(row["is_right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
