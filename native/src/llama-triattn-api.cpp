#include "llama-triattn.h"
#include "llama-triattn-layer.h"

#include "llama-triattn-cache.h"
#include "llama-triattn-rope.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

// No exception crosses the C API: what was thrown becomes the last error and a status.
static int32_t guarded(int32_t status, const std::function<int32_t()> & fn) {
    llama_triattn_set_error("");
    try {
        return fn();
    } catch (const std::exception & err) {
        llama_triattn_set_error(err.what());
        return status;
    }
}

static int32_t fail(int32_t status, const char * what) {
    llama_triattn_set_error(what);
    return status;
}

static const char * const WHY_OFF = "the context was created without eviction";

template <typename T>
static int32_t copy_out(const std::vector<T> & src, T * dst, int32_t n_max) {
    if (dst) {
        std::copy_n(src.begin(), std::min<size_t>(src.size(), std::max(n_max, 0)), dst);
    }
    return (int32_t) src.size();
}

struct llama_triattn_params llama_triattn_default_params(void) {
    llama_triattn_params res = {};
    res.budget     = 0;
    res.window     = 128;
    res.n_keep     = 4;
    res.mode       = LLAMA_TRIATTN_MODE_PER_LAYER_HEAD;
    res.policy     = LLAMA_TRIATTN_POLICY_TRIATTENTION;
    res.aggregate  = LLAMA_TRIATTN_AGGREGATE_MEAN;
    res.terms      = LLAMA_TRIATTN_TERMS_BOTH;
    res.weight_r   = 1;
    res.offsets    = LLAMA_TRIATTN_OFFSETS_GEOMETRIC;
    res.offset_max = 65536;
    res.weight_v   = 0.5f;
    res.seed       = 0;
    res.cold           = LLAMA_TRIATTN_COLD_OFF;
    res.recall         = 0.5f;
    res.recall_prompt  = 0.65f;
    res.recall_block   = 16;
    res.recall_queries = 24;
    res.recall_period  = 2;
    res.pin            = 0.0f;
    res.weight_q       = 0.0f;
    return res;
}

int32_t llama_triattn_set_params(struct llama_model * model, const struct llama_triattn_params * params) {
    if (!model || !params || !model->triattn) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "model or params is NULL");
    }
    return guarded(LLAMA_TRIATTN_BAD_PARAM, [&] {
        model->triattn->set_params(*params);
        return LLAMA_TRIATTN_OK;
    });
}

int32_t llama_triattn_load_stats(struct llama_model * model, const char * path) {
    if (!model || !path || !model->triattn) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "model or path is NULL");
    }
    return guarded(LLAMA_TRIATTN_BAD_STATS, [&] {
        model->triattn->load_sidecar(path);
        return LLAMA_TRIATTN_OK;
    });
}

int32_t llama_triattn_check_stats(const struct llama_model * model) {
    if (!model || !model->triattn) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "model is NULL");
    }
    return guarded(LLAMA_TRIATTN_BAD_STATS, [&] {
        std::string why;
        const int32_t res = llama_triattn_check_model_stats(*model, why);
        llama_triattn_set_error(why);
        return res;
    });
}

const char * llama_triattn_fingerprint(const struct llama_model * model) {
    return model && model->triattn ? model->triattn->get_fingerprint().c_str() : "";
}

int32_t llama_triattn_get_layer(
        const struct llama_model * model, const struct llama_context * ctx, int32_t il, struct llama_triattn_layer_info * info) {
    if (!model || !info || il < 0 || il >= (int32_t) model->hparams.n_layer_all) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "model or info is NULL, or the model has no such layer");
    }
    return guarded(LLAMA_TRIATTN_BAD_PARAM, [&] {
        const auto & hparams  = model->hparams;
        const auto   rotation = llama_triattn_rotation_of(*model, il);

        *info = {};
        info->n_head        = hparams.n_head(il);
        info->n_head_kv     = hparams.n_head_kv(il);
        info->n_embd_head_k = hparams.n_embd_head_k(il);
        info->n_embd_head_v = hparams.n_embd_head_v(il);
        info->rope_mode     = rotation.mode;
        info->rope_offset   = rotation.offset;
        info->n_rot         = rotation.n_rot;
        info->n_band        = rotation.n_band;
        info->rope_factor   = llama_triattn_rope_factor(*model, ctx ? &ctx->get_cparams() : nullptr, il);
        info->v_in_k        = hparams.is_mla();

        const std::string why = llama_triattn_why_kept(*model, il);
        info->evicts = why.empty();
        snprintf(info->why, sizeof(info->why), "%s", why.c_str());
        return LLAMA_TRIATTN_OK;
    });
}

const char * llama_triattn_last_error(void) {
    return llama_triattn_get_error();
}

int32_t llama_triattn_get_params(const struct llama_context * ctx, struct llama_triattn_params * params) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    *params = triattn->get_params();
    return LLAMA_TRIATTN_OK;
}

int32_t llama_triattn_get_stats(const struct llama_context * ctx, struct llama_triattn_stats * stats) {
    if (!ctx || !stats) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "ctx or stats is NULL");
    }
    return guarded(LLAMA_TRIATTN_BAD_PARAM, [&]() -> int32_t {
        const auto * triattn = llama_triattn::of(ctx);
        const auto * memory  = ctx->get_memory();

        *stats = {};
        if (triattn) {
            triattn->get_stats(*stats);
        }
        if (memory) {
            for (const auto & [buft, size] : memory->memory_breakdown()) {
                stats->kv_bytes_other += size;
            }
        }
        if (triattn) {
            stats->kv_bytes_other -= std::min(stats->kv_bytes_other, triattn->buffer_size());
            return LLAMA_TRIATTN_OK;
        }
        stats->n_cells = llama_triattn::n_cells(ctx);
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    });
}

int32_t llama_triattn_get_compute(const struct llama_context * ctx, const char ** names, uint64_t * bytes, int32_t n_max) {
    if (!ctx) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "ctx is NULL");
    }
    return guarded(LLAMA_TRIATTN_FAILED, [&] {
        int32_t n = 0;
        for (const auto & [buft, size] : ctx->memory_breakdown()) {
            if (size.compute == 0) {
                continue;
            }
            if (names && bytes && n < n_max) {
                names[n] = ggml_backend_buft_name(buft);
                bytes[n] = size.compute;
            }
            n++;
        }
        return n;
    });
}

llama_pos llama_triattn_seq_pos_whole(const struct llama_context * ctx, llama_seq_id seq_id) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    return triattn && seq_id >= 0 && seq_id < LLAMA_MAX_SEQ ? triattn->seq_pos_whole(seq_id) : 0;
}

llama_pos llama_triattn_seq_pos_cut(const struct llama_context * ctx, llama_seq_id seq_id) {
    const auto * memory = ctx && seq_id >= 0 && seq_id < (llama_seq_id) ctx->n_seq_max() ? ctx->get_memory() : nullptr;
    return memory ? llama_triattn::seq_pos_cut(memory, seq_id) : 0;
}

int32_t llama_triattn_seq_n_cells(const struct llama_context * ctx, llama_seq_id seq_id) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    return triattn && seq_id >= 0 && seq_id < (llama_seq_id) ctx->n_seq_max() ? triattn->n_used(seq_id) : 0;
}

static int32_t with_round(struct llama_context * ctx, llama_seq_id seq_id, const std::function<int32_t(llama_triattn &)> & fn) {
    auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    if (seq_id < 0 || seq_id >= (llama_seq_id) ctx->n_seq_max()) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "no such sequence");
    }
    return guarded(LLAMA_TRIATTN_FAILED, [&] {
        ctx->synchronize();
        return triattn->request(*ctx, [&] { return fn(*triattn); });
    });
}

int32_t llama_triattn_evict(struct llama_context * ctx, llama_seq_id seq_id, uint32_t n_tokens) {
    return with_round(ctx, seq_id, [&](llama_triattn & triattn) {
        const auto & params = triattn.get_params();
        const uint32_t n = n_tokens ? n_tokens : params.budget;
        if (n <= params.n_keep + params.window) {
            return fail(LLAMA_TRIATTN_BAD_PARAM, "n_tokens must be larger than n_keep + window");
        }
        return triattn.evict(*ctx, seq_id, n, true);
    });
}

// What concerns one sequence and is no round.
static int32_t with_sequence(
        const struct llama_context * ctx, llama_seq_id seq_id, const std::function<int32_t(llama_triattn &)> & fn) {
    auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    if (seq_id < 0 || seq_id >= (llama_seq_id) ctx->n_seq_max()) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "no such sequence");
    }
    return guarded(LLAMA_TRIATTN_BAD_PARAM, [&] { return fn(*triattn); });
}

int32_t llama_triattn_pin(struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return with_sequence(ctx, seq_id, [&](llama_triattn & triattn) { return triattn.pin(seq_id, p0, p1); });
}

int32_t llama_triattn_unpin(struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return with_sequence(ctx, seq_id, [&](llama_triattn & triattn) {
        triattn.unpin(seq_id, p0, p1);
        return LLAMA_TRIATTN_OK;
    });
}

int32_t llama_triattn_get_pins(
        const struct llama_context * ctx, llama_seq_id seq_id, llama_pos * p0s, llama_pos * p1s, int32_t n_max) {
    return with_sequence(ctx, seq_id, [&](llama_triattn & triattn) {
        const auto & ranges = triattn.get_pins().ranges(seq_id);
        for (int32_t i = 0; i < std::min((int32_t) ranges.size(), n_max); ++i) {
            if (p0s) { p0s[i] = ranges[i].first; }
            if (p1s) { p1s[i] = ranges[i].second; }
        }
        return (int32_t) ranges.size();
    });
}

int32_t llama_triattn_score(struct llama_context * ctx, llama_seq_id seq_id) {
    return with_round(ctx, seq_id, [&](llama_triattn & triattn) {
        return triattn.score(*ctx, seq_id);
    });
}

static bool is_set(void * flag) {
    return *(const volatile bool *) flag;
}

int32_t llama_triattn_set_recall(
        struct llama_context * ctx, float share, float share_prompt, uint32_t block, uint32_t queries, uint32_t period) {
    auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    return guarded(LLAMA_TRIATTN_BAD_PARAM, [&] {
        triattn->set_recall(share, share_prompt, block, queries, period);
        return LLAMA_TRIATTN_OK;
    });
}

static llama_triattn * with_cold(struct llama_context * ctx) {
    auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    llama_triattn_stats stats = {};
    if (triattn) {
        triattn->get_stats(stats);
    }
    if (stats.cold_bytes_max == 0) {
        fail(LLAMA_TRIATTN_OFF, triattn ? "the cold tier is off" : WHY_OFF);
        return nullptr;
    }
    return triattn;
}

int64_t llama_triattn_save_cold(struct llama_context * ctx, llama_seq_id seq_id, const char * path) {
    auto * triattn = with_cold(ctx);
    if (!triattn) {
        return LLAMA_TRIATTN_OFF;
    }
    if (!path || seq_id < 0 || seq_id >= (llama_seq_id) ctx->n_seq_max()) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, path ? "no such sequence" : "path is NULL");
    }
    int64_t res = 0;
    const int32_t status = guarded(LLAMA_TRIATTN_FAILED, [&] {
        res = triattn->save_cold(seq_id, path);
        return LLAMA_TRIATTN_OK;
    });
    return status < 0 ? status : res;
}

int32_t llama_triattn_open_cold(struct llama_context * ctx, const char * path) {
    auto * triattn = with_cold(ctx);
    if (!triattn) {
        return LLAMA_TRIATTN_OFF;
    }
    if (!path) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "path is NULL");
    }
    return guarded(LLAMA_TRIATTN_FAILED, [&] {
        triattn->open_cold(path);
        return LLAMA_TRIATTN_OK;
    });
}

int32_t llama_triattn_set_abort_flag(struct llama_context * ctx, const volatile bool * flag) {
    if (!ctx) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "ctx is NULL");
    }
    ctx->set_abort_callback(flag ? is_set : nullptr, const_cast<bool *>(flag));
    return LLAMA_TRIATTN_OK;
}

int32_t llama_triattn_set_ranking(struct llama_context * ctx, llama_triattn_ranking fn, void * user_data) {
    auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    triattn->set_ranking(fn, user_data);
    return LLAMA_TRIATTN_OK;
}

int32_t llama_triattn_get_layers(const struct llama_context * ctx, int32_t * layers, int32_t n_max) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    return copy_out(triattn->get_layers(), layers, n_max);
}

int32_t llama_triattn_get_queries(
        struct llama_context * ctx, llama_seq_id seq_id, int32_t il, llama_pos * pos, float * rows, int32_t n_max) {
    return with_sequence(ctx, seq_id, [&](llama_triattn & triattn) {
        ctx->synchronize();
        std::vector<llama_pos> res_pos;
        std::vector<float>     res_rows;
        triattn.get_queries(seq_id, il, res_pos, res_rows);
        const size_t n_embd = res_pos.empty() ? 0 : res_rows.size()/res_pos.size();
        copy_out(res_rows, rows, (int32_t) (std::min<size_t>(std::max(n_max, 0), res_pos.size())*n_embd));
        return copy_out(res_pos, pos, n_max);
    });
}

int32_t llama_triattn_get_kept(
        const struct llama_context * ctx,
                      llama_seq_id   seq_id,
                           int32_t   il,
                           int32_t   head_kv,
                         llama_pos * pos,
                           int32_t * cells,
                           int32_t   n_max) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    std::vector<llama_pos> res_pos;
    std::vector<int32_t>   res_cells;
    if (!triattn->get_kept(seq_id, il, head_kv, res_pos, res_cells)) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "no such sequence, layer or KV head");
    }
    copy_out(res_pos, pos, n_max);
    return copy_out(res_cells, cells, n_max);
}

int32_t llama_triattn_get_scores(
        const struct llama_context * ctx,
                           int32_t   il,
                           int32_t   head,
                             float * scores,
                           int32_t * cells,
                           int32_t   n_max) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    std::vector<float>   res_scores;
    std::vector<int32_t> res_cells;
    if (!triattn->get_scores(il, head, res_scores, res_cells)) {
        return fail(LLAMA_TRIATTN_BAD_PARAM, "no such layer or query head, or nothing was scored yet");
    }
    copy_out(res_scores, scores, n_max);
    return copy_out(res_cells, cells, n_max);
}

int32_t llama_triattn_get_rows(
        const struct llama_context * ctx,
                      llama_seq_id   seq_id,
                           int32_t   il,
                           int32_t   head_kv,
                              bool   is_v,
                     const int32_t * cells,
                           int32_t   n_cells,
                              void * data) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    const_cast<llama_context *>(ctx)->synchronize();
    const int32_t res = triattn->get_rows(seq_id, il, head_kv, is_v, cells, n_cells, data);
    return res >= 0 ? res : fail(res, "no such sequence, layer, KV head or cell");
}

int32_t llama_triattn_get_rows_info(const struct llama_context * ctx, bool is_v, int32_t * type, int32_t * n_rot) {
    const auto * triattn = ctx ? llama_triattn::of(ctx) : nullptr;
    if (!triattn) {
        return fail(LLAMA_TRIATTN_OFF, WHY_OFF);
    }
    triattn->get_rows_info(is_v, *type, *n_rot);
    return LLAMA_TRIATTN_OK;
}

//
// what it reads
//

void llama_triattn::get_stats(llama_triattn_stats & stats) const {
    stats = counters;

    stats.n_cells = (uint64_t) kv.get_size()*kv.n_stream;
    for (const auto & of_stream : kv.v_cells) {
        stats.n_cells_used += of_stream.get_used();
    }
    for (uint32_t s = 0; s < kv.n_stream; ++s) {
        for (const auto i : cells->used(s, -1)) {
            stats.n_pinned += is_pinned(s, i, pins);
        }
    }
    stats.kv_bytes      = kv.size_k_bytes() + kv.size_v_bytes();
    stats.kv_bytes_full = stats.kv_bytes/kv.get_size()*n_cells_full;
    stats.n_layer       = layers.size();
    if (store) {
        stats.cold_bytes         = store->n_bytes();
        stats.cold_bytes_max     = store->n_bytes_max();
        stats.n_tokens_destroyed = store->n_destroyed();
    }
    stats.n_head_kv     = layers[0].n_head_kv;
}

uint64_t llama_triattn::buffer_size() const {
    uint64_t res = 0;
    for (const auto & [buft, size] : kv.memory_breakdown()) {
        res += size;
    }
    return res;
}

std::vector<int32_t> llama_triattn::get_layers() const {
    std::vector<int32_t> res;
    for (const auto & layer : layers) {
        res.push_back(layer.ils[0]);
    }
    return res;
}

int32_t llama_triattn::find_layer(int32_t il) const {
    for (size_t i = 0; i < layers.size(); ++i) {
        if (std::find(layers[i].ils.begin(), layers[i].ils.end(), il) != layers[i].ils.end()) {
            return i;
        }
    }
    return -1;
}

bool llama_triattn::get_kept(
        llama_seq_id seq_id, int32_t il, int32_t head_kv, std::vector<llama_pos> & res, std::vector<int32_t> & res_cells) const {
    const int32_t i_layer = find_layer(il);
    if (i_layer < 0 || head_kv < 0 || head_kv >= (int32_t) layers[i_layer].n_head_kv || seq_id < 0 || (size_t) seq_id >= kv.seq_to_stream.size()) {
        return false;
    }

    const uint32_t strm = cells->stream(seq_id);
    const uint32_t set  = set_of(i_layer, head_kv);

    for (const auto i : cells->used(strm, seq_id)) {
        res.push_back(cells->token(strm, i, set));
        res_cells.push_back(i);
    }
    return true;
}

bool llama_triattn::get_scores(int32_t il, int32_t head, std::vector<float> & scores, std::vector<int32_t> & cells) const {
    const int32_t i_layer = find_layer(il);
    if (i_layer < 0 || last_cells.empty()) {
        return false;
    }

    const auto & layer = layers[i_layer];
    const auto & s     = last_scores[i_layer];

    // query heads of layers that share a K lie together under each KV head
    const uint32_t n_query = s.heads.size()/(s.n_head_kv*last_cells.size());
    const uint32_t n_il    = n_query == 1 ? 1 : layer.ils.size();
    const uint32_t n_gqa   = n_query/n_il;
    if (head < 0 || head >= (int32_t) (n_gqa*s.n_head_kv)) {
        return false;
    }
    const uint32_t j   = n_il == 1 ? 0 : std::find(layer.ils.begin(), layer.ils.end(), il) - layer.ils.begin();
    const uint32_t row = ((head/n_gqa)*n_il + j)*n_gqa + head % n_gqa;

    const auto first = s.heads.begin() + (size_t) row*last_cells.size();

    scores.assign(first, first + last_cells.size());
    cells = last_cells;
    return true;
}

int32_t llama_triattn::get_rows(
        llama_seq_id seq_id, int32_t il, int32_t head_kv, bool is_v, const int32_t * cells, int32_t n_cells, void * data) const {
    const int32_t i_layer = find_layer(il);
    if (i_layer < 0 || seq_id < 0 || (size_t) seq_id >= kv.seq_to_stream.size()) {
        return LLAMA_TRIATTN_BAD_PARAM;
    }

    const auto & layer = layers[i_layer];
    const auto * t     = is_v ? layer.v : layer.k;
    if (!t || head_kv < 0 || head_kv >= (int32_t) layer.n_head_kv) {
        return LLAMA_TRIATTN_BAD_PARAM;
    }

    const uint32_t n_embd_head = is_v ? layer.n_embd_head_v : layer.n_embd_head_k;
    const size_t   row_size    = ggml_row_size(t->type, n_embd_head);
    const size_t   offset      = kv.seq_to_stream[seq_id]*t->nb[2];

    for (int32_t i = 0; data && i < n_cells; ++i) {
        if (cells[i] < 0 || cells[i] >= (int32_t) kv.get_size()) {
            return LLAMA_TRIATTN_BAD_PARAM;
        }
        auto * dst = (uint8_t *) data + i*row_size;
        if (is_v && kv.v_trans) {
            const size_t size_el = ggml_type_size(t->type);
            for (uint32_t d = 0; d < n_embd_head; ++d) {
                const size_t el = (size_t) (head_kv*n_embd_head + d)*kv.get_size() + cells[i];
                ggml_backend_tensor_get(t, dst + d*size_el, offset + el*size_el, size_el);
            }
        } else {
            ggml_backend_tensor_get(t, dst, offset + cells[i]*t->nb[1] + head_kv*row_size, row_size);
        }
    }
    return (int32_t) row_size;
}

void llama_triattn::get_rows_info(bool is_v, int32_t & type, int32_t & n_rot) const {
    const bool is_rotated = is_v ? kv.attn_rot_v : kv.attn_rot_k;

    type  = is_v && kv.layers[0].v ? kv.type_v() : kv.type_k();
    n_rot = !is_rotated ? 0 : is_v ? 64 : (int32_t) std::lround(std::sqrt((double) k_rotation().size()));
}
