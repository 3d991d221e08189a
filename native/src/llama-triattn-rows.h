#pragma once

// Rows between the cells of a cache and host memory, bit for bit. On the host they are copied; on a device they go through graphs of
// their own on the device's backend, so that the context's scheduler and its graph stay as they are.

#include "llama-triattn-cache-layer.h"

#include <cstdint>
#include <string>
#include <vector>

// Some rows of one layer: for each KV head n cells, and the bytes of their K and V side by side.
struct llama_triattn_rows {
    uint32_t n = 0;

    std::vector<int32_t> cells; // [n_head_kv][n]
    std::vector<uint8_t> k;     // [n_head_kv][n][bytes of a row]
    std::vector<uint8_t> v;
};

// Bytes of a head's row
size_t llama_triattn_row_size_k(const llama_triattn_layer & layer);
size_t llama_triattn_row_size_v(const llama_triattn_layer & layer); // 0: no values

// One stream of a cache tensor as raw 32-bit words, so that a row moves bit for bit whatever its type:
// F32 [words of a row, n_cells, n_head_kv]
ggml_tensor * llama_triattn_view_words(ggml_context * ctx, ggml_tensor * t, uint32_t n_head, uint32_t stream);

// "", or why rows of these layers cannot leave and come back
std::string llama_triattn_rows_why_not(const std::vector<llama_triattn_layer> & layers, bool v_trans);

// Both wait for what the backends still compute. `rows` has an entry for each layer; false: a device failed.
bool llama_triattn_rows_read (llama_context & lctx, const std::vector<llama_triattn_layer> & layers, uint32_t stream, bool v_trans,
        std::vector<llama_triattn_rows> & rows);
bool llama_triattn_rows_write(llama_context & lctx, const std::vector<llama_triattn_layer> & layers, uint32_t stream, bool v_trans,
        const std::vector<llama_triattn_rows> & rows);
