#include "llama-triattn-choose.h"

#include "llama-triattn-select.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <thread>

// as many as make a thread worth its start
static const size_t N_SCORES_A_THREAD = 1 << 16;

static void for_each_on_threads(uint32_t n, uint32_t n_threads, const std::function<void(uint32_t)> & fn) {
    n_threads = std::max(n_threads, 1u);

    const auto run = [&](uint32_t first) {
        for (uint32_t i = first; i < n; i += n_threads) {
            fn(i);
        }
    };
    std::vector<std::thread> threads;
    for (uint32_t t = 1; t < n_threads; ++t) {
        threads.emplace_back(run, t);
    }
    run(0);
    for (auto & thread : threads) {
        thread.join();
    }
}

// Each set would drop the lowest of all candidates; as many cells must be freed in each group for all sets, so that the mean over
// sets decides, largest remainders first.
static std::vector<uint32_t> share_drops(
        const std::vector<std::vector<uint32_t>> & groups, uint32_t n_cand, uint32_t n_drop, uint32_t n_set, const std::vector<float> & scores) {
    if (groups.size() == 1) {
        return { n_drop };
    }

    std::vector<size_t> group_of(n_cand);
    for (size_t g = 0; g < groups.size(); ++g) {
        for (const uint32_t i : groups[g]) {
            group_of[i] = g;
        }
    }
    std::vector<uint64_t> n_lowest(groups.size(), 0);
    for (uint32_t set = 0; set < n_set; ++set) {
        std::vector<uint8_t> drop;
        llama_triattn_drop_lowest(scores.data() + (size_t) set*n_cand, n_cand, n_drop, drop);
        for (uint32_t i = 0; i < n_cand; ++i) {
            n_lowest[group_of[i]] += drop[i];
        }
    }

    std::vector<size_t> order(groups.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return n_lowest[a] % n_set > n_lowest[b] % n_set; });

    std::vector<uint32_t> res;
    uint32_t n_left = n_drop;
    for (const uint64_t n : n_lowest) {
        res.push_back(n/n_set);
        n_left -= res.back();
    }
    for (size_t i = 0; n_left > 0; ++i, --n_left) { // fewer remainders than groups, and none in a group that is all lowest
        res[order[i]] += 1;
    }
    return res;
}

llama_triattn_choice llama_triattn_choose(
        const std::vector<int32_t> & cand,
        const std::vector<std::vector<uint32_t>> & groups,
        uint32_t n_drop,
        uint32_t n_set,
        const std::vector<float> & scores,
        uint32_t n_threads) {
    const auto n_drops = share_drops(groups, cand.size(), n_drop, n_set, scores);

    llama_triattn_choice res;
    res.src .resize(n_set);
    res.dst .resize(n_set);
    res.stay.resize(n_set);

    for (size_t g = 0; g < groups.size(); ++g) {
        for (size_t i = groups[g].size() - n_drops[g]; i < groups[g].size(); ++i) {
            res.freed.push_back(cand[groups[g][i]]);
        }
    }

    const auto choose = [&](uint32_t set) {
        std::vector<uint8_t> drop;
        std::vector<float>   of_group;

        for (size_t g = 0; g < groups.size(); ++g) {
            const uint32_t n       = groups[g].size();
            const uint32_t i_freed = n - n_drops[g];

            of_group.resize(n);
            for (uint32_t i = 0; i < n; ++i) {
                of_group[i] = scores[set*cand.size() + groups[g][i]];
            }
            llama_triattn_drop_lowest(of_group.data(), n, n_drops[g], drop);

            for (uint32_t i = 0; i < n; ++i) {
                if (i >= i_freed) {
                    (drop[i] ? res.stay : res.src)[set].push_back(cand[groups[g][i]]);
                } else if (drop[i]) {
                    res.dst[set].push_back(cand[groups[g][i]]);
                }
            }
        }
    };
    for_each_on_threads(n_set, std::min<uint64_t>(n_threads, scores.size()/N_SCORES_A_THREAD), choose);

    return res;
}
