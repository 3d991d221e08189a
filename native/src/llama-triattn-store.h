#pragma once

// The cold tier's memory: rows of the tokens of a sequence, by position, in host memory. Whatever a head forgets is still here.
// Knows no cache, no graph and no scores: who writes a row says where it belongs, who reads it gets it as it was written.
//
// Rows lie in slabs. A slab holds a number of tokens of all layers, each head's rows side by side, as a product of queries with
// keys wants them:
//
//     layer by layer:  K [n_head_kv][n_slab][bytes of a K row]  V [n_head_kv][n_slab][bytes of a V row]
//
// Sequences that were copied share slabs until one of them writes. Memory is taken and given in blocks of N_BLOCK tokens within a
// slab: once the store has as many bytes as it may have, the block of a sequence that is worth least is destroyed for good.

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

struct llama_triattn_row_sizes {
    uint32_t n_head_kv;

    size_t k; // bytes of a head's row
    size_t v; // 0: the layer has no values
};

class llama_triattn_store {
public:
    static constexpr uint32_t N_BLOCK = 16;
    static constexpr uint32_t N_SLAB  = 512; // tokens; fewer where that many would be a large part of n_bytes_max

    // n_keep: the first tokens of a sequence are not destroyed
    llama_triattn_store(std::vector<llama_triattn_row_sizes> layers, uint32_t n_seq, uint32_t n_keep, uint64_t n_bytes_max);
    ~llama_triattn_store();

    llama_triattn_store(const llama_triattn_store &) = delete;

    // Rows of the positions [0, size) were written, less those that were destroyed or skipped.
    llama_pos size(llama_seq_id seq_id) const { return seqs[seq_id].size; }

    // all of them are still here
    bool is_whole(llama_seq_id seq_id) const { return seqs[seq_id].is_whole; }

    bool has(llama_seq_id seq_id, llama_pos pos) const;

    // Room for rows of the next n positions, whose bytes are undefined until they are written. False: there is no memory, and
    // size stays as it was. n_live: the last positions before them that may not be destroyed for it.
    bool append(llama_seq_id seq_id, uint32_t n, uint32_t n_live);

    // Nothing is here of the positions from size to pos: not that of a block which is begun in their midst either. Returns the new size.
    llama_pos skip_to(llama_seq_id seq_id, llama_pos pos);

    // of a position that is here
    uint8_t * row(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos);

    void cut  (llama_seq_id seq_id, llama_pos pos); // forget positions from pos on
    void clear(llama_seq_id seq_id);
    void copy (llama_seq_id seq_id_src, llama_seq_id seq_id_dst);

    // How much the blocks of a sequence are wanted, [size/N_BLOCK, rounded up]: the least is destroyed first.
    void set_worth(llama_seq_id seq_id, const std::vector<float> & worth);

    struct slab_view {
        uint8_t * data;   // all layers
        size_t    size;
        size_t    offset; // of the layer: K of the first head

        const std::vector<int32_t> * blocks; // [n_slab/N_BLOCK] block of the sequence, position/N_BLOCK; -1: none
    };

    // where the rows of a sequence lie
    std::vector<slab_view> slabs(llama_seq_id seq_id, uint32_t i_layer) const;

    uint32_t n_slab() const { return n_tokens; }

    uint64_t n_bytes()     const; // held now, all sequences
    uint64_t n_bytes_max() const { return bytes_max; }
    uint64_t n_destroyed() const { return destroyed; } // tokens, since the store was made
    size_t   token_bytes() const { return bytes_token; }

private:
    struct slab;

    struct slab_of {
        std::shared_ptr<slab> mem;
        std::vector<int32_t>  blocks;
    };

    struct place {
        int32_t slab   = -1;
        int32_t stripe = -1;
    };

    struct sequence {
        llama_pos size     = 0;
        bool      is_whole = true;

        std::vector<slab_of> slabs;
        std::vector<place>   places; // [block]
        std::vector<float>   worth;  // [block]
    };

    const std::vector<llama_triattn_row_sizes> layers;

    std::vector<size_t> offsets; // of a layer in a slab

    size_t bytes_token = 0;

    const uint32_t n_keep;
    const uint64_t bytes_max;

    uint32_t n_tokens; // of a slab
    uint64_t destroyed = 0;

    std::vector<sequence> seqs;

    std::shared_ptr<uint64_t> bytes_held;

    std::shared_ptr<slab> new_slab() const; // nullptr: no memory

    place take(sequence & seq, uint32_t n_live);
    bool  own (sequence & seq, int32_t i_slab); // no other sequence sees what is written there
};
