#pragma once

// Ollama's routes, for programs that know no others: /api/chat, /api/generate, /api/show, /api/tags, /api/version.
//
// Each request is put into the words of one of llama-server's own routes, whose handler answers it, and the answer is put back
// into Ollama's: a JSON object a line, or one in all. So a prompt is the same prompt whichever way it came, and begins with the
// same saved states.
//
// What cannot be done is refused rather than passed over where the answer would be another one: pictures, a template of the
// client's. A larger context than the served one is told in the log, as Ollama does it; whose prompt does not fit gets the error.
// keep_alive means nothing here: --idle-unload says when the model leaves.

#include "server-context.h"
#include "server-http.h"

class llama_triattn_ollama {
public:
    // routes must outlive http
    static void add(const server_http_context & http, const server_routes & routes);
};
