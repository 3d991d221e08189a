#pragma once

// Tokens of sequences that no round may evict: the prompt that an answer is about. Ranges of positions; knows no cells.

#include "llama.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

class llama_triattn_pins {
public:
    using range = std::pair<llama_pos, llama_pos>; // [first, second)

    void add   (llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void copy  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1); // in place of what it had

    bool has(llama_seq_id seq_id, llama_pos pos) const;

    // ascending, with gaps between them
    const std::vector<range> & ranges(llama_seq_id seq_id) const;

    // positions that are pinned or before n_keep
    uint32_t count(llama_seq_id seq_id, llama_pos n_keep) const;

    const std::map<llama_seq_id, std::vector<range>> & all() const { return seqs; } // sequences that have some

private:
    std::map<llama_seq_id, std::vector<range>> seqs;
};
