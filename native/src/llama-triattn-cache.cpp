#include "llama-triattn-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <limits>

// llama_kv_cells as llama_triattn_cells knows them
class kv_labels : public llama_triattn_labels {
public:
    explicit kv_labels(llama_kv_cells & cells) : cells(cells) {}

    uint32_t size() const override { return cells.size(); }

    bool is_empty(uint32_t cell) const override { return cells.is_empty(cell); }

    const ordered & of(int32_t seq) const override { return cells.seq_pos_get(seq); }

    int32_t  pos  (uint32_t cell)              const override { return cells.pos_get(cell); }
    bool     has  (uint32_t cell, int32_t seq) const override { return cells.seq_has(cell, seq); }
    uint32_t n_seq(uint32_t cell)              const override { return cells.seq_count(cell); }

    void set  (uint32_t cell, int32_t pos) override { cells.pos_set(cell, pos); }
    void join (uint32_t cell, int32_t seq) override { cells.seq_add(cell, seq); }
    void leave(uint32_t cell, int32_t seq) override { cells.seq_rm(cell, seq); }
    void clear(uint32_t cell)              override { cells.rm(cell); }
    void copy (uint32_t dst, uint32_t src) override { cells.set({ dst }, cells.cp({ src })); }

    size_t       extra_size()                                  const override { return sizeof(llama_kv_cell_ext); }
    const void * extra(uint32_t cell)                          const override { return &cells.ext_get(cell); }
    void         set_extra(uint32_t cell, const void * data)         override {
        llama_kv_cell_ext ext;
        memcpy(&ext, data, sizeof(ext));
        cells.ext_set(cell, ext);
    }

private:
    llama_kv_cells & cells;
};

llama_triattn::llama_triattn(
        llama_kv_cache & kv, const llama_triattn_params & params, const llama_cparams & cparams, uint32_t n_cells_full) :
    kv(kv), params(params), n_cells_full(n_cells_full),
    is_long_rope(cparams.n_ctx_seq > kv.hparams.n_ctx_orig_yarn && kv.model.layers[0].rope_long) {
    const auto & model   = kv.model;
    const auto & hparams = kv.hparams;

    for (const auto & l : kv.layers) {
        const uint32_t il = l.il;

        if (hparams.n_head_kv(il) == 0) {
            continue; // no attention in this layer, and rows of no bytes
        }

        llama_triattn_layer layer;

        for (uint32_t jl = 0; jl < hparams.n_layer_all; ++jl) {
            const auto it = kv.map_layer_ids.find(jl);
            if (it != kv.map_layer_ids.end() && &kv.layers[it->second] == &l) {
                layer.ils.push_back(jl);
            }
        }

        layer.k             = l.k;
        layer.v             = l.v;
        layer.n_head        = hparams.n_head(il);
        layer.n_head_kv     = hparams.n_head_kv(il);
        layer.n_embd_head_k = hparams.n_embd_head_k(il);
        layer.n_embd_head_v = hparams.n_embd_head_v(il);

        if (params.policy == LLAMA_TRIATTN_POLICY_TRIATTENTION) {
            for (const int32_t jl : layer.ils) {
                if (!model.triattn->has_centres(jl)) {
                    llama_triattn_refuse(format("the statistics lack layer %d; convert this model anew (triattn-local convert)", jl));
                }
            }
        }

        layers.push_back(std::move(layer));
    }

    if (layers.empty()) {
        llama_triattn_refuse("the model has no full-attention layers");
    }

    n_set = 0;
    for (const auto & layer : layers) {
        set_first.push_back(n_set);
        n_set += layer.n_head_kv;
    }
    if (params.mode == LLAMA_TRIATTN_MODE_SHARED) {
        n_set = 1;
    }
    if (params.mode == LLAMA_TRIATTN_MODE_PER_HEAD) {
        n_set = layers[0].n_head_kv;
        for (const auto & layer : layers) {
            if (layer.n_head_kv != n_set) {
                llama_triattn_refuse("mode per-head needs the same number of KV heads in every layer; use per-layer-head");
            }
        }
    }

    scorer = std::make_unique<llama_triattn_scorer>(model, params, cparams, layers);

    init_cold(cparams);
    init_queries(cparams);

    std::vector<llama_triattn_labels *> streams;
    for (auto & of_stream : kv.v_cells) {
        labels.push_back(std::make_unique<kv_labels>(of_stream));
        streams.push_back(labels.back().get());
    }
    llama_triattn_cells::settings with;
    with.n_set     = n_set;
    with.n_keep    = params.n_keep;
    with.window    = params.window;
    with.n_whole   = LLAMA_MAX_SEQ;
    with.is_marked = store != nullptr;
    with.is_unique = hparams.n_pos_per_embd() == 1;
    cells = std::make_unique<llama_triattn_cells>(std::move(streams), kv.seq_to_stream, with);

    LLAMA_LOG_INFO("%s: %u cells instead of %u, budget %u, window %u, n_keep %u, %u sets of tokens\n", __func__,
            kv.get_size(), n_cells_full, params.budget, params.window, params.n_keep, n_set);
}

llama_triattn::~llama_triattn() = default;

uint32_t llama_triattn::set_of(size_t i_layer, uint32_t head_kv) const {
    switch (params.mode) {
        case LLAMA_TRIATTN_MODE_SHARED:   return 0;
        case LLAMA_TRIATTN_MODE_PER_HEAD: return head_kv;
        default:                          return set_first[i_layer] + head_kv;
    }
}

const std::vector<float> & llama_triattn::k_rotation() const {
    static const std::vector<float> none;

    if (!kv.attn_rot_k) {
        return none;
    }
    // the largest power of two that divides the head, as llama_kv_cache::build_input_k_rot
    int64_t n = 64;
    while (kv.n_embd_head_k_all % (2*n) == 0) {
        n *= 2;
    }
    return kv.attn_rot_hadamard.at(n);
}

//
// sequences
//

uint32_t llama_triattn::n_used(llama_seq_id seq_id) const {
    return cells->n_used(seq_id);
}

void llama_triattn::check_cells() const {
    static const bool is_wanted = [] {
        const char * env = getenv("LLAMA_TRIATTN_CHECK");
        return env && atoi(env);
    }();
    const std::string why = is_wanted ? cells->check() : "";
    if (!why.empty()) {
        GGML_ABORT("llama_triattn_cells: %s", why.c_str());
    }
}

void llama_triattn::clear() {
    cells->clear();
    why_failed.clear();
    pins = {};

    for (llama_seq_id s = 0; (store || attention) && s < (llama_seq_id) cells->n_seq(); ++s) {
        forget(s);
    }
}

void llama_triattn::forget(llama_seq_id seq_id) {
    unpin(seq_id, 0, -1);
    if (attention) {
        attention->clear(seq_id);
    }
    if (store) {
        store->clear(seq_id);
        readings[seq_id] = {};
    }
}

bool llama_triattn::can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    if (seq_id >= (llama_seq_id) cells->n_seq()) {
        return true; // no sequence of this cache: its own check tells
    }
    if (seq_id < 0) {
        const auto all = cells->seqs();
        return std::all_of(all.begin(), all.end(), [&](llama_seq_id s) { return can_rm(s, p0, p1); });
    }
    const bool is_tail = p1 < 0 || p1 > seq_pos_max(seq_id);

    return cells->can_cut(seq_id, p0, p1) || (is_tail && can_rebuild(seq_id, p0));
}

bool llama_triattn::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!can_rm(seq_id, p0, p1)) {
        LLAMA_LOG_DEBUG("%s: sequence %d cannot be cut at [%d, %d): whole from %d on only\n", __func__, seq_id, p0, p1,
                seq_id < 0 ? -1 : cells->whole(seq_id));
        return false;
    }
    for (llama_seq_id s = 0; s < (llama_seq_id) cells->n_seq(); ++s) {
        if (seq_id >= 0 && s != seq_id) {
            continue;
        }
        if (!is_in_parts) { // what is read again at once stays pinned
            unpin(s, p0, p1);
        }
        if (n_used(s) == 0) {
            continue;
        }
        if (attention) {
            attention->cut(s, p0);
        }
        if (!cells->can_cut(s, p0, p1)) {
            if (!rebuild(s, p0)) {
                return false;
            }
        } else if (cells->is_all(s, p0, p1)) {
            forget(s);
            cells->cut(s, p0, p1);
        } else if (store) {
            store->cut(s, p1 < 0 || p1 > seq_pos_max(s) ? p0 : std::min(p0, store->size(s)));
        }
    }
    return true;
}

bool llama_triattn::can_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) const {
    if (seq_id_src == seq_id_dst || seq_id_src < 0 || seq_id_src >= (llama_seq_id) cells->n_seq()) {
        return true;
    }
    if (!cells->can_copy(seq_id_src, seq_id_dst, p0, p1)) {
        LLAMA_LOG_ERROR("%s: sequence %d cannot be copied in part before position %d; nothing was copied\n", __func__, seq_id_src,
                cells->whole(seq_id_src));
        return false;
    }
    return true;
}

bool llama_triattn::seq_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    if (!can_cp(seq_id_src, seq_id_dst, p0, p1)) {
        return false;
    }
    if (seq_id_src == seq_id_dst) {
        return true;
    }

    const llama_pos end = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    const bool is_new = n_used(seq_id_dst) == 0 || cells->stream(seq_id_src) != cells->stream(seq_id_dst);

    cells->copy(seq_id_src, seq_id_dst, p0, p1);
    if (is_new) {
        pins.copy(seq_id_src, seq_id_dst, std::max(p0, 0), end);
    } else {
        unpin(seq_id_dst, 0, -1); // what it had and what it got are two texts
    }
    if (store) {
        if (is_new && p0 <= 0) {
            store->copy(seq_id_src, seq_id_dst);
            store->cut(seq_id_dst, end);
        } else {
            store->clear(seq_id_dst); // what it had and what it got are two texts
        }
        auto aside = is_new && p0 <= 0 ? readings[seq_id_src].aside : decltype(reading::aside)();
        readings[seq_id_dst] = {};
        readings[seq_id_dst].aside = std::move(aside);
    }
    if (queries && seq_id_dst < (llama_seq_id) n_recorded) {
        queries->clear(seq_id_dst);
        if (attention) {
            attention->clear(seq_id_dst);
        }
        if (is_new && p0 <= 0 && end > seq_pos_max(seq_id_src) && seq_id_src < (llama_seq_id) n_recorded) {
            if (lctx) {
                ggml_backend_sched_synchronize(lctx->get_sched()); // the last batch may still write them
            }
            queries->restore(seq_id_dst, queries->save(seq_id_src));
            if (attention) {
                attention->copy(seq_id_src, seq_id_dst);
            }
            if (store) {
                readings[seq_id_dst] = readings[seq_id_src];
            }
        }
    }
    return true;
}

void llama_triattn::seq_keep(llama_seq_id seq_id) {
    cells->keep(seq_id);
    for (llama_seq_id s = 0; s < (llama_seq_id) cells->n_seq(); ++s) {
        if (s != seq_id && cells->stream(s) == cells->stream(seq_id)) {
            forget(s);
        }
    }
}

bool llama_triattn::seq_shift(llama_seq_id seq_id) const {
    LLAMA_LOG_ERROR("%s: positions of sequence %d cannot be shifted while eviction is on; nothing was shifted\n", __func__, seq_id);
    return false;
}

llama_pos llama_triattn::seq_pos_whole(llama_seq_id seq_id) const {
    return cells->whole(seq_id);
}

llama_pos llama_triattn::seq_pos_min(llama_seq_id seq_id) const {
    const bool is_back = n_used(seq_id) > 0 && cells->whole(seq_id) > 0 && can_rebuild(seq_id, 1);

    return is_back ? 0 : cells->first(seq_id);
}

llama_pos llama_triattn::seq_pos_max(llama_seq_id seq_id) const {
    return cells->last(seq_id);
}

void llama_triattn::apply_ubatch(const slot_info & sinfo, const llama_ubatch & ubatch) {
    for (uint32_t s = 0; s < sinfo.n_stream(); ++s) {
        for (uint32_t i = 0; i < sinfo.size(); ++i) {
            cells->add(sinfo.strm[s], sinfo.idxs[s][i], ubatch.pos[s*sinfo.size() + i]);
        }
    }
}
