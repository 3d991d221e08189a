#pragma once

// Graphs of our own on the scheduler of a context: begun, pinned to where the cache lies, computed. Knows nothing of what they are for.

#include "llama-triattn.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <cstdint>

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
