#include "llama-triattn-greeting.h"

#include "llama-triattn-server.h"

#include "ggml.h"

void llama_triattn_greeting::expect(int32_t interval_s) {
    if (llama_triattn_server::is_on() && interval_s > 0) {
        t_due_ms = ggml_time_ms() + (int64_t) interval_s*1000;
    }
}

bool llama_triattn_greeting::passes(server_task_result_ptr & result) {
    if (t_due_ms == 0) {
        return true;
    }
    if (result) {
        const auto * partial = dynamic_cast<const server_task_result_cmpl_partial *>(result.get());
        const bool is_known = has_begun && partial && partial->is_begin;

        has_begun = true;
        return !is_known;
    }
    if (!has_begun && ggml_time_ms() >= t_due_ms) {
        auto begin = std::make_unique<server_task_result_cmpl_partial>();
        begin->is_begin = true;

        result    = std::move(begin);
        has_begun = true;
    }
    return true;
}
