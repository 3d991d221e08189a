#include "llama-triattn-memory.h"

#include "common.h"
#include "llama-triattn.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>

static const int64_t LOOKED_AT_MS = 5000;
static const int32_t N_COLUMNS    = 240; // of the picture: a column stands for as many tokens as it takes

static const char PAGE[] =
#include "llama-triattn-memory-page.h"
;

// how many heads of each layer held each token when it was last looked at, and which of them had let go of it before
struct seen {
    llama_tokens tokens;
    std::vector<std::vector<uint16_t>> n_held; // [layer][token]
    std::vector<std::vector<bool>>     is_back;
};

static std::atomic<int64_t> t_looked_ms { 0 };

static std::mutex                mutex_shown;
static std::map<int32_t, json>   shown;
static std::map<int32_t, seen>   seen_of; // of the thread that owns the slots

bool llama_triattn_memory::is_looked_at() {
    return t_looked_ms != 0 && ggml_time_ms() - t_looked_ms < LOOKED_AT_MS;
}

server_http_res_ptr llama_triattn_memory::page(const server_http_req &) {
    auto res = std::make_unique<server_http_res>();
    res->content_type = "text/html; charset=utf-8";
    res->headers["Content-Security-Policy"] =
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:";
    res->data = PAGE;
    return res;
}

server_http_res_ptr llama_triattn_memory::map(const server_http_req &) {
    t_looked_ms = ggml_time_ms();

    auto res = std::make_unique<server_http_res>();
    json slots = json::array();
    {
        std::lock_guard<std::mutex> lock(mutex_shown);
        for (const auto & slot : shown) {
            slots.push_back(slot.second);
        }
    }
    res->data = safe_json_to_str(json { { "slots", slots } });
    return res;
}

void llama_triattn_memory::note(int32_t id_slot, llama_context * ctx, bool evicts, const server_prompt & prompt) {
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(ctx));

    llama_tokens tokens;
    for (int32_t i = 0; i < prompt.n_tokens(); ++i) {
        tokens.push_back(prompt.tokens[i]);
    }
    const int32_t n_tokens = tokens.size();

    llama_triattn_stats stats = {};
    std::vector<int32_t> layers;
    if (evicts && llama_triattn_get_stats(ctx, &stats) == LLAMA_TRIATTN_OK) {
        layers.resize(std::max(0, llama_triattn_get_layers(ctx, nullptr, 0)));
        llama_triattn_get_layers(ctx, layers.data(), layers.size());
    }

    auto & last = seen_of[id_slot];
    const size_t n_same = std::mismatch(tokens.begin(), tokens.begin() + std::min(tokens.size(), last.tokens.size()), last.tokens.begin()).first - tokens.begin();

    seen now;
    now.tokens = tokens;
    std::vector<llama_pos> pos(n_tokens);
    int32_t n_most = 1; // heads of a layer
    for (size_t l = 0; l < layers.size(); ++l) {
        now.n_held .emplace_back(n_tokens);
        now.is_back.emplace_back(n_tokens);
        for (int32_t head = 0; head < stats.n_head_kv; ++head) {
            const int32_t n = llama_triattn_get_kept(ctx, id_slot, layers[l], head, pos.data(), nullptr, n_tokens);
            for (int32_t i = 0; i < std::min(n, n_tokens); ++i) {
                if (pos[i] >= 0 && pos[i] < n_tokens) {
                    n_most = std::max(n_most, (int32_t) ++now.n_held[l][pos[i]]);
                }
            }
        }
        for (size_t i = 0; i < n_same && l < last.n_held.size(); ++i) {
            now.is_back[l][i] = now.n_held[l][i] > last.n_held[l][i] || (last.is_back[l][i] && now.n_held[l][i] > 0);
        }
    }

    // a layer is two texts of a letter a column: how much of it is held (a: nothing, to z: all), and how much of that came back
    const int32_t n_columns = std::min(N_COLUMNS, n_tokens);
    const auto first_of = [&](int32_t column) { return (int32_t) ((int64_t) column*n_tokens/std::max(1, n_columns)); };

    json rows = json::array();
    for (size_t l = 0; l < layers.size(); ++l) {
        std::string held, back;
        for (int32_t c = 0; c < n_columns; ++c) {
            const int32_t first = first_of(c), end = first_of(c + 1);
            int64_t sum = 0, n_back = 0;
            for (int32_t i = first; i < end; ++i) {
                sum    += now.n_held[l][i];
                n_back += now.is_back[l][i];
            }
            const int64_t all = (int64_t) n_most*(end - first);
            held += 'a' + (sum == 0 ? 0 : 1 + 24*sum/all);
            back += 'a' + 25*n_back/(end - first);
        }
        rows.push_back({ { "layer", layers[l] }, { "held", held }, { "back", back } });
    }

    json words = json::array();
    for (int32_t c = 0; c < n_columns; ++c) {
        std::string text;
        for (int32_t i = first_of(c); i < first_of(c + 1); ++i) {
            text += tokens[i] == LLAMA_TOKEN_NULL ? std::string("[picture]") : common_token_to_piece(vocab, tokens[i], true);
        }
        words.push_back(text);
    }

    json slot = {
        { "id",             id_slot },
        { "evicts",         evicts },
        { "n_tokens",       n_tokens },
        { "layers",         rows },
        { "words",          words },
        { "kv_bytes",       stats.kv_bytes + stats.kv_bytes_other },
        { "kv_bytes_full",  stats.kv_bytes_full + stats.kv_bytes_other },
        { "cold_bytes",     stats.cold_bytes },
        { "cold_bytes_max", stats.cold_bytes_max },
    };
    last = std::move(now);

    std::lock_guard<std::mutex> lock(mutex_shown);
    shown[id_slot] = std::move(slot);
}
