#ifndef LLAMA_TRIATTN_LAYER_H
#define LLAMA_TRIATTN_LAYER_H

// What the library knows of each layer of a model that is loaded, with or without its weights: no file says all of it.

#include "llama.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

    // How a layer's keys are cached, and whether its cache evicts.
    struct llama_triattn_layer_info {
        int32_t evicts;        // 1, or 0 and why
        int32_t n_head;        // query heads
        int32_t n_head_kv;     // 0: no attention
        int32_t n_embd_head_k;
        int32_t n_embd_head_v;
        int32_t rope_mode;     // 0: neighbours are a pair (NORM), 2: halves (NEOX), -1: nothing is turned
        int32_t rope_offset;   // first turned dimension of a head
        int32_t n_rot;         // turned dimensions
        int32_t n_band;        // values of q_abs for each query head: n_rot/2, or n_embd_head_k where nothing is turned
        int32_t v_in_k;        // 1: V is a part of the K row
        float   rope_factor;   // c, the length that RoPE gives to a turned pair of length 1
        char    why[148];
    };

    // ctx: whose RoPE options count; NULL: what the model file says.
    LLAMA_API int32_t llama_triattn_get_layer(
              const struct llama_model * model,
            const struct llama_context * ctx,
                               int32_t   il,
       struct llama_triattn_layer_info * info);

#ifdef __cplusplus
}
#endif

#endif // LLAMA_TRIATTN_LAYER_H
