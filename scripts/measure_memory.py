"""Peak memory and time of the torch engine on a model with Qwen3-32B's layer shapes, for several numbers of layers.

    python scripts/measure_memory.py --layers 4 16 --tokens 512         at full width: 17 GB of disk, minutes
    python scripts/measure_memory.py --layers 4 16 --shrink 4           a quarter of the width: seconds

The weights are random Q4_K blocks, the same ones in every layer. Each model is measured in a process of its own, and
deleted afterwards. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np

N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_FF, N_VOCAB = 5120, 64, 8, 128, 25600, 512
MAX_SEQUENCE = 2048

_MEASURE = """
import json, resource, sys, time
from pathlib import Path
import torch
from triattn_local.calib_tools.accumulate import HeadSums
from triattn_local.calib_tools.engine_torch import TorchEngine
from triattn_local.calib_tools.weights import Weights
from triattn_local.model.model_info import read_model_info

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

info, n_tokens, longest = read_model_info(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
before, seconds = peak(), []
sums = {}
with Weights(info) as weights:
    engine = TorchEngine(info, weights, torch.device("cpu"))
    tokens = torch.randint(0, weights.shape("token_embd.weight")[0], (n_tokens,)).tolist()
    hidden = engine.start([tokens[i : i + longest] for i in range(0, n_tokens, longest)])

    def add(il, q, k):
        sums.setdefault(il, HeadSums(info.n_head[il], info.head_dim, info.n_rot, info.rope_type)).add(q)

    for _ in range(info.n_layer):
        began = time.perf_counter()
        engine.step(hidden, info.full_layers, add)
        seconds.append(time.perf_counter() - began)
assert torch.isfinite(hidden.values).all()
print(json.dumps({"peak": peak(), "before": before, "seconds": seconds}))
"""


def write_model(path: Path, n_layer: int, shrink: int) -> Path:
    """A qwen3 model of so many layers; ``shrink`` divides its width."""
    n_embd, n_ff, n_head, n_head_kv = N_EMBD // shrink, N_FF // shrink, N_HEAD // shrink, max(1, N_HEAD_KV // shrink)
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_block_count(n_layer)
    writer.add_context_length(40960)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e6)
    rng = np.random.default_rng(0)
    blocks: dict[tuple[int, int], np.ndarray] = {}

    def packed(n_row: int, n_column: int) -> np.ndarray:
        if (n_row, n_column) not in blocks:
            # one random row of blocks over and over: dequantising does not mind, and drawing gigabytes takes long
            row = rng.integers(0, 256, (16, n_column // 256, 144), dtype=np.uint8)
            row[..., 0:4] = np.array([2e-4, 1e-3], np.float16).view(np.uint8)
            blocks[n_row, n_column] = np.tile(row.reshape(16, -1), (-(-n_row // 16), 1))[:n_row]
        return blocks[n_row, n_column]

    def add(name: str, n_row: int, n_column: int) -> None:
        writer.add_tensor(name, packed(n_row, n_column), raw_dtype=gguf.GGMLQuantizationType.Q4_K)

    add("token_embd.weight", N_VOCAB, n_embd)
    writer.add_tensor("output_norm.weight", np.ones(n_embd, np.float32))
    for il in range(n_layer):
        block = f"blk.{il}."
        for name, n in (
            ("attn_norm", n_embd),
            ("ffn_norm", n_embd),
            ("attn_q_norm", HEAD_DIM),
            ("attn_k_norm", HEAD_DIM),
        ):
            writer.add_tensor(f"{block}{name}.weight", np.ones(n, np.float32))
        add(f"{block}attn_q.weight", n_head * HEAD_DIM, n_embd)
        add(f"{block}attn_k.weight", n_head_kv * HEAD_DIM, n_embd)
        add(f"{block}attn_v.weight", n_head_kv * HEAD_DIM, n_embd)
        add(f"{block}attn_output.weight", n_embd, n_head * HEAD_DIM)
        add(f"{block}ffn_gate.weight", n_ff, n_embd)
        add(f"{block}ffn_up.weight", n_ff, n_embd)
        add(f"{block}ffn_down.weight", n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def measure(n_layer: int, n_tokens: int, shrink: int, folder: Path) -> dict[str, float]:
    """Peak memory in bytes and seconds of a layer (median), of one model."""
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = write_model(Path(temporary) / "m.gguf", n_layer, shrink)
        size = path.stat().st_size
        command = [sys.executable, "-c", _MEASURE, str(path), str(n_tokens), str(MAX_SEQUENCE)]
        done = subprocess.run(command, cwd=temporary, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return {
        "layers": n_layer,
        "tokens": n_tokens,
        "file_bytes": size,
        "peak_bytes": found["peak"],
        "before_bytes": found["before"],
        # the last layer ends at its queries
        "layer_s": float(np.median(found["seconds"][:-1])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--shrink", type=int, default=1, choices=(1, 2, 4), help="divides the width")
    parser.add_argument("--folder", type=Path, default=None, help="where the models are written for the time being")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.gettempdir())
    results = [measure(n, options.tokens, options.shrink, folder) for n in options.layers]
    print(f"{'layers':>6} {'file':>9} {'peak memory':>12} {'without model':>14} {'a layer':>9} {'64 layers':>10}")
    for r in results:
        print(
            f"{r['layers']:6} {r['file_bytes'] / 2**30:6.2f} GiB {r['peak_bytes'] / 2**30:8.2f} GiB "
            f"{r['before_bytes'] / 2**30:10.2f} GiB {r['layer_s']:7.2f} s {r['layer_s'] * 64:8.0f} s"
        )
    print(json.dumps({"tokens": options.tokens, "shrink": options.shrink, "runs": results}))


if __name__ == "__main__":
    main()
