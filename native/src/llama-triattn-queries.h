#pragma once

// The last queries of each sequence and layer, as attention saw them: after RoPE, and rotated where the cached keys are, so that a
// product with a cached key is the attention logit. The graph of each batch writes them into a ring that lies where the layer does.

#include "llama-triattn-cache-layer.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <map>
#include <vector>

struct llama_ubatch;
struct llm_graph_context;

class llama_triattn_queries {
public:
    // n_ring: queries of a sequence and layer. Throws std::runtime_error if there is no memory.
    llama_triattn_queries(const std::vector<llama_triattn_layer> & layers, uint32_t n_seq, uint32_t n_ring);

    // While the graph of a batch is built: q [n_embd_head, n_head, n_tokens] of model layer il goes into the ring.
    // kq_scale: what attention multiplies the logits with. sinks: F32 [n_head], nullptr if the layer has none.
    void record(const llm_graph_context & graph, ggml_tensor * q, float kq_scale, ggml_tensor * sinks, int32_t il);

    // Rows of the ring that the tokens of a batch go to, [n_tokens]. Called before each batch is computed, and remembers it.
    void set_rows(const llama_ubatch & ubatch, int64_t * rows);

    // positions whose queries are in the ring, of [p0, p1), ascending
    std::vector<llama_pos> positions(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    struct layer {
        std::vector<float> q;     // [n_pos][n_head][n_embd_head]
        std::vector<float> sinks; // [n_head], empty if there are none
        float kq_scale = 0.0f;
    };

    // of a model layer, at positions that are in the ring
    layer get(llama_seq_id seq_id, int32_t il, const std::vector<llama_pos> & pos) const;

    // the batches before are forgotten
    void clear(llama_seq_id seq_id);

    // all of a sequence: positions, and the rows of each layer
    std::vector<uint8_t> save(llama_seq_id seq_id) const;
    void restore(llama_seq_id seq_id, const std::vector<uint8_t> & data); // nothing if it is of another size

    uint64_t n_bytes() const;

    struct ring {
        ggml_tensor * q     = nullptr; // F16 [n_embd_head*n_head, n_seq*n_ring + 1]: the last row takes what nobody wants
        ggml_tensor * sinks = nullptr;

        float    kq_scale = 0.0f;
        uint32_t n_head   = 0;
    };

    // for graphs: the queries of a model layer, and the row of one that is recorded
    const ring & of_layer(int32_t il) const { return rings.at(il); }
    int32_t row_of(llama_seq_id seq_id, llama_pos pos) const { return seq_id*n_ring + pos % n_ring; }

private:

    const uint32_t n_seq;
    const uint32_t n_ring;

    std::map<int32_t, ring> rings; // by model layer

    std::vector<std::vector<llama_pos>> pos; // [n_seq][n_ring], -1: nothing

    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> bufs;
};
