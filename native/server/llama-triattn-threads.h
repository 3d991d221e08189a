#pragma once

// As many threads as other programs leave cores free: what triattn_local/support/threads.py does, for llama-server.
//
// The threads of a graph work in step. One whose core another program uses too holds up all of them: on two cores beside one
// busy process, two threads decode at half the speed of one.

#include "llama.h"

#include <cstdint>
#include <vector>

class llama_triattn_threads {
public:
    // The contexts compute with so many threads on an idle machine, for a token and for a batch. TRIATTN_YIELD_CORES=0: always.
    void attach(std::vector<llama_context *> contexts, int32_t n_threads, int32_t n_threads_batch);

    // Between two batches: looks, at most a few times a second, and tells the contexts if the number has changed.
    void follow();

    // The number that fits, of at most n_most, if others used so many seconds of the cores within past_s seconds.
    static int32_t fitting(int32_t n_now, int32_t n_most, int32_t n_cores, double others_s, double past_s);

private:
    std::vector<llama_context *> contexts;

    int32_t n_most       = 0; // for a token; 0: does not follow
    int32_t n_most_batch = 0;
    int32_t n_now        = 0; // of the larger of the two
    int32_t n_cores      = 0;

    double at_s  = 0.0;
    double all_s = 0.0;
    double own_s = 0.0;
};
