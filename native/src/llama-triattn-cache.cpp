#include "llama-triattn-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <typeinfo>
#include <unordered_map>

// the memory as a T, nullptr if it is anything else: what derives from T holds more than T, which must stay cell for cell
template <typename T>
static T * as(llama_memory_i * memory) {
    return memory && typeid(*memory) == typeid(T) ? static_cast<T *>(memory) : nullptr;
}

llama_kv_cache * llama_triattn::find_cache(const llama_memory_i * memory) {
    auto * mem = const_cast<llama_memory_i *>(memory);

    if (auto * m = as<llama_kv_cache          >(mem)) { return m; }
    if (auto * m = as<llama_kv_cache_iswa     >(mem)) { return m->get_base(); }
    if (auto * m = as<llama_memory_hybrid     >(mem)) { return m->get_mem_attn(); }
    if (auto * m = as<llama_memory_hybrid_iswa>(mem)) { return m->get_mem_attn()->get_base(); }

    return nullptr;
}

llama_triattn * llama_triattn::of(const llama_context * ctx) {
    const auto * kv = find_cache(ctx->get_memory());
    return kv ? kv->triattn.get() : nullptr;
}

uint64_t llama_triattn::n_cells(const llama_context * ctx) {
    const auto * kv = find_cache(ctx->get_memory());
    return kv ? (uint64_t) kv->get_size()*kv->n_stream : 0;
}

bool llama_triattn::is_on(const llama_kv_cache & kv) {
    return kv.triattn != nullptr;
}

bool llama_triattn::can_rm(const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    return !kv.triattn || kv.triattn->can_rm(seq_id, p0, p1);
}

bool llama_triattn::can_cp(
        const llama_kv_cache & kv, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    return !kv.triattn || kv.triattn->can_cp(seq_id_src, seq_id_dst, p0, p1);
}

bool llama_triattn::can_shift(const llama_kv_cache & kv, llama_seq_id seq_id) {
    return !kv.triattn || kv.triattn->seq_shift(seq_id);
}

bool llama_triattn::has_failed(const llama_context & lctx) {
    const auto * triattn = of(&lctx);
    return triattn && !triattn->why_failed.empty();
}

// Where a sliding-window cache can be cut: its cells are those of an unbroken stretch of positions up to the last.
static llama_pos window_pos_cut(const llama_kv_cache & kv, uint32_t n_swa, llama_swa_type swa_type, llama_seq_id seq_id) {
    const llama_pos first = kv.seq_pos_min(seq_id);
    const llama_pos last  = kv.seq_pos_max(seq_id);

    llama_pos res = std::max(first, 0);
    while (first > 0 && res <= last && !llama_hparams::is_masked_swa(n_swa, swa_type, first - 1, res)) {
        ++res;
    }
    return first > 0 ? res : 0;
}

bool llama_triattn::can_rm(
        const llama_kv_cache & kv, const llama_kv_cache & kv_swa, llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!kv.triattn) {
        return true;
    }
    if (seq_id < 0) {
        const auto all = kv.triattn->seqs();
        return std::all_of(all.begin(), all.end(), [&](llama_seq_id s) { return can_rm(kv, kv_swa, s, p0, p1); });
    }
    if (!kv.triattn->can_rm(seq_id, p0, p1)) {
        return false;
    }
    const bool is_all = p0 <= 0 && (p1 < 0 || p1 > kv_swa.seq_pos_max(seq_id));
    return is_all || p0 >= window_pos_cut(kv_swa, kv_swa.n_swa, kv_swa.swa_type, seq_id);
}

llama_pos llama_triattn::seq_pos_cut(const llama_memory_i * memory, llama_seq_id seq_id) {
    auto * mem = const_cast<llama_memory_i *>(memory);

    const auto * iswa = as<llama_kv_cache_iswa>(mem);
    const auto * kv   = iswa ? iswa->get_base() : as<llama_kv_cache>(mem);
    const auto * swa  = iswa ? iswa->get_swa()  : kv;
    if (!kv) {
        // a recurrent state, alone or in a hybrid, is that of its last token alone; what other memories hold is not known
        return mem->seq_pos_max(seq_id) + 1;
    }
    const llama_pos t = kv->triattn ? kv->triattn->seq_pos_whole(seq_id) : 0;
    if (t > 0 && kv->triattn->can_rebuild(seq_id, 1)) {
        return swa == kv ? 0 : window_pos_cut(*swa, swa->n_swa, swa->swa_type, seq_id);
    }
    return swa == kv && kv->triattn ? t : std::max(t, window_pos_cut(*swa, swa->n_swa, swa->swa_type, seq_id));
}

llama_triattn::llama_triattn(
        llama_kv_cache & kv, const llama_triattn_params & params, const llama_cparams & cparams, uint32_t n_cells_full) :
    kv(kv), params(params), n_cells_full(n_cells_full),
    is_long_rope(cparams.n_ctx_seq > kv.hparams.n_ctx_orig_yarn && kv.model.layers[0].rope_long), whole(LLAMA_MAX_SEQ, 0) {
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

    pos.resize(kv.n_stream);
    for (auto & p : pos) {
        p.resize((size_t) kv.get_size()*n_set, -1);
    }

    scorer = std::make_unique<llama_triattn_scorer>(model, params, cparams, layers);

    init_cold(cparams);
    init_queries(cparams);

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
    return kv.v_cells[kv.seq_to_stream[seq_id]].seq_pos_get(seq_id).size();
}

std::vector<llama_seq_id> llama_triattn::seqs() const {
    std::vector<llama_seq_id> res;
    for (llama_seq_id s = 0; s < (llama_seq_id) kv.seq_to_stream.size(); ++s) {
        if (n_used(s) > 0) {
            res.push_back(s);
        }
    }
    return res;
}

void llama_triattn::clear() {
    std::fill(whole.begin(), whole.end(), 0);
    why_failed.clear();
    pins = {};

    for (llama_seq_id s = 0; (store || attention) && s < (llama_seq_id) kv.seq_to_stream.size(); ++s) {
        forget(s);
    }
}

void llama_triattn::forget(llama_seq_id seq_id) {
    whole[seq_id] = 0;
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
    if (seq_id >= (llama_seq_id) kv.seq_to_stream.size()) {
        return true; // no sequence of this cache: its own check tells
    }
    if (seq_id < 0) {
        for (const auto s : seqs()) {
            if (!can_rm(s, p0, p1)) {
                return false;
            }
        }
        return true;
    }

    const llama_pos end = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    // before T, a head may hold other tokens in a cell than the one that the cell is named after
    if (p0 >= whole[seq_id] || (p0 <= 0 && end > seq_pos_max(seq_id)) || n_used(seq_id) == 0) {
        return true;
    }
    return end > seq_pos_max(seq_id) && can_rebuild(seq_id, p0);
}

bool llama_triattn::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (!can_rm(seq_id, p0, p1)) {
        LLAMA_LOG_DEBUG("%s: sequence %d cannot be cut at [%d, %d): whole from %d on only\n", __func__, seq_id, p0, p1,
                seq_id < 0 ? -1 : whole[seq_id]);
        return false;
    }
    const llama_pos end = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    for (llama_seq_id s = 0; s < (llama_seq_id) kv.seq_to_stream.size(); ++s) {
        if (seq_id >= 0 && s != seq_id) {
            continue;
        }
        if (!is_in_parts) { // what is read again at once stays pinned
            unpin(s, p0, p1);
        }
        if (n_used(s) == 0) {
            continue;
        }
        const bool is_tail = end > seq_pos_max(s);
        if (attention) {
            attention->cut(s, p0);
        }
        if (p0 <= 0 && is_tail) {
            forget(s); // nothing is left of it
        } else if (p0 > 0 && p0 < whole[s]) {
            if (!rebuild(s, p0)) {
                return false;
            }
        } else if (store) {
            store->cut(s, is_tail ? p0 : std::min(p0, store->size(s)));
        }
    }
    return true;
}

bool llama_triattn::can_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) const {
    if (seq_id_src == seq_id_dst || seq_id_src < 0 || seq_id_src >= (llama_seq_id) kv.seq_to_stream.size()) {
        return true;
    }

    const llama_pos t   = whole[seq_id_src];
    const llama_pos end = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    if (t > 0 && p0 < t && (p0 > 0 || end < t)) {
        LLAMA_LOG_ERROR("%s: sequence %d cannot be copied in part before position %d; nothing was copied\n", __func__, seq_id_src, t);
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

    const llama_pos t   = whole[seq_id_src];
    const llama_pos end = p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;

    const auto s0 = kv.seq_to_stream[seq_id_src];
    const auto s1 = kv.seq_to_stream[seq_id_dst];
    if (s0 != s1) {
        pos[s1] = pos[s0];
        whole[seq_id_dst] = t;
    } else if (p0 <= 0) {
        whole[seq_id_dst] = std::max(whole[seq_id_dst], t);
    }
    if (s0 != s1 || n_used(seq_id_dst) == 0) {
        pins.copy(seq_id_src, seq_id_dst, std::max(p0, 0), end);
    } else {
        unpin(seq_id_dst, 0, -1); // what it had and what it got are two texts
    }
    if (store) {
        if (s0 != s1) {
            recalled[s1] = recalled[s0];
            ranks   [s1] = ranks   [s0];
        }
        const bool is_new = n_used(seq_id_dst) == 0 || s0 != s1;
        if (is_new && p0 <= 0) {
            store->copy(seq_id_src, seq_id_dst);
            store->cut(seq_id_dst, p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1);
        } else {
            store->clear(seq_id_dst); // what it had and what it got are two texts
        }
        auto aside = is_new && p0 <= 0 ? readings[seq_id_src].aside : decltype(reading::aside)();
        readings[seq_id_dst] = {};
        readings[seq_id_dst].aside = std::move(aside);
    }
    if (queries && seq_id_dst < (llama_seq_id) n_recorded) {
        const bool is_new = n_used(seq_id_dst) == 0 || s0 != s1;

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
    for (llama_seq_id s = 0; s < (llama_seq_id) whole.size(); ++s) {
        if (s != seq_id && (size_t) s < kv.seq_to_stream.size() && kv.seq_to_stream[s] == kv.seq_to_stream[seq_id]) {
            forget(s);
        }
    }
}

bool llama_triattn::seq_shift(llama_seq_id seq_id) const {
    LLAMA_LOG_ERROR("%s: positions of sequence %d cannot be shifted while eviction is on; nothing was shifted\n", __func__, seq_id);
    return false;
}

llama_pos llama_triattn::seq_pos_whole(llama_seq_id seq_id) const {
    return whole[seq_id];
}

llama_pos llama_triattn::seq_pos_min(llama_seq_id seq_id) const {
    const auto & cells = kv.v_cells[kv.seq_to_stream[seq_id]];

    const llama_pos pos_min = cells.seq_pos_min(seq_id);

    if (pos_min >= 0 && whole[seq_id] > 0 && can_rebuild(seq_id, 1)) {
        return 0;
    }
    return pos_min < 0 ? pos_min : std::min(std::max(pos_min, whole[seq_id]), seq_pos_max(seq_id));
}

llama_pos llama_triattn::seq_pos_max(llama_seq_id seq_id) const {
    const llama_pos pos_max = kv.v_cells[kv.seq_to_stream[seq_id]].seq_pos_max(seq_id);

    // rewound to T: the token before it was there, whether its cell still is or not
    return pos_max < 0 ? pos_max : std::max(pos_max, whole[seq_id] - 1);
}

void llama_triattn::apply_ubatch(const slot_info & sinfo, const llama_ubatch & ubatch) {
    for (uint32_t s = 0; s < sinfo.n_stream(); ++s) {
        for (uint32_t i = 0; i < sinfo.size(); ++i) {
            std::fill_n(&pos_at(sinfo.strm[s], sinfo.idxs[s][i], 0), n_set, ubatch.pos[s*sinfo.size() + i]);
            unmark(sinfo.strm[s], sinfo.idxs[s][i]);
        }
    }
}

//
// rounds
//

std::pair<llama_pos, uint32_t> llama_triattn::window_first(llama_seq_id seq_id) const {
    const auto & tokens = kv.v_cells[kv.seq_to_stream[seq_id]].seq_pos_get(seq_id);

    return *(tokens.size() <= params.window ? tokens.begin() : std::prev(tokens.end(), params.window));
}

llama_pos llama_triattn::whole_from(llama_seq_id seq_id) const {
    const auto & tokens = kv.v_cells[kv.seq_to_stream[seq_id]].seq_pos_get(seq_id);
    const auto   first  = tokens.find(window_first(seq_id));

    // of a picture's tokens, which share a position, some may have gone
    const bool is_split = first != tokens.begin() && std::prev(first)->first == first->first;

    return first->first + is_split;
}

std::vector<int32_t> llama_triattn::candidates(llama_seq_id seq_id) const {
    const auto & cells = kv.v_cells[kv.seq_to_stream[seq_id]];

    std::unordered_map<llama_seq_id, std::pair<llama_pos, uint32_t>> ends;
    const auto end_of = [&](llama_seq_id s) {
        const auto it = ends.find(s);
        return it != ends.end() ? it->second : ends[s] = window_first(s);
    };
    const auto all = seqs();

    std::vector<int32_t> res;
    for (const auto & [p, i] : cells.seq_pos_get(seq_id)) {
        if (p < (llama_pos) params.n_keep) {
            continue;
        }
        const auto cell = std::make_pair(p, i);
        if (cell >= end_of(seq_id)) {
            break;
        }
        if (is_pinned(kv.seq_to_stream[seq_id], i, pins)) {
            continue;
        }
        const bool is_alone = cells.seq_count(i) == 1;
        if (is_alone || std::all_of(all.begin(), all.end(), [&, c = i](llama_seq_id s) {
                return !cells.seq_has(c, s) || cell < end_of(s);
            })) {
            res.push_back(i);
        }
    }
    std::sort(res.begin(), res.end());
    return res;
}

int32_t llama_triattn::request(llama_context & lctx, std::function<int32_t()> fn) {
    requested     = std::move(fn);
    requested_res = LLAMA_TRIATTN_FAILED;
    for (int i = 0; i < 2 && requested; ++i) {
        lctx.memory_update(false); // the first one may be taken by a copy between streams that is pending
    }
    if (requested) {
        requested = nullptr;
        return fail("the context has pending work and runs no round now");
    }
    return requested_res;
}

int32_t llama_triattn::fail(const char * why) {
    llama_triattn_set_error(std::string("TriAttention: ") + why);
    return LLAMA_TRIATTN_FAILED;
}

bool llama_triattn::is_over(llama_seq_id seq_id, bool forced) const {
    const uint32_t used = n_used(seq_id);

    return forced ?
        used >  params.budget                 && !candidates(seq_id).empty() :
        used >= params.budget + params.window &&  candidates(seq_id).size() >= params.window;
}

bool llama_triattn::is_due(bool forced) const {
    if (requested) {
        return true;
    }
    for (const auto s : seqs()) {
        if (is_over(s, forced)) {
            return true;
        }
    }
    return false;
}

llama_triattn_unaborted::llama_triattn_unaborted(llama_context & lctx) :
    lctx(lctx), callback(lctx.abort_callback), callback_data(lctx.abort_callback_data) {
    if (callback) {
        lctx.set_abort_callback(nullptr, nullptr);
    }
}

llama_triattn_unaborted::~llama_triattn_unaborted() {
    if (callback) {
        lctx.set_abort_callback(callback, callback_data);
    }
}

void llama_triattn::update(llama_context & lctx, bool forced) {
    const llama_triattn_unaborted unaborted(lctx);

    if (const auto fn = std::move(requested)) {
        requested     = nullptr;
        is_requested  = true;
        requested_res = fn();
        is_requested  = false;
        return;
    }

    std::string why;
    for (const auto s : seqs()) {
        if (is_over(s, forced) && evict(lctx, s, params.budget, forced) < 0) {
            why = llama_triattn_get_error();
        }
    }
    if (!why.empty() && why != why_failed) {
        LLAMA_LOG_ERROR("%s: a round of eviction failed, nothing is decoded: %s\n", __func__, why.c_str());
    }
    why_failed = why;
}

static uint64_t hash_u64(uint64_t x) { // splitmix64
    x += 0x9E3779B97F4A7C15ull;
    x  = (x ^ (x >> 30))*0xBF58476D1CE4E5B9ull;
    x  = (x ^ (x >> 27))*0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

bool llama_triattn::score_sets(
        llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores) {
    const uint32_t strm   = kv.seq_to_stream[seq_id];
    const uint32_t n_cand = cand.size();

    if (params.policy == LLAMA_TRIATTN_POLICY_STREAMING || params.policy == LLAMA_TRIATTN_POLICY_RANDOM) {
        scores.resize((size_t) n_set*n_cand);
        for (uint32_t set = 0; set < n_set; ++set) {
            for (uint32_t i = 0; i < n_cand; ++i) {
                const llama_pos p = pos_at(strm, cand[i], set);

                scores[(size_t) set*n_cand + i] = params.policy == LLAMA_TRIATTN_POLICY_STREAMING ? (float) p :
                    (float) (hash_u64(hash_u64(((uint64_t) params.seed << 32) | set) ^ (uint64_t) p) >> 40);
            }
        }
        return true;
    }

    const bool with_heads = is_requested || ranking;

    last_cells.clear();
    if (llama_triattn_attention::is_policy(params.policy)) {
        if (!attention->score(lctx, layers, *queries, sequence_of(seq_id, cand), last_scores, counters)) {
            return fail("the attention of recorded queries cannot be computed: the device has no memory left for it, or failed"), false;
        }
    } else if (!scorer->compute(lctx, layers, cand, strm, k_rotation(), kv.v_trans, kv.seq_pos_max(seq_id) + 1, last_scores, with_heads, counters)) {
        return fail("the scores cannot be computed: the device has no memory left for them, or failed"), false;
    } else if (attention && !attention->add(lctx, layers, *queries, sequence_of(seq_id, cand), last_scores, counters)) {
        return fail("the attention of recorded queries cannot be computed: the device has no memory left for it, or failed"), false;
    }
    if (with_heads) {
        last_cells = cand;
    }

    llama_triattn_set_rule rule = LLAMA_TRIATTN_SET_PER_LAYER;
    if (params.mode == LLAMA_TRIATTN_MODE_PER_HEAD) {
        rule = LLAMA_TRIATTN_SET_PER_HEAD;
    }
    if (params.mode == LLAMA_TRIATTN_MODE_SHARED) {
        rule = params.aggregate == LLAMA_TRIATTN_AGGREGATE_MAX ? LLAMA_TRIATTN_SET_SHARED_MAX : LLAMA_TRIATTN_SET_SHARED_MEAN;
    }

    scores = llama_triattn_combine(last_scores, n_cand, rule);
    return true;
}

bool llama_triattn::rank_sets(
        llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores) {
    if (!score_sets(lctx, seq_id, cand, scores)) {
        return false;
    }
    if (ranking) {
        const uint32_t strm   = kv.seq_to_stream[seq_id];
        const uint32_t n_cand = cand.size();

        std::vector<llama_pos> tokens((size_t) n_set*n_cand);
        for (uint32_t set = 0; set < n_set; ++set) {
            for (uint32_t i = 0; i < n_cand; ++i) {
                tokens[(size_t) set*n_cand + i] = pos_at(strm, cand[i], set);
            }
        }
        ranking(ranking_data, seq_id, kv.seq_pos_max(seq_id) + 1, n_set, n_cand, tokens.data(), cand.data(), scores.data());

        for (auto & s : scores) {
            s = std::isnan(s) ? -INFINITY : s; // an order needs numbers
        }
    }
    return true;
}

int32_t llama_triattn::score(llama_context & lctx, llama_seq_id seq_id) {
    const auto cand = candidates(seq_id);
    if (cand.empty()) {
        return 0;
    }
    std::vector<float> scores;
    return rank_sets(lctx, seq_id, cand, scores) ? (int32_t) cand.size() : LLAMA_TRIATTN_FAILED;
}

// as many as make a thread worth its start
static const size_t N_SCORES_A_THREAD = 1 << 16;

static void for_each_on_threads(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)> & fn) {
    n_threads = std::max(n_threads, 1u);

    const auto run = [&](uint32_t first) {
        for (uint32_t i = first; i < n; i += n_threads) {
            fn(i);
        }
    };
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < n_threads; ++t) {
        threads.emplace_back(run, t);
    }
    run(0);
    for (auto & thread : threads) {
        thread.join();
    }
}

// Each set would drop the lowest of all candidates; as many cells must be freed in each group for all sets, so that the mean over
// sets decides, largest remainders first.
std::vector<llama_triattn::cell_group> llama_triattn::make_groups(
        uint32_t strm, const std::vector<int32_t> & cand, uint32_t n_drop, const std::vector<float> & scores) const {
    const auto & cells = kv.v_cells[strm];

    using seq_set = std::decay_t<decltype(cells.seq_get_all(0))>;

    std::unordered_map<seq_set, size_t> index;
    std::vector<cell_group> res;
    std::vector<uint32_t>   group_of(cand.size());

    for (uint32_t i = 0; i < cand.size(); ++i) {
        const auto [it, is_new] = index.emplace(cells.seq_get_all(cand[i]), res.size());
        if (is_new) {
            res.emplace_back();
        }
        res[it->second].cand.push_back(i);
        group_of[i] = it->second;
    }
    if (res.size() == 1) {
        res[0].n_drop = n_drop;
        return res;
    }

    std::vector<uint64_t> n_lowest(res.size(), 0);
    for (uint32_t set = 0; set < n_set; ++set) {
        std::vector<uint8_t> drop;
        llama_triattn_drop_lowest(scores.data() + (size_t) set*cand.size(), cand.size(), n_drop, drop);
        for (uint32_t i = 0; i < cand.size(); ++i) {
            n_lowest[group_of[i]] += drop[i];
        }
    }

    std::vector<size_t> order(res.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return n_lowest[a] % n_set > n_lowest[b] % n_set; });

    uint32_t n_left = n_drop;
    for (size_t g = 0; g < res.size(); ++g) {
        res[g].n_drop = n_lowest[g]/n_set;
        n_left -= res[g].n_drop;
    }
    for (size_t i = 0; n_left > 0; ++i, --n_left) { // fewer remainders than groups, and none in a group that is all lowest
        res[order[i]].n_drop += 1;
    }
    return res;
}

int32_t llama_triattn::evict(llama_context & lctx, llama_seq_id seq_id, uint32_t n_tokens, bool forced) {
    const int64_t t_start_us = ggml_time_us();

    const uint32_t strm = kv.seq_to_stream[seq_id];
    const uint32_t used = n_used(seq_id);
    const auto     cand = candidates(seq_id);

    const uint32_t n_cand = cand.size();
    const uint32_t n_drop = used > n_tokens ? std::min(used - n_tokens, n_cand) : 0;
    if (n_drop == 0) {
        return 0;
    }

    if (const char * env = getenv("LLAMA_TRIATTN_FAIL"); env && atoi(env)) {
        return fail("LLAMA_TRIATTN_FAIL asks for a round that fails"); // for tests
    }

    if (store) {
        for (const auto s : seqs()) {
            // cells that sequences share go from all of them
            if (s == seq_id || (kv.seq_to_stream[s] == strm && kv.n_stream == 1)) {
                store_rows(s);
                note_worth(s);
            }
        }
    }

    std::vector<std::vector<llama_pos>> wanted; // what is recalled now
    if (store && !put_back(seq_id, wanted)) {
        return fail("the device failed while rows came back; the sequences in it are lost and must be read again");
    }

    std::vector<float> scores;
    if (!rank_sets(lctx, seq_id, cand, scores)) {
        return LLAMA_TRIATTN_FAILED;
    }
    if (store) {
        for (uint32_t set = 0; set < n_set; ++set) {
            for (uint32_t i = 0; i < n_cand; ++i) {
                ranks[strm][(size_t) cand[i]*n_set + set] = scores[(size_t) set*n_cand + i];
            }
        }
    }

    const int64_t t_scored_us = ggml_time_us();

    // The highest candidate cells are freed, so that the used cells stay together and attention reads no more than it must.
    // What a set keeps of their rows goes to the cells below whose rows the set drops: there are as many of each.
    const auto groups = make_groups(strm, cand, n_drop, scores);

    std::vector<int32_t> freed;
    for (const auto & group : groups) {
        for (uint32_t i = group.cand.size() - group.n_drop; i < group.cand.size(); ++i) {
            freed.push_back(cand[group.cand[i]]);
        }
    }

    std::vector<std::vector<int32_t>> src(n_set); // cells, per set
    std::vector<std::vector<int32_t>> dst(n_set);
    std::vector<std::vector<int32_t>> stay(n_set); // freed cells whose row nobody needs: fillers that stay where they are

    const auto choose = [&](uint32_t set) {
        std::vector<uint8_t> drop;
        std::vector<float>   of_group;

        for (const auto & group : groups) {
            const uint32_t n       = group.cand.size();
            const uint32_t i_freed = n - group.n_drop;

            of_group.resize(n);
            for (uint32_t i = 0; i < n; ++i) {
                of_group[i] = scores[(size_t) set*n_cand + group.cand[i]];
            }
            llama_triattn_drop_lowest(of_group.data(), n, group.n_drop, drop);

            for (uint32_t i = 0; i < i_freed; ++i) {
                if (drop[i]) {
                    dst[set].push_back(cand[group.cand[i]]);
                }
            }
            for (uint32_t i = i_freed; i < n; ++i) {
                (drop[i] ? stay[set] : src[set]).push_back(cand[group.cand[i]]);
            }
        }
        GGML_ASSERT(src[set].size() == dst[set].size());
    };
    for_each_on_threads(n_set, std::min<uint64_t>(lctx.get_cparams().n_threads, scores.size()/N_SCORES_A_THREAD), choose);

    llama_triattn_moves moves;
    uint64_t n_moved = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        llama_triattn_moves::layer m;

        const uint32_t n_head_kv = layers[i].n_head_kv;
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            m.n = std::max<uint32_t>(m.n, src[set_of(i, h)].size());
        }
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            const uint32_t set  = set_of(i, h);
            const uint32_t fill = m.n - src[set].size();

            m.src.insert(m.src.end(), src[set].begin(), src[set].end());
            m.dst.insert(m.dst.end(), dst[set].begin(), dst[set].end());
            m.src.insert(m.src.end(), stay[set].begin(), stay[set].begin() + fill);
            m.dst.insert(m.dst.end(), stay[set].begin(), stay[set].begin() + fill);

            n_moved += src[set].size();
        }
        moves.layers.push_back(std::move(m));
    }

    const int64_t t_selected_us = ggml_time_us();

    const auto moved = n_moved > 0 ? llama_triattn_move(lctx, layers, moves, strm, kv.v_trans, counters) : LLAMA_TRIATTN_MOVED_ALL;
    if (moved == LLAMA_TRIATTN_MOVED_NOTHING) {
        return fail("the device has no memory left to move rows of the cache");
    }
    if (moved == LLAMA_TRIATTN_MOVED_SOME) {
        lose(strm);
        return fail("the device failed while rows of the cache moved; the sequences in it are lost and must be read again");
    }

    const int64_t t_moved_us = ggml_time_us();

    auto & cells = kv.v_cells[strm];
    auto & head  = kv.v_heads[strm];

    for (uint32_t set = 0; set < n_set; ++set) {
        for (size_t i = 0; i < src[set].size(); ++i) {
            pos_at(strm, dst[set][i], set) = pos_at(strm, src[set][i], set);
            if (store) {
                recalled[strm][(size_t) dst[set][i]*n_set + set] = recalled[strm][(size_t) src[set][i]*n_set + set];
                ranks   [strm][(size_t) dst[set][i]*n_set + set] = ranks   [strm][(size_t) src[set][i]*n_set + set];
            }
        }
    }
    if (n_set == 1) {
        // one set for all: cells keep the name of their token
        for (size_t i = 0; i < src[0].size(); ++i) {
            cells.set({ (uint32_t) dst[0][i] }, cells.cp({ (uint32_t) src[0][i] }));
        }
    }
    for (const auto s : seqs()) {
        const auto is_of_s = [&, s = s](int32_t cell) { return cells.seq_has(cell, s); };
        if (kv.seq_to_stream[s] == strm && std::any_of(freed.begin(), freed.end(), is_of_s)) {
            whole[s] = std::max(whole[s], whole_from(s));
        }
    }
    for (const int32_t cell : freed) {
        cells.rm(cell);
    }
    head = std::min(head, (uint32_t) *std::min_element(freed.begin(), freed.end()));

    if (store && !call_again(seq_id, wanted)) {
        return fail("the device failed while rows came back; the sequences in it are lost and must be read again");
    }

    const int64_t t_end_us = ggml_time_us();

    counters.n_rounds         += 1;
    counters.n_rounds_forced  += forced;
    counters.n_tokens_evicted += n_drop;
    counters.n_rows_moved     += n_moved;
    counters.t_score_us       += t_scored_us   - t_start_us;
    counters.t_select_us      += t_selected_us - t_scored_us;
    counters.t_move_us        += t_moved_us    - t_selected_us;
    counters.t_total_us       += t_end_us      - t_start_us;

    return n_drop;
}

// A memory update that runs the rounds that are due.
class llama_triattn_update : public llama_memory_context_i {
public:
    llama_triattn_update(llama_triattn & triattn, llama_context & lctx, bool forced) : triattn(triattn), lctx(lctx), forced(forced) {}

    bool next() override { return false; }

    bool apply() override {
        triattn.update(lctx, forced);
        return true;
    }

    const llama_ubatch & get_ubatch() const override { GGML_ABORT("a memory update has no batch"); }

    llama_memory_status get_status() const override { return LLAMA_MEMORY_STATUS_SUCCESS; }

private:
    llama_triattn & triattn;
    llama_context & lctx;
    const bool      forced;
};

llama_memory_context_ptr llama_triattn::init_update(llama_context * lctx, bool forced) {
    return std::make_unique<llama_triattn_update>(*this, *lctx, forced);
}

//
// states
//

uint32_t llama_triattn::row_layout() const {
    return (uint32_t) kv.attn_rot_k | (uint32_t) kv.attn_rot_v << 1 | (uint32_t) is_long_rope << 2;
}

uint32_t llama_triattn::n_free_without(llama_seq_id seq_id) const {
    const auto & cells = kv.v_cells[kv.seq_to_stream[seq_id]];

    uint32_t res = 0;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        res += cells.is_empty(i) || (cells.seq_count(i) == 1 && cells.seq_has(i, seq_id));
    }
    return res;
}

void llama_triattn::make_room(llama_seq_id seq_id, uint32_t n_free) {
    for (const auto s : seqs()) {
        if (n_free_without(seq_id) >= n_free) {
            return;
        }
        if (lctx && s != seq_id && kv.seq_to_stream[s] == kv.seq_to_stream[seq_id] && n_used(s) > params.budget) {
            lctx->synchronize();
            request(*lctx, [&] { return evict(*lctx, s, params.budget, true); });
        }
    }
}

//
// for the C API
//

void llama_triattn::get_stats(llama_triattn_stats & stats) const {
    stats = counters;

    stats.n_cells = (uint64_t) kv.get_size()*kv.n_stream;
    for (const auto & cells : kv.v_cells) {
        stats.n_cells_used += cells.get_used();
    }
    for (uint32_t s = 0; s < kv.n_stream; ++s) {
        for (uint32_t i = 0; i < kv.v_cells[s].size(); ++i) {
            stats.n_pinned += !kv.v_cells[s].is_empty(i) && is_pinned(s, i, pins);
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

    const uint32_t strm  = kv.seq_to_stream[seq_id];
    const uint32_t set   = set_of(i_layer, head_kv);
    const auto &   cells = kv.v_cells[strm];

    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (!cells.is_empty(i) && cells.seq_has(i, seq_id)) {
            res.push_back(pos_at(strm, i, set));
            res_cells.push_back(i);
        }
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
