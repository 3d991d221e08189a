#pragma once

// Scoring: one graph that reads the cached keys and values of the candidates and gives one number per KV head and candidate.
// See docs/architecture.md for the equations; triattn_local/model/scoring.py is the reference.

#include "llama-triattn.h"
#include "llama-triattn-select.h"

#include "llama-cparams.h"

#include "ggml.h"
#include "ggml-cpp.h"

#include <map>
#include <vector>

struct llama_model;
struct llama_context;

// One evicting layer of the cache, as scoring and moving see it.
struct llama_triattn_layer {
    std::vector<int32_t> ils; // model layers that read this K (more than one where layers reuse a cache)

    ggml_tensor * k; // [n_embd_k_gqa, n_cells, n_stream]
    ggml_tensor * v; // the same, or [n_cells, n_embd_v_gqa, n_stream] as memory if v_trans

    uint32_t n_head;    // query heads of one model layer
    uint32_t n_head_kv;
    uint32_t n_embd_head_k;
    uint32_t n_embd_head_v;
};

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

// An empty graph on the context's scheduler, which forgets the context's own: rounds run as memory updates for that reason.
// What the scheduler still computes is waited for.
struct llama_triattn_graph {
    ggml_context * ctx;
    ggml_cgraph  * gf;
};

llama_triattn_graph llama_triattn_begin(llama_context & lctx);

// Start to compute a round's graph; ggml_backend_sched_synchronize() waits for it. n_elements: of the largest tensors in it.
// Small operations take one CPU thread: a round has hundreds, and the barrier after each costs more than a second thread gains.
bool llama_triattn_compute(llama_context & lctx, ggml_cgraph * gf, int64_t n_elements, llama_triattn_stats & counters);

// True if host code may read and write a tensor. LLAMA_TRIATTN_AS_DEVICE=1 takes a device's way on the host too, to test it there.
bool llama_triattn_is_in_reach(const ggml_tensor * t);

// The backend that computes where a tensor lies, nullptr if the scheduler has only one.
ggml_backend_t llama_triattn_backend_of(llama_context & lctx, const ggml_tensor * where);

// Pin the operations added to the graph since n_nodes_before to the backend that holds `where`, if it can run them.
void llama_triattn_pin(llama_context & lctx, ggml_cgraph * gf, int n_nodes_before, const ggml_tensor * where);
