#pragma once

// Scoring: one graph that reads the cached keys and values of the candidates and gives one number per KV head and candidate.
// See docs/architecture.md for the equations; triattn_local/model/scoring.py is the reference.

#include "llama-triattn.h"
#include "llama-triattn-graph.h"
#include "llama-triattn-cache-layer.h"
#include "llama-triattn-select.h"

#include "llama-cparams.h"

#include "ggml.h"
#include "ggml-cpp.h"

#include <map>
#include <vector>

struct llama_model;

class llama_triattn_scorer {
public:
    // Uploads the centres to where each layer's K lies. Scores nothing if the policy needs no keys.
    llama_triattn_scorer(
            const llama_model & model,
            const llama_triattn_params & params,
            const llama_cparams & cparams,
            const std::vector<llama_triattn_layer> & layers);

    // Scores of the cells `cells` of stream `strm`, for queries from position `pos_next` on.
    // k_rot: Hadamard matrix [n][n] that undoes the rotation of a quantised K cache, empty if there is none.
    // v_trans: V lies as [n_cells, n_embd_v_gqa].
    // with_heads: download the scores of single query heads too.
    // Counts what it asks of the backends. Returns false if the graph cannot be computed.
    bool compute(
            llama_context & lctx,
            const std::vector<llama_triattn_layer> & layers,
            const std::vector<int32_t> & cells,
            uint32_t strm,
            const std::vector<float> & k_rot,
            bool v_trans,
            llama_pos pos_next,
            std::vector<llama_triattn_layer_scores> & scores,
            bool with_heads,
            llama_triattn_stats & counters) const;

private:
    const llama_model & model;

    const llama_triattn_params params;

    std::vector<int32_t> offsets; // D, future distances

    struct centres {
        ggml_tensor * future = nullptr; // F32 [n_embd_head_k, n_head]    mean over d in D of RoPE(q_mean, d)
        ggml_tensor * weight = nullptr; // F32 [n_rot/2, n_head]  a_f - |q_mean_f|
        ggml_tensor * pairs  = nullptr; // F32 [n_block, n_block/2]       1 where a dimension is of a pair; NORM on devices
    };

    mutable std::map<int32_t, centres> tensors; // by model layer
    std::vector<ggml_tensor *> ones;            // [layer] F32 [n_embd_head_v, 1, n_head_kv]
    mutable bool is_ready = false;              // future is computed by the first round: it needs a scheduler

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> bufs;

    bool prepare(llama_context & lctx, llama_triattn_stats & counters) const;

    // the model's own RoPE, with its attention factor or as a rotation alone.  cur: [n_embd_head_k, n_head, n_pos], pos: [n_pos]
    ggml_tensor * build_rope(
            ggml_context * ctx, const llama_cparams & cparams, ggml_tensor * cur, ggml_tensor * pos, int32_t il, bool with_magnitude) const;
    ggml_tensor * build_magnitudes(ggml_context * ctx, ggml_tensor * k, int32_t il, bool is_in_reach) const;

    // what each query head gives to the candidates.  k: [n_embd_head_k, n_head_kv, n_cand] -> [n_cand, n_query, n_head_kv]
    ggml_tensor * build_scores(
            ggml_context * ctx, const llama_cparams & cparams, const llama_triattn_layer & layer, ggml_tensor * k, ggml_tensor * pos) const;

    ggml_tensor * build_value_lengths(ggml_context * ctx, ggml_tensor * v, ggml_tensor * ones) const;
};
