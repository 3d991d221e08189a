#include "llama-triattn-scope.h"

#include "llama-triattn-cache.h"
#include "llama-triattn-rope.h"

#include "llama-model.h"

#include <algorithm>
#include <stdexcept>

static thread_local llama_triattn_scope * g_scope = nullptr;

// Why this model or context cannot evict, "" if it can.
static std::string why_unsupported(const llama_model & model, const llama_cparams & cparams) {
    if (!cparams.causal_attn || cparams.embeddings) {
        return "an embedding context or one without causal attention cannot evict";
    }
    if (model.split_mode() == LLAMA_SPLIT_MODE_TENSOR) {
        return "tensor split mode cannot move rows of the cache; use --split-mode layer";
    }
    return llama_triattn_why_unsupported(model);
}

llama_triattn_scope::llama_triattn_scope(
        const llama_model & model, const llama_memory_params & params_mem, const llama_cparams & cparams) : cparams(cparams) {
    llama_triattn_set_error("");

    g_scope = nullptr;

    if (!model.triattn || params_mem.ctx_type != LLAMA_CONTEXT_TYPE_DEFAULT) {
        return;
    }

    try {
        params = model.triattn->params();
    } catch (const std::exception & err) {
        llama_triattn_refuse(err.what());
    }

    if (params.budget == 0) {
        return;
    }

    const std::string why = why_unsupported(model, cparams);
    if (!why.empty()) {
        llama_triattn_refuse(why);
    }

    if (params.policy == LLAMA_TRIATTN_POLICY_TRIATTENTION) {
        std::string why_stats;
        if (llama_triattn_check_model_stats(model, why_stats) != LLAMA_TRIATTN_OK) {
            llama_triattn_refuse(why_stats);
        }
    }

    active  = true;
    g_scope = this;
}

llama_triattn_scope::~llama_triattn_scope() {
    g_scope = nullptr;
}

// SWA caches are small already; a cache that shows another one's cells has its size; one that was given other parameters than
// the model's holds something else than keys and values of its attention (an indexer's keys)
bool llama_triattn_scope::can_evict(const llama_kv_cache & kv) {
    return kv.swa_type == LLAMA_SWA_TYPE_NONE && !kv.other && &kv.hparams == &kv.model.hparams;
}

uint32_t llama_triattn_scope::n_cells(const llama_kv_cache & kv, uint32_t n_cells_full) {
    if (g_scope && g_scope->active && kv.swa_type != LLAMA_SWA_TYPE_NONE && !kv.other && &kv.hparams == &kv.model.hparams) {
        // as llama_kv_cache_iswa reckons without swa_full, which is true by default and asks for as many as full attention
        const uint32_t n = kv.n_swa*(kv.n_stream == 1 ? kv.n_seq_max : 1) + g_scope->cparams.n_ubatch;
        return std::min(n_cells_full, GGML_PAD(n, 256));
    }
    if (!g_scope || !g_scope->active || !can_evict(kv)) {
        return n_cells_full;
    }

    const auto & p = g_scope->params;

    // a llama_decode() places n_batch tokens at once, and starts with less than budget + window
    const uint32_t n_seq = kv.n_stream == 1 ? kv.n_seq_max : 1;
    const uint64_t n     = (uint64_t) n_seq*(p.budget + p.window) + g_scope->cparams.n_batch;

    return (uint32_t) std::min<uint64_t>(n_cells_full, GGML_PAD(n, 256));
}

std::shared_ptr<llama_triattn> llama_triattn_scope::make(llama_kv_cache & kv, uint32_t n_cells_full) {
    if (!g_scope || !g_scope->active || !can_evict(kv) || kv.hparams.no_alloc) {
        return nullptr;
    }
    return std::make_shared<llama_triattn>(kv, g_scope->params, g_scope->cparams, n_cells_full);
}

void llama_triattn_scope::check(llama_context & lctx, const llama_memory_i * memory) const {
    if (!active) {
        return;
    }
    const auto * kv = llama_triattn::find_cache(memory);
    if (!kv) {
        llama_triattn_refuse("this kind of memory (recurrent, sparse or indexed) cannot evict");
    }
    if (!kv->triattn && !kv->hparams.no_alloc) {
        llama_triattn_refuse("this context has no cache of its own that could evict");
    }
    if (kv->triattn) {
        kv->triattn->attach(lctx);
    }
}
