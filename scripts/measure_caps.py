"""Needles found when the cold tier may take only a part of what it needs: a table by the cap.

    python scripts/measure_caps.py MODEL.gguf --kept 0.125 --parts 0,0.1,0.25,0.5,1 --cases 12

One fact in --tokens, asked for behind them, as ``triattn-local eval --tasks niah-single`` does. 0 is without a cold
tier. The folder --out goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from triattn_local.config import RuntimeConfig
from triattn_local.engine.context_options import ContextOptions
from triattn_local.evaluation.methods import GROUPS, Method
from triattn_local.evaluation.runner import Grid, run_grid
from triattn_local.evaluation.tasks import TASKS, Size
from triattn_local.model.model_info import read_model_info
from triattn_local.planning.cold import cold_plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=Path("eval/caps"))
    parser.add_argument("--kept", default="0.125")
    parser.add_argument("--parts", default="0,0.1,0.25,0.5,1")
    parser.add_argument("--tokens", type=int, default=3000)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    info = read_model_info(options.model)
    plan = cold_plan(info, ContextOptions(n_ctx=options.tokens), 0, "auto")
    assert plan is not None
    token_bytes = plan.token_bytes
    methods = [GROUPS["modes"][0]]
    for part in map(float, options.parts.split(",")):
        cold = round(part * options.tokens) * token_bytes or "off"
        methods.append(Method(f"{part:g}", f"{part:.0%} of the rows", {"cold": cold}))
    fractions = tuple(map(float, options.kept.split(",")))
    size = Size(n_tokens=options.tokens, n_cases=options.cases)
    grid = Grid([TASKS["niah-single"]], methods, fractions, size)
    config = RuntimeConfig(n_threads=options.threads)
    lines = run_grid(options.model, config, grid, options.out, progress=lambda step: print(step.text, flush=True))
    for fraction in (1.0, *fractions):
        for method in methods:
            found = [line for line in lines if (line.method, line.kept) == (method.name, fraction)]
            if found:
                n_right = sum(float(line.metrics["found"]) for line in found)
                rounds, cells = max(line.n_rounds for line in found), max(line.n_cells_used_max for line in found)
                name = f"kept {fraction:6.3g}  cap {method.name:>5}"
                print(f"{name}  {n_right:g} of {len(found)}  {rounds} rounds, {cells} cells")


if __name__ == "__main__":
    main()
