#include "llama-triattn-graph.h"

#include "llama-context.h"
#include "llama-graph.h"

#include <cstdlib>

llama_triattn_graph llama_triattn_begin(llama_context & lctx) {
    auto * sched = lctx.get_sched();
    auto * res   = lctx.get_gf_res_reserve();

    // a device may still be computing the batch before, in the memory that is used anew here
    ggml_backend_sched_synchronize(sched);
    ggml_backend_sched_reset(sched);
    ggml_backend_sched_set_eval_callback(sched, nullptr, nullptr); // set anew with the next ubatch
    res->reset();

    return { res->get_ctx(), res->get_gf() };
}

// another look at memory that is there: nothing to compute
static bool is_view(ggml_op op) {
    return op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE || op == GGML_OP_TRANSPOSE;
}

bool llama_triattn_compute(llama_context & lctx, ggml_cgraph * gf, int64_t n_elements, llama_triattn_stats & counters) {
    auto * sched = lctx.get_sched();

    counters.n_graphs += 1;
    for (int i = 0; i < ggml_graph_n_nodes(gf); ++i) {
        counters.n_operations += !is_view(ggml_graph_node(gf, i)->op);
    }

    if (n_elements > 1 << 18) {
        return lctx.graph_compute(gf, false) == GGML_STATUS_SUCCESS;
    }

    // the context sets the number of threads anew before each of its own graphs
    for (int i = 0; i < ggml_backend_sched_get_n_backends(sched); ++i) {
        auto * backend = ggml_backend_sched_get_backend(sched, i);
        auto * reg     = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend));
        auto * fn      = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
        if (fn) {
            fn(backend, 1);
        }
    }
    return ggml_backend_sched_graph_compute_async(sched, gf) == GGML_STATUS_SUCCESS;
}

bool llama_triattn_is_in_reach(const ggml_tensor * t) {
    const char * env = getenv("LLAMA_TRIATTN_AS_DEVICE");
    return ggml_backend_buffer_is_host(t->buffer) && !(env && atoi(env));
}

ggml_backend_t llama_triattn_backend_of(llama_context & lctx, const ggml_tensor * where) {
    auto * sched = lctx.get_sched();

    const int n_backends = ggml_backend_sched_get_n_backends(sched);

    // as the scheduler finds it itself; plain host memory has no device to compare
    auto * buft = ggml_backend_buffer_get_type(where->buffer);

    for (int i = 0; i < n_backends && n_backends > 1; ++i) {
        auto * backend = ggml_backend_sched_get_backend(sched, i);
        if (ggml_backend_supports_buft(backend, buft)) {
            return backend;
        }
    }
    return nullptr;
}

void llama_triattn_pin(llama_context & lctx, ggml_cgraph * gf, int n_nodes_before, const ggml_tensor * where) {
    auto * backend = llama_triattn_backend_of(lctx, where);

    for (int i = n_nodes_before; backend && i < ggml_graph_n_nodes(gf); ++i) {
        auto * node = ggml_graph_node(gf, i);
        // a view lies where its source lies: pinned elsewhere, the scheduler would not copy it to where it is read
        if (!is_view(node->op) && ggml_backend_supports_op(backend, node)) {
            ggml_backend_sched_set_tensor_backend(lctx.get_sched(), node, backend);
        }
    }
}
