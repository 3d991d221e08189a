#pragma once

// From the scores of the KV heads to the tokens that each set keeps. Plain host code: knows no cache, no graph.

#include <cstdint>
#include <vector>

// One layer's scores, as the scoring graph leaves them.
struct llama_triattn_layer_scores {
    uint32_t n_head_kv;

    std::vector<float> data;  // [n_head_kv][n_cand] largest z-score of the query heads of a KV head, and weight_v times that of log |v|
    std::vector<float> heads; // [n_head_kv][query heads of it][n_cand] before the z-score; empty unless asked for
};

enum llama_triattn_set_rule {
    LLAMA_TRIATTN_SET_SHARED_MEAN, // one set: mean over all layers and KV heads
    LLAMA_TRIATTN_SET_SHARED_MAX,  // one set: max over all layers and KV heads
    LLAMA_TRIATTN_SET_PER_HEAD,    // n_head_kv sets: mean over the layers
    LLAMA_TRIATTN_SET_PER_LAYER,   // sum of n_head_kv over the layers sets, layer by layer
};

// One score for each set and candidate, by the rule: [n_set][n_cand]. A score that is no number counts as an average one.
std::vector<float> llama_triattn_combine(
        const std::vector<llama_triattn_layer_scores> & layers,
        uint32_t n_cand,
        llama_triattn_set_rule rule);

// The n_drop candidates of the lowest scores, as a mask [n_cand]; of equal scores the earlier candidate goes first.
void llama_triattn_drop_lowest(const float * scores, uint32_t n_cand, uint32_t n_drop, std::vector<uint8_t> & drop);
