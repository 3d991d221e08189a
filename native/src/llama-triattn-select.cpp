#include "llama-triattn-select.h"

#include <algorithm>
#include <cmath>
#include <cstring>

static const float SCORE_LOWEST = -1e30f;

std::vector<float> llama_triattn_combine(
        const std::vector<llama_triattn_layer_scores> & layers,
        uint32_t n_cand,
        llama_triattn_set_rule rule) {
    uint32_t n_set  = 0;
    uint32_t n_pool = 0; // KV heads that make one set
    for (const auto & l : layers) {
        n_pool += l.n_head_kv;
    }
    switch (rule) {
        case LLAMA_TRIATTN_SET_SHARED_MEAN:
        case LLAMA_TRIATTN_SET_SHARED_MAX: n_set = 1;                                                           break;
        case LLAMA_TRIATTN_SET_PER_HEAD:   n_set = layers.empty() ? 0 : layers[0].n_head_kv; n_pool = layers.size(); break;
        case LLAMA_TRIATTN_SET_PER_LAYER:  n_set = n_pool; n_pool = 1;                                          break;
    }

    const bool  use_max = rule == LLAMA_TRIATTN_SET_SHARED_MAX;
    const float weight  = use_max ? 1.0f : 1.0f/std::max(n_pool, 1u);

    std::vector<float> res((size_t) n_set*n_cand, use_max ? SCORE_LOWEST : 0.0f);

    uint32_t i_kv = 0; // KV heads so far
    for (const auto & l : layers) {
        for (uint32_t h = 0; h < l.n_head_kv; ++h, ++i_kv) {
            const uint32_t set = rule == LLAMA_TRIATTN_SET_PER_LAYER ? i_kv : rule == LLAMA_TRIATTN_SET_PER_HEAD ? h : 0;

            const float * src = l.data.data() + (size_t) h*n_cand;
            float       * dst = res.data()    + (size_t) set*n_cand;
            for (uint32_t i = 0; i < n_cand; ++i) {
                const float x = std::isfinite(src[i]) ? src[i] : 0.0f;

                dst[i] = use_max ? std::max(dst[i], x) : dst[i] + weight*x;
            }
        }
    }

    return res;
}

// integers in the order of the numbers
static int32_t order_of(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits ^ ((bits >> 31) & INT32_MAX);
}

void llama_triattn_drop_lowest(const float * scores, uint32_t n_cand, uint32_t n_drop, std::vector<uint8_t> & drop) {
    n_drop = std::min(n_drop, n_cand);

    drop.assign(n_cand, 0);
    if (n_drop == 0) {
        return;
    }

    std::vector<int32_t> keys(n_cand);
    for (uint32_t i = 0; i < n_cand; ++i) {
        keys[i] = order_of(scores[i]);
    }

    // The n_drop-th lowest key is the largest that has fewer than n_drop below it: found bit by bit, since counting is
    // several times as fast as sorting, and there are hundreds of sets.
    int32_t  limit   = INT32_MIN;
    uint32_t n_lower = 0; // keys below it
    for (int bit = 31; bit >= 0; --bit) {
        const int32_t above = (int32_t) ((uint32_t) limit + (1u << bit));

        uint32_t n = 0;
        for (const int32_t key : keys) {
            n += key < above;
        }
        if (n < n_drop) {
            limit   = above;
            n_lower = n;
        }
    }

    uint32_t n_equal = n_drop - n_lower; // of those at the limit
    for (uint32_t i = 0; i < n_cand; ++i) {
        const bool is_equal = keys[i] == limit && n_equal > 0;

        drop[i]  = keys[i] < limit || is_equal;
        n_equal -= is_equal;
    }
}
