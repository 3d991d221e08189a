#pragma once

// Which contexts evict, and how many cells their caches get. Refuses, with the reason, what cannot work.

#include "llama-triattn.h"

#include "llama-cparams.h"
#include "llama-memory.h"

#include <cstdint>
#include <memory>

struct llama_context;

class llama_kv_cache;
class llama_triattn;

// Lives in the constructor of llama_context while its memory is made: gives caches their number of cells and their llama_triattn.
class llama_triattn_scope {
public:
    // Throws std::runtime_error with the reason if eviction is on and cannot work here.
    llama_triattn_scope(const llama_model & model, const llama_memory_params & params, const llama_cparams & cparams);
    ~llama_triattn_scope();

    // Throws if eviction is on and the memory that was made does not evict; tells it whose memory it is.
    void check(llama_context & lctx, const llama_memory_i * memory) const;

    // hooks of the constructor of llama_kv_cache: the number of cells to allocate, and the object once tensors are there
    static uint32_t n_cells(const llama_kv_cache & kv, uint32_t n_cells_full);
    static std::shared_ptr<llama_triattn> make(llama_kv_cache & kv, uint32_t n_cells_full);

private:
    const llama_cparams & cparams;

    llama_triattn_params params = {};

    bool active = false;

    static bool can_evict(const llama_kv_cache & kv);
};
