#include "llama-triattn-cache.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"

#include <algorithm>
#include <typeinfo>

// Which cache of a memory evicts, and what memories of several parts ask it before they change any of them.

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
        const auto all = kv.triattn->cells->seqs();
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
