"""Hand-packed GGUF files: just enough of a model for what reads headers."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

N_LAYER, N_HEAD, N_HEAD_KV, HEAD_DIM = 2, 4, 2, 8


def write_model(path: Path, *, arch: str = "llama", name: str = "tiny") -> Path:
    """A model of two layers whose norms tell it from others; it has no weights to run."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(name)
    writer.add_block_count(N_LAYER)
    writer.add_embedding_length(N_HEAD * HEAD_DIM)
    writer.add_context_length(4096)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(HEAD_DIM)
    rng = np.random.default_rng(len(name))
    for il in range(N_LAYER):
        writer.add_tensor(f"blk.{il}.attn_norm.weight", rng.standard_normal(N_HEAD * HEAD_DIM).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
