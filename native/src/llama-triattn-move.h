#pragma once

// Moving: rows change cells, bit for bit, each KV head by itself. Knows nothing of scores or of positions.

#include "llama-triattn-cache-layer.h"

#include <cstdint>
#include <vector>

// For each layer and KV head, rows from cells `src` to cells `dst` of one stream. Every head of a layer has the same number of
// pairs; a pair with src == dst leaves a row where it is.
struct llama_triattn_moves {
    struct layer {
        uint32_t n = 0; // pairs of a head
        std::vector<int32_t> src; // [n_head_kv][n]
        std::vector<int32_t> dst; // [n_head_kv][n]
    };

    std::vector<layer> layers; // in cache order
};

enum llama_triattn_moved {
    LLAMA_TRIATTN_MOVED_ALL,
    LLAMA_TRIATTN_MOVED_NOTHING, // no memory for the graph; all rows are where they were
    LLAMA_TRIATTN_MOVED_SOME,    // a device failed amid the graph: what the cells hold is not known any more
};

llama_triattn_moved llama_triattn_move(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const llama_triattn_moves & moves,
        uint32_t stream,
        bool v_trans,
        llama_triattn_stats & counters);
