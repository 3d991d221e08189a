#pragma once

// The cold tier's memory: rows of the tokens of a sequence, by position, in host memory. Whatever a head forgets is still here.
// Knows no cache, no graph and no scores: who writes a row says where it belongs, who reads it gets it as it was written.
//
// Rows lie in slabs. A slab holds a number of tokens of all layers, each head's rows side by side:
//
//     layer by layer:  K [n_head_kv][n_slab/N_BLOCK][N_BLOCK rows]  V [n_head_kv][n_slab][bytes of a V row]
//
// A block of K is [elements of a row][N_BLOCK] where the type has elements of whole bytes, so that a product of a query with N_BLOCK
// keys goes through it vector by vector; rows of a quantised type lie one behind the other.
//
// Sequences that were copied share slabs. One of them may write behind what all have; the others go on in copies. Memory is taken and given in blocks of N_BLOCK tokens within a
// slab: once the store has as many bytes as it may have, the block of a sequence that is worth least is destroyed for good.

#include "llama.h"

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <utility>
#include <vector>

class llama_triattn_slab_file;

struct llama_triattn_row_sizes {
    uint32_t n_head_kv;

    size_t k; // bytes of a head's row
    size_t v; // 0: the layer has no values

    size_t k_element; // bytes of an element of K; 0: it has none of its own
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

    // a row of a position that is here
    void put(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos, const uint8_t * row);
    void get(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos, uint8_t * row) const;

    void cut  (llama_seq_id seq_id, llama_pos pos); // forget positions from pos on
    void clear(llama_seq_id seq_id);
    void copy (llama_seq_id seq_id_src, llama_seq_id seq_id_dst);

    // A sequence as it is now stays here under a number that no other store gives, until it is the oldest of too many, or memory is
    // wanted for sequences. Twice the same: the same number.
    uint64_t retain(llama_seq_id seq_id);

    // Put it in the place of a sequence. False: it is not here any more, and the sequence holds nothing.
    bool resume(uint64_t id, llama_seq_id seq_id);

    // Write to a file what it has not yet of a sequence. Number of bytes; -1: the disk is full, and the sequence is not in the file.
    int64_t save(llama_seq_id seq_id, const std::shared_ptr<llama_triattn_slab_file> & file);

    // Where a sequence lies in a file: what load() takes. Empty: it does not lie in one whole.
    std::vector<uint8_t> where(llama_seq_id seq_id) const;

    // The id of the file that where() named, 0 if it is nothing that where() gave.
    static uint64_t file_of(const std::vector<uint8_t> & where);

    // Put what a file holds in the place of a sequence. False: it does not hold it, or there is no memory; the sequence holds nothing then.
    bool load(llama_seq_id seq_id, const std::shared_ptr<llama_triattn_slab_file> & file, const std::vector<uint8_t> & where);

    size_t slab_size() const { return offsets.back(); }

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

        uint64_t retained = 0; // what it was last retained as, unless it has changed
    };

    const std::vector<llama_triattn_row_sizes> layers;

    std::vector<size_t> offsets; // of a layer in a slab

    size_t bytes_token = 0;

    const uint32_t n_keep;
    const uint64_t bytes_max;

    uint32_t n_tokens; // of a slab
    uint64_t destroyed = 0;

    std::vector<sequence> seqs;

    std::list<std::pair<uint64_t, sequence>> retained; // the oldest first

    const uint64_t first_id;
    uint64_t       n_retained = 0;

    std::shared_ptr<uint64_t> bytes_held;

    std::shared_ptr<slab> new_slab(); // nullptr: no memory
    bool make_room();                 // for a slab more; false: there is none

    bool is_free(const sequence & seq, int32_t i_slab) const; // the sequence may write behind its size

    // of the row's first byte, and from one element to the next
    std::pair<uint8_t *, size_t> find(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos) const;

    place take(sequence & seq, uint32_t n_live);
    bool  own (sequence & seq, int32_t i_slab); // no other sequence sees what is written behind its size there

    int64_t save_slab(const sequence & seq, const slab_of & s, const std::shared_ptr<llama_triattn_slab_file> & file) const;

    static uint8_t n_rows_of(const sequence & seq, int32_t block); // rows that the sequence has of a block
};
