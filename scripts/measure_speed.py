"""Time of ``convert`` with both engines, beside llama.cpp reading the same tokens without anybody watching.

    python scripts/measure_speed.py --tokens 8192 --threads 2 MODEL.gguf ...

The three take turns, so that a machine that slows down slows all of them; medians of the rounds, and of the ratios
round by round. Plain reading is timed without loading the model, the conversions with everything: vocabulary, model,
calibration, and the sidecar that they write. A table, then one JSON line. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from triattn_local.calib_tools.calibrate import CHUNK_TOKENS
from triattn_local.calib_tools.convert import convert
from triattn_local.calib_tools.corpus import bundled_corpus
from triattn_local.calib_tools.tokens import open_vocabulary, sequences
from triattn_local.config import RuntimeConfig
from triattn_local.engine.contexts import Model


def read_plainly(model: Path, texts: list[list[int]], n_threads: int | None) -> float:
    """Seconds that llama.cpp takes for the tokens, as the runtime engine has it read them."""
    config = RuntimeConfig(n_batch=512, n_ubatch=512, n_threads=n_threads)
    with Model(model, config) as loaded, loaded.context(None, max(map(len, texts))) as context:
        context.decode(texts[0][:16])
        began = time.perf_counter()
        for tokens in texts:
            context.rewind(0)
            context.prefill(tokens)
        context.synchronize()
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results = []
    print(f"{'model':<42} {'tokens':>7} {'plain':>8} {'runtime':>8} {'torch':>8} {'runtime/plain':>14}", end="")
    print(f" {'torch/plain':>12}")
    for model in options.models:
        with open_vocabulary(model) as vocabulary:
            texts = sequences(vocabulary, bundled_corpus(), options.tokens, CHUNK_TOKENS)
        seconds: dict[str, list[float]] = {"plain": [], "runtime": [], "torch": []}
        with tempfile.TemporaryDirectory() as folder:
            for _ in range(options.rounds):
                seconds["plain"].append(read_plainly(model, texts, options.threads))
                for engine in ("runtime", "torch"):
                    out = Path(folder) / "stats.gguf"
                    done = convert(model, out, True, (), options.tokens, True, engine=engine, n_threads=options.threads)
                    assert done.elapsed_s is not None
                    seconds[engine].append(done.elapsed_s)
        middle = {name: statistics.median(values) for name, values in seconds.items()}
        ratio = {
            name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
            for name in ("runtime", "torch")
        }
        n_tokens = sum(map(len, texts))
        print(
            f"{model.name:<42} {n_tokens:7} {middle['plain']:6.1f} s {middle['runtime']:6.1f} s "
            f"{middle['torch']:6.1f} s {ratio['runtime']:14.2f} {ratio['torch']:12.2f}",
            flush=True,
        )
        results.append({"model": model.name, "tokens": n_tokens, "seconds": seconds, "ratio": ratio})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
