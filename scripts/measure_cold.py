"""What the cold tier costs: speed with it and without it, and a recall at the shapes of large models.

    python scripts/measure_cold.py --model MODEL.gguf --depths 8192
    python scripts/measure_cold.py --shape qwen3-32b --depths 8192,32768,131072

Of a model: two contexts in one process, one with the cold tier, take turns in reading to the depth and in decoding
there; medians of the ratios turn by turn.

Of a shape: two layers with the attention of the shape (heads, head size, KV heads) and little else are written with
random weights, and read to each depth. Then recalls are timed: at a prompt's end, and for a few queries while text
streams. What a recall reads grows with the depth and the layers, so the figures of all layers are those of two, times
layers / 2. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.contexts import Context, Model
from triattn_local.evaluation.texts import read_text
from triattn_local.geometry import find_geometry, write_geometry

N_LAYER = 2
WIDTH = 256
"""of everything but attention"""
SHAPES = {
    "qwen3-32b": {"n_head": 64, "n_head_kv": 8, "head_dim": 128, "n_layer": 64},
    "qwen3-8b": {"n_head": 32, "n_head_kv": 8, "head_dim": 128, "n_layer": 36},
    # 16 of its 64 layers attend
    "qwen3.5-27b": {"n_head": 24, "n_head_kv": 4, "head_dim": 256, "n_layer": 16},
}


def time_recalls(context: Context, tokens: np.ndarray, n: int) -> dict[str, float]:
    """Medians of `n` recalls of each kind: milliseconds, and rows that came back."""
    found: dict[str, list[float]] = {"prompt": [], "prompt_rows": [], "stream": [], "stream_rows": [], "token": []}
    for kind, recall in (("prompt", (0.0, 0.65)), ("stream", (0.5, 0.0)), ("token", (0.0, 0.0))):
        native.set_recall(context.handle, *recall, 16, 24, 2)
        while len(found[kind]) < n:  # while text streams a small model is recalled for rarely
            before, start_s = context.stats(), time.perf_counter()
            few = tokens[context.n_past % 4096 :][: 32 if kind == "prompt" else 1]
            context.decode(few.tolist(), 1)
            now = context.stats()
            if kind == "token":
                found["token"].append((time.perf_counter() - start_s) * 1e3)
            elif now.n_recalls > before.n_recalls:
                n_recalls = now.n_recalls - before.n_recalls
                found[kind].append((now.t_recall_us - before.t_recall_us) / n_recalls / 1e3)
                found[f"{kind}_rows"].append((now.n_rows_recalled - before.n_rows_recalled) / n_recalls)
    return {name: statistics.median(values) for name, values in found.items()}


def compare(path: Path, depth: int, budget: int, n_threads: int, n_turns: int) -> dict[str, float]:
    """Speed with the cold tier over speed without it, in turns: reading `depth` tokens, and decoding behind them."""
    config = RuntimeConfig(n_ctx=depth + 64 * n_turns + 64, n_threads=n_threads, n_batch=512, n_ubatch=512)
    seconds: dict[str, dict[str, list[float]]] = {kind: {"off": [], "auto": []} for kind in ("reading", "decoding")}
    with Model(path, config) as model:
        tokens = model.vocabulary.tokenize(read_text("novel"), add_special=False)[: depth + 64 * n_turns]
        both = {}
        for cold in ("off", "auto"):
            both[cold] = model.context(EvictionConfig(budget_tokens=budget, cold=cold))
        for first in range(0, depth, 512):
            for cold, context in both.items():
                start_s = time.perf_counter()
                context.decode(tokens[first : first + 512])
                context.synchronize()
                seconds["reading"][cold].append(time.perf_counter() - start_s)
        for turn in range(n_turns):
            for cold in ("off", "auto") if turn % 2 else ("auto", "off"):
                start_s = time.perf_counter()
                for token in tokens[depth + 64 * turn : depth + 64 * (turn + 1)]:
                    both[cold].decode([token], 1)
                seconds["decoding"][cold].append(time.perf_counter() - start_s)
        stats = both["auto"].stats()
        for context in both.values():
            context.close()
    ratio = {
        kind: statistics.median(off / on for off, on in zip(of["off"], of["auto"], strict=True))
        for kind, of in seconds.items()
    }
    return {
        **ratio,
        "tokens_per_s": 64 / statistics.median(seconds["decoding"]["auto"]),
        "n_rounds": stats.n_rounds,
        "n_cells_used": stats.n_cells_used,
        "n_recalls": stats.n_recalls,
        "recall_ms": stats.t_recall_us / max(stats.n_recalls, 1) / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="with statistics")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-32b")
    parser.add_argument("--depths", default="8192", help="stored tokens")
    parser.add_argument("--budget", type=int, default=512, help="the store is read whole, whatever the budget")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--recalls", type=int, default=9)
    options = parser.parse_args()
    if options.model:
        for depth in map(int, options.depths.split(",")):
            found = compare(options.model, depth, options.budget, options.threads, options.turns)
            print(json.dumps({"model": options.model.name, "depth": depth, "budget": options.budget, **found}))
        return
    shape = dict(SHAPES[options.shape])
    n_layer = shape.pop("n_layer")
    depths = sorted(int(depth) for depth in options.depths.split(","))
    geometry = dataclasses.replace(
        find_geometry("qwen3-8b"), n_embd=WIDTH, n_ff=WIDTH, n_ctx_train=2 * depths[-1], **shape
    ).cut(N_LAYER, 2048)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_geometry(geometry, Path(folder) / "shape.gguf")
        eviction = EvictionConfig(budget_tokens=options.budget, cold="auto")
        config = RuntimeConfig(n_ctx=depths[-1] + 16384, n_threads=options.threads, n_batch=512, n_ubatch=512)
        with Model(path, config) as model, model.context(eviction) as context:
            tokens = np.random.default_rng(0).integers(300, 2000, depths[-1] + 8192)
            print(f"{options.shape}: {n_layer} layers that evict, two measured, {options.threads} threads")
            columns = ("stored", "GB of all", "prompt ms", "stream ms", "all, stream ms", "MB moved, all")
            print(" ".join(f"{name:>14}" for name in columns))
            for depth in depths:
                while context.n_past < depth:
                    context.decode(tokens[context.n_past : min(context.n_past + 512, depth)].tolist())
                stats = context.stats()
                row = {"stored": depth, **time_recalls(context, tokens, options.recalls)}
                row_bytes = stats.cold_bytes / depth / (N_LAYER * shape["n_head_kv"])
                row["all_store_gb"] = stats.cold_bytes * n_layer / N_LAYER / 1e9
                row["all_stream_ms"] = row["stream"] * n_layer / N_LAYER
                row["all_prompt_ms"] = row["prompt"] * n_layer / N_LAYER
                row["all_moved_mb"] = row["prompt_rows"] * row_bytes * n_layer / N_LAYER / 1e6
                print(
                    f"{depth:14} {row['all_store_gb']:14.2f} {row['prompt']:14.2f} {row['stream']:14.2f} "
                    f"{row['all_stream_ms']:14.0f} {row['all_moved_mb']:14.2f}",
                    flush=True,
                )
                rows.append(row)
    print(json.dumps({"shape": options.shape, "threads": options.threads, "budget": options.budget, "rows": rows}))


if __name__ == "__main__":
    main()
