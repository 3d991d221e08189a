#pragma once

// The page /memory: what each layer holds of the text of a slot, while it changes.
//
// The page itself is carried here, asks nobody else, and needs no key; what it shows does (/memory/map). The figures are made by
// the thread that owns the slots, when it answers /slots, and only while somebody looks at the page: each head of each layer is
// asked for what it holds, some ten thousand numbers for a large model.

#include "server-common.h"
#include "server-http.h"
#include "server-task.h"

#include "llama.h"

class llama_triattn_memory {
public:
    static server_http_res_ptr page(const server_http_req & req);
    static server_http_res_ptr map (const server_http_req & req);

    // true if the page was looked at in the last seconds
    static bool is_looked_at();

    // The slot's sequence at this moment. ctx evicts, or holds everything.
    static void note(int32_t id_slot, llama_context * ctx, bool evicts, const server_prompt & prompt);
};
