#pragma once

// One evicting layer of the cache, as all that reads and writes its rows sees it.

#include "llama-triattn.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

struct llama_triattn_layer {
    std::vector<int32_t> ils; // model layers that read this K (more than one where layers reuse a cache)

    ggml_tensor * k; // [n_embd_k_gqa, n_cells, n_stream]
    ggml_tensor * v; // the same, or [n_cells, n_embd_v_gqa, n_stream] as memory if v_trans

    uint32_t n_head;    // query heads of one model layer
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_embd_head_v;
};
