#pragma once

// From the scores of the sets to what a round does: which cells are freed, and which tokens move in each set. Plain host code: knows
// no cache, no graph.

#include <cstdint>
#include <vector>

struct llama_triattn_choice {
    std::vector<int32_t> freed; // cells

    // [n_set] cells. What a set keeps of the freed cells moves from src to dst, whose tokens it drops: as many of each.
    std::vector<std::vector<int32_t>> src;
    std::vector<std::vector<int32_t>> dst;
    std::vector<std::vector<int32_t>> stay; // freed cells whose row nobody needs: fillers that stay where they are
};

// n_drop of the candidates `cand`, cells in ascending order, are freed: the highest of each group, so that the used cells stay
// together and attention reads no more than it must. groups: indices into `cand`; a token moves within its group only, so that
// each set drops as many in each group as cells are freed there. scores: [n_set][n_cand].
llama_triattn_choice llama_triattn_choose(
        const std::vector<int32_t> & cand,
        const std::vector<std::vector<uint32_t>> & groups,
        uint32_t n_drop,
        uint32_t n_set,
        const std::vector<float> & scores,
        uint32_t n_threads);
