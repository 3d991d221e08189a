#pragma once

// How each layer's cached key is made: the one place that knows which dimensions RoPE turns, how, and by which length.

#include "llama-triattn.h"

#include <cstdint>
#include <string>

struct llama_cparams;
struct llama_model;

struct llama_triattn_rotation {
    int32_t  mode   = -1; // LLAMA_ROPE_TYPE_NORM or _NEOX; -1: nothing is turned, frequency 0 throughout
    uint32_t offset = 0;  // first turned dimension of a head
    uint32_t n_rot  = 0;  // turned dimensions
    uint32_t n_band = 0;  // what has a length of its own: pairs of turned dimensions, or single ones where nothing turns
};

llama_triattn_rotation llama_triattn_rotation_of(const llama_model & model, int32_t il);

// c: the length that RoPE gives to a turned pair of length 1. cparams NULL: of a context without RoPE options of its own.
float llama_triattn_rope_factor(const llama_model & model, const llama_cparams * cparams, int32_t il);

// OK, NO_STATS or BAD_STATS and why: the statistics are the model's own, and fit how each layer turns.
llama_triattn_status llama_triattn_check_model_stats(const llama_model & model, std::string & why);

// Why this layer's cache does not evict, "" if it does.
std::string llama_triattn_why_kept(const llama_model & model, int32_t il);

// Why no context of this model evicts, "" if some can.
std::string llama_triattn_why_unsupported(const llama_model & model);
