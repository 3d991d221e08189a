#pragma once

// From the scores of single query heads to the tokens that each set keeps. Plain host code: knows no cache, no graph.

#include <cstdint>
#include <vector>

// One layer's scores, as the scoring graph leaves them.
struct llama_triattn_layer_scores {
    uint32_t n_head;    // query heads
    uint32_t n_head_kv;

    std::vector<float> data;   // [n_head][n_cand], query head h belongs to KV head h/(n_head/n_head_kv)
    std::vector<float> values; // [n_head_kv][n_cand] log |v|, empty where values do not count
};

enum llama_triattn_set_rule {
    LLAMA_TRIATTN_SET_SHARED_MEAN, // one set: mean over all layers and KV heads
    LLAMA_TRIATTN_SET_SHARED_MAX,  // one set: max over all layers and KV heads
    LLAMA_TRIATTN_SET_PER_HEAD,    // n_head_kv sets: mean over the layers
    LLAMA_TRIATTN_SET_PER_LAYER,   // sum of n_head_kv over the layers sets, layer by layer
};

// z-score each query head over the candidates (population std, floor 1e-6), take the max over the query heads of a KV head,
// add the z-score of its values times weight_v, and combine by the rule. Returns [n_set][n_cand]. A score that is not finite
// counts as the lowest.
std::vector<float> llama_triattn_combine(
        const std::vector<llama_triattn_layer_scores> & layers,
        uint32_t n_cand,
        float    weight_v,
        llama_triattn_set_rule rule);

// The n_drop candidates of the lowest scores, as a mask [n_cand]; of equal scores the earlier candidate goes first.
void llama_triattn_drop_lowest(const float * scores, uint32_t n_cand, uint32_t n_drop, std::vector<uint8_t> & drop);
