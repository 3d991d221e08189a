#include "llama-triattn-score.h"

#include "llama-triattn-model.h"
#include "llama-triattn-rope.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

// variance below which scores count as equal
static const float Z_EPS = 1e-12f;

static std::vector<int32_t> make_offsets(const llama_triattn_params & params) {
    std::vector<int32_t> res;
    for (uint32_t d = 1; d <= params.offset_max; d *= 2) {
        res.push_back(d);
    }
    if (params.offsets == LLAMA_TRIATTN_OFFSETS_LINEAR) {
        const size_t n = res.size();
        for (size_t i = 0; i < n; ++i) {
            res[i] = (int32_t) std::lround((double) params.offset_max*(i + 1)/n);
        }
    }
    return res;
}

// a_f - |q_mean_f| per band of each head (= a_f (1 - R_f)), or a_f alone
static std::vector<float> make_weights(
        const llama_triattn_centres & c,
        uint32_t n_head, uint32_t n_embd_head, const llama_triattn_rotation & rotation, bool weight_r, float magnitude) {
    const uint32_t n_band = rotation.n_band;
    const int      mode   = rotation.mode;

    std::vector<float> res((size_t) n_head*n_band);
    for (uint32_t h = 0; h < n_head; ++h) {
        const float * q = c.q_mean.data() + (size_t) h*n_embd_head;
        const float * a = c.q_abs .data() + (size_t) h*n_band;
        for (uint32_t f = 0; f < n_band; ++f) {
            const float x = mode == LLAMA_ROPE_TYPE_NORM ? q[2*f]     : q[f];
            const float y = mode == LLAMA_ROPE_TYPE_NORM ? q[2*f + 1] : mode < 0 ? 0.0f : q[f + n_band];
            res[(size_t) h*n_band + f] = magnitude*(weight_r ? a[f] - hypotf(x, y) : a[f]);
        }
    }
    return res;
}

llama_triattn_scorer::llama_triattn_scorer(
        const llama_model & model,
        const llama_triattn_params & params,
        const llama_cparams & cparams,
        const std::vector<llama_triattn_layer> & layers) :
    model(model), params(params), offsets(make_offsets(params)) {
    if (params.policy != LLAMA_TRIATTN_POLICY_TRIATTENTION) {
        return;
    }

    for (const auto & layer : layers) {
        ggml_init_params init = {
            /*.mem_size   =*/ (3*layer.ils.size() + 1)*ggml_tensor_overhead(),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx { ggml_init(init) };

        for (const int32_t il : layer.ils) {
            auto & t = tensors[il];
            t.future = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, layer.n_embd_head_k, layer.n_head);
            t.weight = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, llama_triattn_rotation_of(model, il).n_band, layer.n_head);
            ggml_format_name(t.future, "triattn_future-%d", il);
            ggml_format_name(t.weight, "triattn_weight-%d", il);
            if (llama_triattn_rotation_of(model, il).mode == LLAMA_ROPE_TYPE_NORM) {
                // neighbours are pairs throughout the head, so a part of it will do
                const int64_t n_block = layer.n_embd_head_k % 16 == 0 ? 16 : layer.n_embd_head_k;
                t.pairs = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_block, n_block/2);
                ggml_format_name(t.pairs, "triattn_pairs-%d", il);
            }
        }

        ones.push_back(ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, layer.n_embd_head_v, 1, layer.n_head_kv));
        ggml_format_name(ones.back(), "triattn_ones-%d", layer.ils[0]);

        auto * buft = ggml_backend_buffer_get_type(layer.k->buffer);
        ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft) };
        if (!buf) {
            throw std::runtime_error("failed to allocate a buffer for the TriAttention centres");
        }

        const std::vector<float> one(ggml_nelements(ones.back()), 1.0f);
        ggml_backend_tensor_set(ones.back(), one.data(), 0, ggml_nbytes(ones.back()));

        for (const int32_t il : layer.ils) {
            const auto & c = model.triattn->centres(il);
            const auto   w = make_weights(c, layer.n_head, layer.n_embd_head_k, llama_triattn_rotation_of(model, il),
                    params.weight_r, llama_triattn_rope_factor(model, &cparams, il));

            ggml_backend_tensor_set(tensors[il].future, c.q_mean.data(), 0, c.q_mean.size()*sizeof(float));
            ggml_backend_tensor_set(tensors[il].weight, w.data(),        0, w.size()*sizeof(float));

            if (auto * pairs = tensors[il].pairs) {
                std::vector<float> p(ggml_nelements(pairs), 0.0f);
                for (int64_t f = 0; f < pairs->ne[1]; ++f) {
                    p[f*pairs->ne[0] + 2*f] = p[f*pairs->ne[0] + 2*f + 1] = 1.0f;
                }
                ggml_backend_tensor_set(pairs, p.data(), 0, p.size()*sizeof(float));
            }
        }

        bufs.emplace_back(std::move(ctx), std::move(buf));
    }
}

ggml_tensor * llama_triattn_scorer::build_rope(
        ggml_context * ctx, const llama_cparams & cparams, ggml_tensor * cur, ggml_tensor * pos, int32_t il, bool with_magnitude) const {
    const auto  rotation   = llama_triattn_rotation_of(model, il);
    const float freq_scale = model.get_rope_freq_scale(cparams, il);
    const float magnitude  = with_magnitude ? 1.0f : llama_triattn_rope_factor(model, &cparams, il);

    return ggml_rope_ext(ctx, cur, pos, model.get_rope_factors(cparams, il),
            rotation.n_rot, rotation.mode, cparams.n_ctx_orig_yarn,
            model.get_rope_freq_base(cparams, il), freq_scale,
            cparams.yarn_ext_factor, cparams.yarn_attn_factor/magnitude, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
}

// A rotation by t + d is one by d and then one by t, so the mean over the offsets is made once:
//
//     w = mean over d of RoPE(q_mean, t + d) = RoPE(mean over d of rotate(q_mean, d), t)
//
// where rotate() is RoPE without the attention factor c: w is to hold it once, and only where RoPE turns the head.
bool llama_triattn_scorer::prepare(llama_context & lctx, llama_triattn_stats & counters) const {
    auto * sched = lctx.get_sched();

    const auto [ctx, gf] = llama_triattn_begin(lctx);

    const auto & cparams = lctx.get_cparams();

    const int64_t n_offset = offsets.size();

    ggml_tensor * inp_pos = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_offset);
    ggml_set_input(inp_pos);

    for (const auto & [il, t] : tensors) {
        if (llama_triattn_rotation_of(model, il).mode < 0) {
            continue; // frequency 0 throughout: every future query is the same
        }

        const int n_nodes = ggml_graph_n_nodes(gf);

        ggml_tensor * cur = ggml_repeat_4d(ctx, t.future, t.future->ne[0], t.future->ne[1], n_offset, 1);

        cur = build_rope(ctx, cparams, cur, inp_pos, il, /*with_magnitude =*/ false);
        cur = ggml_reshape_2d(ctx, cur, ggml_nelements(t.future), n_offset);
        cur = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_transpose(ctx, cur)));
        cur = ggml_scale(ctx, cur, 1.0f/n_offset);
        cur = ggml_cpy(ctx, ggml_reshape_2d(ctx, cur, t.future->ne[0], t.future->ne[1]), t.future);

        ggml_build_forward_expand(gf, cur);

        llama_triattn_pin(lctx, gf, n_nodes, t.future);
    }

    if (ggml_graph_n_nodes(gf) > 0) {
        if (!ggml_backend_sched_alloc_graph(sched, gf)) {
            LLAMA_LOG_ERROR("%s: failed to allocate the graph of the future queries\n", __func__);
            return false;
        }
        ggml_backend_tensor_set(inp_pos, offsets.data(), 0, ggml_nbytes(inp_pos));
        if (!llama_triattn_compute(lctx, gf, ggml_nelements(tensors.begin()->second.future)*n_offset, counters)) {
            LLAMA_LOG_ERROR("%s: failed to compute the future queries\n", __func__);
            return false;
        }
        ggml_backend_sched_synchronize(sched);
    }

    is_ready = true;
    return true;
}

// |k_f| on the host, in one pass.  src[0]: [n_embd_head_k, n_head_kv, n_cand], dst: [n_rot/2, n_head_kv, n_cand]
template <int mode>
static void compute_magnitudes(ggml_tensor * dst, int ith, int nth, void * /*userdata*/) {
    const ggml_tensor * src = dst->src[0];

    const int64_t n_band = dst->ne[0];

    for (int64_t i = ith; i < ggml_nrows(dst); i += nth) {
        const float * k   = (const float *) src->data + i*src->ne[0];
        float       * res = (float *)       dst->data + i*n_band;

        for (int64_t f = 0; f < n_band; ++f) {
            const float x = mode == LLAMA_ROPE_TYPE_NORM ? k[2*f]     : k[f];
            const float y = mode == LLAMA_ROPE_TYPE_NORM ? k[2*f + 1] : k[f + n_band];
            res[f] = sqrtf(x*x + y*y);
        }
    }
}

// |k_f| of the rotated bands, the same before and after RoPE.  k: [n_embd_head_k, n_head_kv, n_cand] -> [n_band, n_head_kv, n_cand]
ggml_tensor * llama_triattn_scorer::build_magnitudes(ggml_context * ctx, ggml_tensor * k, int32_t il, bool is_in_reach) const {
    const auto rotation = llama_triattn_rotation_of(model, il);

    if (rotation.mode < 0) {
        return ggml_abs(ctx, k);
    }

    const int64_t n_band = rotation.n_band;

    if (is_in_reach) {
        // half of a round's time on a CPU, operation by operation
        const bool is_norm = rotation.mode == LLAMA_ROPE_TYPE_NORM;
        const auto compute = is_norm ? compute_magnitudes<LLAMA_ROPE_TYPE_NORM> : compute_magnitudes<LLAMA_ROPE_TYPE_NEOX>;
        return ggml_custom_4d(ctx, GGML_TYPE_F32, n_band, k->ne[1], k->ne[2], 1, &k, 1, compute, GGML_N_TASKS_MAX, nullptr);
    }

    ggml_tensor * sqr = ggml_mul(ctx, k, k);

    if (auto * pairs = tensors.at(il).pairs) {
        // neighbours are a pair: no view takes them apart, and a product with ones is faster than a strided copy
        ggml_tensor * cur = ggml_mul_mat(ctx, pairs, ggml_reshape_2d(ctx, sqr, pairs->ne[0], ggml_nelements(sqr)/pairs->ne[0]));

        cur = ggml_reshape_3d(ctx, ggml_sqrt(ctx, cur), sqr->ne[0]/2, sqr->ne[1], sqr->ne[2]);

        return ggml_view_3d(ctx, cur, n_band, cur->ne[1], cur->ne[2], cur->nb[1], cur->nb[2], 0);
    }

    ggml_tensor * lo = ggml_view_3d(ctx, sqr, n_band, k->ne[1], k->ne[2], sqr->nb[1], sqr->nb[2], 0);
    ggml_tensor * hi = ggml_view_3d(ctx, sqr, n_band, k->ne[1], k->ne[2], sqr->nb[1], sqr->nb[2], n_band*sqr->nb[0]);

    return ggml_sqrt(ctx, ggml_add(ctx, lo, hi));
}

// z-scores over the candidates, and the largest of a KV head's query heads.  scores: [n_cand, n_query, n_head_kv] -> [n_cand, 1, n_head_kv]
static ggml_tensor * build_largest_z(ggml_context * ctx, ggml_tensor * scores, bool is_in_reach) {
    const int n_query = (int) scores->ne[1];

    if (!is_in_reach) {
        // GPUs take the variance from a sum of squares, in which a mean of hundreds of deviations (biased keys) would drown it
        ggml_tensor * first = ggml_view_3d(ctx, scores, 1, n_query, scores->ne[2], scores->nb[1], scores->nb[2], 0);
        scores = ggml_sub(ctx, scores, first);
    }

    ggml_tensor * cur = ggml_norm(ctx, scores, Z_EPS);

    return n_query == 1 ? cur : ggml_pool_2d(ctx, cur, GGML_OP_POOL_MAX, 1, n_query, 1, n_query, 0, 0);
}

ggml_tensor * llama_triattn_scorer::build_scores(
        ggml_context * ctx, const llama_cparams & cparams, const llama_triattn_layer & layer, ggml_tensor * k, ggml_tensor * pos) const {
    const int64_t n_head_kv   = layer.n_head_kv;
    const int64_t n_embd_head = layer.n_embd_head_k;
    const int64_t n_gqa       = layer.n_head/n_head_kv;

    if (params.policy == LLAMA_TRIATTN_POLICY_KNORM) {
        ggml_tensor * out = ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, k)));              // [1, n_head_kv, n_cand]
        return ggml_cont(ctx, ggml_permute(ctx, ggml_neg(ctx, out), 1, 2, 0, 3));
    }

    ggml_tensor * res = nullptr;

    for (const int32_t il : layer.ils) {
        ggml_tensor * out = nullptr;

        if (params.terms != LLAMA_TRIATTN_TERMS_NORM) {
            ggml_tensor * w = ggml_reshape_3d(ctx, tensors.at(il).future, n_embd_head, layer.n_head, 1);
            if (llama_triattn_rotation_of(model, il).mode >= 0) {
                w = build_rope(ctx, cparams, w, pos, il, /*with_magnitude =*/ true);
            }
            w   = ggml_reshape_3d(ctx, w, n_embd_head, n_gqa, n_head_kv);
            out = ggml_mul_mat(ctx, ggml_permute(ctx, k, 0, 2, 1, 3), w);
        }
        if (params.terms != LLAMA_TRIATTN_TERMS_TRIG) {
            ggml_tensor * m = build_magnitudes(ctx, k, il, llama_triattn_is_in_reach(layer.k));
            ggml_tensor * w = tensors.at(il).weight;

            w = ggml_reshape_3d(ctx, w, w->ne[0], n_gqa, n_head_kv);
            m = ggml_mul_mat(ctx, ggml_permute(ctx, m, 0, 2, 1, 3), w);

            out = out ? ggml_add(ctx, out, m) : m;
        }
        // layers that share a K are more query heads for it
        res = res ? ggml_concat(ctx, res, out, 1) : out;
    }

    return res;
}

// log |v|^2, whose z-scores are those of log |v|.  v: [n_embd_head_v, n_head_kv, n_cand] -> [n_cand, 1, n_head_kv]
ggml_tensor * llama_triattn_scorer::build_value_lengths(ggml_context * ctx, ggml_tensor * v, ggml_tensor * ones) const {
    // a product with ones is a sum that runs on all threads, and leaves the candidates of a head side by side
    ggml_tensor * cur = ggml_mul_mat(ctx, ggml_permute(ctx, ggml_sqr(ctx, v), 0, 2, 1, 3), ones);

    return ggml_log(ctx, ggml_clamp(ctx, cur, 1e-12f, FLT_MAX));
}

// Rows of the cells `cells` of a stream's K or V.  -> F32 [n_embd_head, n_head_kv, n_cand]
static ggml_tensor * build_rows(
        ggml_context * ctx, ggml_tensor * t, bool is_trans, uint32_t strm, ggml_tensor * cells, int64_t n_embd_head, int64_t n_head_kv) {
    const int64_t n_embd  = n_embd_head*n_head_kv; // a transposed V may be wider
    const int64_t n_cells = t->ne[1];

    ggml_tensor * cur = is_trans ?
        ggml_view_2d(ctx, t, n_cells, n_embd, ggml_row_size(t->type, n_cells), strm*t->nb[2]) :
        ggml_view_2d(ctx, t, n_embd, n_cells, t->nb[1],                        strm*t->nb[2]);
    if (is_trans) {
        cur = ggml_cont(ctx, ggml_transpose(ctx, cur));
    }

    return ggml_reshape_3d(ctx, ggml_get_rows(ctx, cur, cells), n_embd_head, n_head_kv, cells->ne[0]);
}

// Enqueued behind the graph: one wait for all. Returns the bytes.
static size_t download(ggml_backend_sched_t sched, ggml_tensor * t, std::vector<float> & data) {
    data.resize(ggml_nelements(t));
    ggml_backend_tensor_get_async(ggml_backend_sched_get_tensor_backend(sched, t), t, data.data(), 0, ggml_nbytes(t));
    return ggml_nbytes(t);
}

bool llama_triattn_scorer::compute(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const std::vector<int32_t> & cells,
        uint32_t strm,
        const std::vector<float> & k_rot,
        bool v_trans,
        llama_pos pos_next,
        std::vector<llama_triattn_layer_scores> & scores,
        bool with_heads,
        llama_triattn_stats & counters) const {
    if (!is_ready && !prepare(lctx, counters)) {
        return false;
    }

    auto * sched = lctx.get_sched();

    const auto [ctx, gf] = llama_triattn_begin(lctx);

    const auto & cparams = lctx.get_cparams();

    const int64_t n_cand = cells.size();

    ggml_tensor * inp_cells = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_cand);
    ggml_tensor * inp_pos   = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, 1);
    ggml_tensor * inp_rot   = nullptr;
    ggml_set_input(inp_cells);
    ggml_set_input(inp_pos);
    if (!k_rot.empty()) {
        const int64_t n = (int64_t) std::lround(std::sqrt((double) k_rot.size()));
        inp_rot = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n);
        ggml_set_input(inp_rot);
    }

    const bool with_values = params.policy == LLAMA_TRIATTN_POLICY_TRIATTENTION && params.weight_v > 0.0f;

    std::vector<ggml_tensor *> outs;  // [layer] [n_cand, 1, n_head_kv]
    std::vector<ggml_tensor *> heads; // [layer] [n_cand, n_query, n_head_kv]

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];

        const int n_nodes = ggml_graph_n_nodes(gf);

        ggml_tensor * k = build_rows(ctx, layer.k, false, strm, inp_cells, layer.n_embd_head_k, layer.n_head_kv);
        if (inp_rot) {
            k = llama_mul_mat_hadamard(ctx, k, inp_rot);
        }

        heads.push_back(build_scores(ctx, cparams, layer, k, inp_pos));
        if (with_heads) {
            ggml_set_output(heads[i]);
            ggml_build_forward_expand(gf, heads[i]);
        }

        ggml_tensor * out = build_largest_z(ctx, heads[i], llama_triattn_is_in_reach(layer.k));
        if (with_values && layer.v) {
            // the Hadamard rotation of a quantised cache does not change lengths
            ggml_tensor * v = build_rows(ctx, layer.v, v_trans, strm, inp_cells, layer.n_embd_head_v, layer.n_head_kv);

            v   = ggml_norm(ctx, build_value_lengths(ctx, v, ones[i]), Z_EPS);
            out = ggml_add(ctx, out, ggml_scale(ctx, v, params.weight_v));
        }
        outs.push_back(out);
        ggml_set_output(out);
        ggml_build_forward_expand(gf, out);

        llama_triattn_pin(lctx, gf, n_nodes, layer.k);
    }

    if (!ggml_backend_sched_alloc_graph(sched, gf)) {
        LLAMA_LOG_ERROR("%s: failed to allocate the scoring graph\n", __func__);
        return false;
    }

    ggml_backend_tensor_set(inp_cells, cells.data(), 0, ggml_nbytes(inp_cells));
    if (inp_pos->buffer) { // not in the graph where no layer needs it
        ggml_backend_tensor_set(inp_pos, &pos_next, 0, ggml_nbytes(inp_pos));
    }
    if (inp_rot) {
        ggml_backend_tensor_set(inp_rot, k_rot.data(), 0, ggml_nbytes(inp_rot));
    }

    counters.n_bytes_copied += ggml_nbytes(inp_cells);

    if (!llama_triattn_compute(lctx, gf, n_cand*layers[0].k->ne[0], counters)) {
        LLAMA_LOG_ERROR("%s: failed to compute the scoring graph\n", __func__);
        return false;
    }

    scores.resize(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        scores[i].n_head_kv = layers[i].n_head_kv;
        counters.n_bytes_copied += download(sched, outs[i], scores[i].data);
        if (with_heads) {
            counters.n_bytes_copied += download(sched, heads[i], scores[i].heads);
        }
    }
    ggml_backend_sched_synchronize(sched);

    return true;
}
