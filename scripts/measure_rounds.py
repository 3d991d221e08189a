"""What a round of eviction costs a decoding user, also what no counter sees.

    python scripts/measure_rounds.py --rounds 20 MODEL.triattn.gguf ...

Tokens are decoded one by one with one thread, without the cold tier. The whole cost of a round is how much more
processor time the step with it takes than the median of the steps before it, and the step after it, which may have to
build its graph anew, too. Beside that, what the library counts: its own time, operations, bytes that are copied. A line
for each model, then one JSON line with a digest of which tokens each head kept after each round: two builds that choose
the same print the same. The library is the one that LLAMA_CPP_LIB_PATH names; for two builds call it in turns. Run it
on a quiet machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import statistics
import time
from pathlib import Path

from triattn_local.calib_tools.corpus import bundled_corpus
from triattn_local.calib_tools.tokens import open_vocabulary, sequences
from triattn_local.config import EvictionConfig, RuntimeConfig
from triattn_local.engine import native
from triattn_local.engine.contexts import Context, Model


def _digest_kept(context: Context, digest: hashlib._Hash, n_head_kv: int) -> None:
    for il in native.get_layers(context.handle):
        for head in range(n_head_kv):
            pos, cells = native.get_kept(context.handle, il, head)
            digest.update(pos.tobytes() + cells.tobytes())


def measure(path: Path, options: argparse.Namespace) -> dict[str, object]:
    """Costs in milliseconds, medians over the rounds."""
    with open_vocabulary(path) as vocabulary:
        n_tokens = options.budget + (options.rounds + 2) * options.window
        texts = sequences(vocabulary, bundled_corpus(), max(n_tokens, 8192), 1024)
        tokens = list(itertools.chain(*texts))[:n_tokens]
    config = RuntimeConfig(
        n_threads=1,
        cache_type_k=options.cache,
        cache_type_v=options.cache,
        flash_attn=not options.no_flash_attn,
    )
    eviction = EvictionConfig(budget_tokens=options.budget, window=options.window, cold="off")
    digest = hashlib.sha256()
    plain: list[float] = []
    parts: list[tuple[float, float]] = []
    with Model(path, config) as model, model.context(eviction, n_tokens + 1) as context:
        context.decode(tokens[: options.budget])
        n_rounds = 0
        at_round: float | None = None
        first = context.stats()
        for i in range(options.budget, n_tokens, options.step):
            began = time.process_time()
            context.decode(tokens[i : i + options.step], n_logits=1)
            took = 1e3 * (time.process_time() - began)
            stats = context.stats()
            if stats.n_rounds > n_rounds:
                n_rounds, at_round = stats.n_rounds, took
                _digest_kept(context, digest, stats.n_head_kv)
                if n_rounds == 1:
                    first = stats  # the first one prepares what the others use
                continue
            if at_round is None:
                plain.append(took)
            else:
                usual = statistics.median(plain[-options.window :])
                parts.append((at_round - usual, took - usual))
            at_round = None
        last = context.stats()
    n = last.n_rounds - first.n_rounds
    counted = (last.t_total_us - first.t_total_us) / n / 1e3
    kept = digest.hexdigest()[:16]
    if options.step > 1:
        return {"model": path.name, "cache": options.cache, "flash_attn": config.flash_attn, "rounds": n, "kept": kept}
    result: dict[str, object] = {
        "model": path.name,
        "cache": options.cache,
        "flash_attn": config.flash_attn,
        "rounds": n,
    }
    result |= {
        "token_ms": statistics.median(plain),
        "whole_ms": statistics.median(a + b for a, b in parts[1:]),
        "counted_ms": counted,
    }
    result |= {"this_step_ms": statistics.median(a for a, _ in parts[1:])}
    result |= {"next_step_ms": statistics.median(b for _, b in parts[1:])}
    for name in ("t_score_us", "t_select_us", "t_move_us", "n_graphs", "n_operations", "n_bytes_copied"):
        result[name] = (dataclasses.asdict(last)[name] - dataclasses.asdict(first)[name]) / n
    result["kept"] = kept
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--step", type=int, default=1, help="tokens of a batch; more than 1: for the digest alone")
    parser.add_argument("--cache", default="f16")
    parser.add_argument("--no-flash-attn", action="store_true")
    options = parser.parse_args()
    for path in options.models:
        result = measure(path, options)
        if options.step > 1:
            print(json.dumps(result))
            continue
        print(
            f"{path.name[:24]:<24} {options.cache:<5} a round {result['whole_ms']:6.2f} ms"
            f" ({result['this_step_ms']:.2f} + {result['next_step_ms']:.2f} the next token), counted"
            f" {result['counted_ms']:.2f}; a token {result['token_ms']:.2f} ms"
        )
        print(json.dumps(result))


if __name__ == "__main__":
    main()
