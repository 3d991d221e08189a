"""Logits through the plain C API of whatever libllama is loaded: for the library without our patch."""

from __future__ import annotations

import itertools
import os

import llama_cpp
import numpy as np


def logits_over(model_path: str, tokens: list[int], flash_attn: bool) -> np.ndarray:
    """Logits of every token: a prompt in two batches, then token by token."""
    model = llama_cpp.llama_model_load_from_file(model_path.encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = 1024, 512, 512
    params.n_threads = params.n_threads_batch = len(os.sched_getaffinity(0))
    params.type_k = params.type_v = 1  # f16
    params.flash_attn_type = int(flash_attn)
    ctx = llama_cpp.llama_init_from_model(model, params)
    assert not hasattr(llama_cpp.llama_cpp._lib, "llama_triattn_set_params"), "this is the patched library"
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    rows: list[np.ndarray] = []
    n = len(tokens)
    bounds = [0, n // 4, *range(n // 2, n + 1)]
    for start, end in itertools.pairwise(bounds):
        batch = llama_cpp.llama_batch_init(end - start, 0, 1)
        for i in range(end - start):
            batch.token[i] = tokens[start + i]
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = True
        batch.n_tokens = end - start
        assert llama_cpp.llama_decode(ctx, batch) == 0
        rows += [
            np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(ctx, i), (n_vocab,)).copy() for i in range(end - start)
        ]
        llama_cpp.llama_batch_free(batch)
    return np.stack(rows)
