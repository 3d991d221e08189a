#pragma once

// How much the last queries want each row of the store, and which rows a head calls back for it. Products on the CPU, beside the
// context: knows no cells.

#include "llama-triattn-queries.h"
#include "llama-triattn-store.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include <cstdint>
#include <vector>

// Queries of one cache layer, as scoring wants them.
struct llama_triattn_wanting {
    std::vector<float>     q;    // [n_head_kv][n_query][n_embd_head] scaled: a product with a key is a logit
    std::vector<llama_pos> pos;  // [n_query] of the query: it does not see later tokens
    std::vector<float>     sink; // [n_head_kv][n_query] a logit that takes part without a token; empty: none

    uint32_t n_query  = 0;
    float    soft_cap = 0.0f; // logits are soft_cap*tanh(logit/soft_cap); 0: as they are
};

class llama_triattn_recaller {
public:
    // Throws std::runtime_error if there is no CPU backend.
    llama_triattn_recaller(ggml_type type_k, uint32_t n_threads);

    // The logarithm of the largest softmax weight that one of the queries gives to each token of the sequence, over all its tokens:
    // [n_head_kv][size], -INFINITY where the store has none.
    bool score(
            const llama_triattn_store & store,
            llama_seq_id seq_id,
            uint32_t i_layer,
            uint32_t n_head_kv,
            uint32_t n_embd_head,
            const llama_triattn_wanting & wanting,
            std::vector<float> & weights);

private:
    const ggml_type type_k;

    ggml_backend_ptr backend;

    std::vector<float> scratch;
};

// The positions of [p0, p1) that get one of n_max places: aligned blocks of n_block tokens by the largest weight of each, or single
// tokens (n_block 1). Tokens without a weight are not there. In descending order of what decided.
std::vector<llama_pos> llama_triattn_wanted(const float * weights, llama_pos p0, llama_pos p1, uint32_t n_max, uint32_t n_block);
