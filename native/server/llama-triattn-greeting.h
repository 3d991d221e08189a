#pragma once

// What a streaming client hears before its request has a slot.
//
// llama-server sends the headers of a stream when a slot takes the request, and comments (SSE pings) from then on. Until its
// turn comes the client hears nothing, and those that give up on a silent server do so. So the reader of the request's
// results makes the result that begins a stream itself, once the client has waited as long as between two comments, and
// passes over the slot's own when it comes.
//
// What an error at the beginning loses by that is its status code: it is an event of the stream then. A prompt that is too
// long for the context, the one that agents go by, is told before it waits: llama_triattn_server::too_long.
//
// One object belongs to the reader of one request, and to its thread.

#include "server-task.h"

#include <cstdint>

class llama_triattn_greeting {
public:
    // The client streams and was promised a comment every so many seconds; 0 or less: none, and none here.
    void expect(int32_t interval_s);

    // The reader has a result, or null if there was none when it looked. false: pass over it and look again. A null is made
    // the result that begins the stream when it is time for that.
    bool passes(server_task_result_ptr & result);

private:
    int64_t t_due_ms  = 0; // 0: nothing is promised
    bool    has_begun = false;
};
