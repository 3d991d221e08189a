#pragma once

// What a model file and its user say about eviction: settings and statistics. Knows nothing of caches and contexts.

#include "llama-triattn.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct gguf_context;
struct llama_hparams;
struct llama_model;
struct llama_model_loader;

// Statistics of one layer: centres of the pre-RoPE queries, in the model file's own dimension order.
struct llama_triattn_centres {
    std::vector<float> q_mean; // [n_head][n_embd_head_k]  E[q]
    std::vector<float> q_abs;  // [n_head][n_rot/2]        E[|q_f|], bands in RoPE pair order
};

struct llama_triattn_statistics {
    std::string fingerprint; // of the model that they were taken from
    std::map<int32_t, llama_triattn_centres> layers;
};

class llama_triattn_model {
public:
    // At model load, while the loader has the file open.
    static void load(llama_model & model, llama_model_loader & ml);

    // The settings that a new context gets; reads the environment for what the model was not told.
    // Throws std::runtime_error for a setting that cannot be taken.
    llama_triattn_params params() const;

    // Throws std::runtime_error for settings that make no sense together.
    static void check(const llama_triattn_params & params);

    void set_params(const llama_triattn_params & params);

    void load_sidecar(const char * path);

    // OK, NO_STATS or BAD_STATS and why.
    llama_triattn_status check_stats(const llama_hparams & hparams, std::string & why) const;

    const llama_triattn_centres & centres(int32_t il) const { return stats->layers.at(il); }

    bool has_centres(int32_t il) const { return stats && stats->layers.count(il) > 0; }

    const std::string & get_fingerprint() const { return fingerprint; }

private:
    std::unique_ptr<llama_triattn_params> own;     // from llama_triattn_set_params
    std::map<std::string, std::string>    settings; // from the KV overrides: key without its prefix -> value

    std::unique_ptr<llama_triattn_statistics> stats;
    std::string                               stats_error; // why there are none although the file has the keys
    std::string                               stats_path;  // sidecar in use, "" for the model file

    std::string fingerprint; // of the loaded tensors

    static std::shared_ptr<llama_triattn_model> read(const llama_model & model, llama_model_loader & ml);

    void read_stats(const gguf_context * meta, const char * where);
};

// The last error of this thread, for llama_triattn_last_error().
void         llama_triattn_set_error(const std::string & what);
const char * llama_triattn_get_error();

// Ends the making of a context: sets the last error and throws it as std::runtime_error.
[[noreturn]] void llama_triattn_refuse(const std::string & why);
