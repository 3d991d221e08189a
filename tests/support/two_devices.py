"""A child process of test_engine_devices: eviction with the layers on one CPU, or spread over two rpc-servers.

    python two_devices.py MODEL STATS FOLDER_OF_LIBRARIES COLD N_GPU_LAYERS PORT...

Prints as JSON what must not depend on where layers lie: what the prompt left (the logits, the tokens in each head), the
text, the tokens that each head kept, the numbers of rounds and of tokens in the cold tier, and whether a saved state
goes on like the sequence that it was taken of.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np
from engine import Engine

from triattn_local.config import EvictionConfig
from triattn_local.engine import native


def register(folder: Path, ports: list[str]) -> None:
    rpc = ctypes.CDLL(str(next(folder.glob("libggml-rpc.*"))))
    base = ctypes.CDLL(str(next(path for path in folder.glob("libggml.*"))))
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    base.ggml_backend_register.argtypes = [ctypes.c_void_p]
    for port in ports:
        registry = rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode())
        assert registry, f"no rpc-server at {port}"
        base.ggml_backend_register(registry)


def _kept(engine: Engine) -> list[list[int]]:
    return [
        sorted(native.get_kept(engine.ctx, il, head)[0].tolist())
        for il in native.get_layers(engine.ctx)
        for head in (0, 1)
    ]


def main() -> None:
    model, stats, folder, cold, n_layers, *ports = sys.argv[1:]
    register(Path(folder), ports)
    defaults = llama_cpp.llama_model_default_params

    split = (ctypes.c_float * llama_cpp.LLAMA_MAX_DEVICES)(*[1.0] * max(1, len(ports)))

    def params() -> llama_cpp.llama_model_params:
        result = defaults()
        result.n_gpu_layers = int(n_layers)
        result.tensor_split = split
        return result

    llama_cpp.llama_model_default_params = params
    config = EvictionConfig(budget_tokens=256, window=32, n_keep=4, cold=cold)
    with Engine(Path(model), config, stats=Path(stats), n_ctx=4096, n_batch=128) as engine:
        logits = engine.feed([3 + i * 97 % 250 for i in range(400)])
        read = {"logits": logits.tolist(), "kept": _kept(engine)}
        text, _ = engine.greedy(logits, 300)
        state = engine.state()
        first = engine.decode([7])
        assert engine.set_state(state)
        goes_on = bool(np.array_equal(first, engine.decode([7])))
        kept = _kept(engine)
        done = engine.stats()
        result = {"read": read, "text": text, "kept": kept, "goes_on": goes_on}
        result |= {"n_rounds": done.n_rounds, "n_recalls": done.n_recalls, "n_tokens_stored": done.n_tokens_stored}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
