#include "llama-triattn-select.h"

#include <algorithm>
#include <cmath>
#include <numeric>

static const float SCORE_LOWEST = -1e30f;

static void z_score(const float * src, float * x, uint32_t n) {
    double sum = 0.0;
    for (uint32_t i = 0; i < n; ++i) {
        x[i] = std::isfinite(src[i]) ? src[i] : SCORE_LOWEST;
        sum += x[i];
    }
    const double mean = sum/n;

    double sum2 = 0.0;
    for (uint32_t i = 0; i < n; ++i) {
        const double d = x[i] - mean;
        sum2 += d*d;
    }

    const float m     = (float) mean;
    const float scale = (float) (1.0/std::max(std::sqrt(sum2/n), 1e-6));
    for (uint32_t i = 0; i < n; ++i) {
        x[i] = (x[i] - m)*scale;
    }
}

std::vector<float> llama_triattn_combine(
        const std::vector<llama_triattn_layer_scores> & layers,
        uint32_t n_cand,
        float    weight_v,
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
    std::vector<float> head(n_cand);
    std::vector<float> z(n_cand);

    uint32_t i_kv = 0; // KV heads so far
    for (const auto & l : layers) {
        const uint32_t n_gqa = l.n_head/l.n_head_kv;

        for (uint32_t h = 0; h < l.n_head_kv; ++h, ++i_kv) {
            for (uint32_t g = 0; g < n_gqa; ++g) {
                z_score(l.data.data() + (size_t) (h*n_gqa + g)*n_cand, z.data(), n_cand);
                if (g == 0) {
                    head.swap(z);
                } else {
                    for (uint32_t i = 0; i < n_cand; ++i) {
                        head[i] = std::max(head[i], z[i]);
                    }
                }
            }

            if (!l.values.empty()) {
                z_score(l.values.data() + (size_t) h*n_cand, z.data(), n_cand);
                for (uint32_t i = 0; i < n_cand; ++i) {
                    head[i] += weight_v*z[i];
                }
            }

            const uint32_t set = rule == LLAMA_TRIATTN_SET_PER_LAYER ? i_kv : rule == LLAMA_TRIATTN_SET_PER_HEAD ? h : 0;

            float * dst = res.data() + (size_t) set*n_cand;
            if (use_max) {
                for (uint32_t i = 0; i < n_cand; ++i) {
                    dst[i] = std::max(dst[i], head[i]);
                }
            } else {
                for (uint32_t i = 0; i < n_cand; ++i) {
                    dst[i] += weight*head[i];
                }
            }
        }
    }

    return res;
}

void llama_triattn_drop_lowest(const float * scores, uint32_t n_cand, uint32_t n_drop, std::vector<uint8_t> & drop) {
    std::vector<uint32_t> order(n_cand);
    std::iota(order.begin(), order.end(), 0);

    const auto lower = [scores](uint32_t a, uint32_t b) {
        return scores[a] != scores[b] ? scores[a] < scores[b] : a < b;
    };

    n_drop = std::min(n_drop, n_cand);
    if (n_drop > 0 && n_drop < n_cand) {
        std::nth_element(order.begin(), order.begin() + n_drop, order.end(), lower);
    }

    drop.assign(n_cand, 0);
    for (uint32_t i = 0; i < n_drop; ++i) {
        drop[order[i]] = 1;
    }
}
