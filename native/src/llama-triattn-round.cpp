#include "llama-triattn-cache.h"

#include "llama-triattn-choose.h"

#include "llama-context.h"
#include "llama-impl.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

// Rounds: when one is due, what it scores, and how it frees cells.

bool llama_triattn::has_failed(const llama_context & lctx) {
    const auto * triattn = of(&lctx);
    return triattn && !triattn->why_failed.empty();
}

int32_t llama_triattn::request(llama_context & lctx, std::function<int32_t()> fn) {
    requested     = std::move(fn);
    requested_res = LLAMA_TRIATTN_FAILED;
    for (int i = 0; i < 2 && requested; ++i) {
        lctx.memory_update(false); // the first one may be taken by a copy between streams that is pending
    }
    if (requested) {
        requested = nullptr;
        return fail("the context has pending work and runs no round now");
    }
    return requested_res;
}

int32_t llama_triattn::fail(const char * why) {
    llama_triattn_set_error(std::string("TriAttention: ") + why);
    return LLAMA_TRIATTN_FAILED;
}

std::vector<int32_t> llama_triattn::candidates(llama_seq_id seq_id) const {
    return cells->candidates(seq_id, [&](uint32_t cell) { return is_pinned(cells->stream(seq_id), cell, pins); });
}

bool llama_triattn::is_over(llama_seq_id seq_id, bool forced) const {
    const uint32_t used = n_used(seq_id);

    return forced ?
        used >  params.budget                 && !candidates(seq_id).empty() :
        used >= params.budget + params.window &&  candidates(seq_id).size() >= params.window;
}

bool llama_triattn::is_due(bool forced) const {
    check_cells();
    if (requested) {
        return true;
    }
    for (const auto s : cells->seqs()) {
        if (is_over(s, forced)) {
            return true;
        }
    }
    return false;
}

llama_triattn_unaborted::llama_triattn_unaborted(llama_context & lctx) :
    lctx(lctx), callback(lctx.abort_callback), callback_data(lctx.abort_callback_data) {
    if (callback) {
        lctx.set_abort_callback(nullptr, nullptr);
    }
}

llama_triattn_unaborted::~llama_triattn_unaborted() {
    if (callback) {
        lctx.set_abort_callback(callback, callback_data);
    }
}

void llama_triattn::update(llama_context & lctx, bool forced) {
    const llama_triattn_unaborted unaborted(lctx);

    if (const auto fn = std::move(requested)) {
        requested     = nullptr;
        is_requested  = true;
        requested_res = fn();
        is_requested  = false;
        return;
    }

    std::string why;
    for (const auto s : cells->seqs()) {
        if (is_over(s, forced) && evict(lctx, s, params.budget, forced) < 0) {
            why = llama_triattn_get_error();
        }
    }
    if (!why.empty() && why != why_failed) {
        LLAMA_LOG_ERROR("%s: a round of eviction failed, nothing is decoded: %s\n", __func__, why.c_str());
    }
    why_failed = why;
    check_cells();
}

static uint64_t hash_u64(uint64_t x) { // splitmix64
    x += 0x9E3779B97F4A7C15ull;
    x  = (x ^ (x >> 30))*0xBF58476D1CE4E5B9ull;
    x  = (x ^ (x >> 27))*0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

bool llama_triattn::score_sets(
        llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores) {
    const uint32_t strm   = cells->stream(seq_id);
    const uint32_t n_cand = cand.size();

    if (params.policy == LLAMA_TRIATTN_POLICY_STREAMING || params.policy == LLAMA_TRIATTN_POLICY_RANDOM) {
        scores.resize((size_t) n_set*n_cand);
        for (uint32_t set = 0; set < n_set; ++set) {
            for (uint32_t i = 0; i < n_cand; ++i) {
                const llama_pos p = cells->token(strm, cand[i], set);

                scores[(size_t) set*n_cand + i] = params.policy == LLAMA_TRIATTN_POLICY_STREAMING ? (float) p :
                    (float) (hash_u64(hash_u64(((uint64_t) params.seed << 32) | set) ^ (uint64_t) p) >> 40);
            }
        }
        return true;
    }

    const bool with_heads = is_requested || ranking;

    last_cells.clear();
    if (llama_triattn_attention::is_policy(params.policy)) {
        if (!attention->score(lctx, layers, *queries, sequence_of(seq_id, cand), last_scores, counters)) {
            return fail("the attention of recorded queries cannot be computed: the device has no memory left for it, or failed"), false;
        }
    } else if (!scorer->compute(lctx, layers, cand, strm, k_rotation(), kv.v_trans, kv.seq_pos_max(seq_id) + 1, last_scores, with_heads, counters)) {
        return fail("the scores cannot be computed: the device has no memory left for them, or failed"), false;
    } else if (attention && !attention->add(lctx, layers, *queries, sequence_of(seq_id, cand), last_scores, counters)) {
        return fail("the attention of recorded queries cannot be computed: the device has no memory left for it, or failed"), false;
    }
    if (with_heads) {
        last_cells = cand;
    }

    llama_triattn_set_rule rule = LLAMA_TRIATTN_SET_PER_LAYER;
    if (params.mode == LLAMA_TRIATTN_MODE_PER_HEAD) {
        rule = LLAMA_TRIATTN_SET_PER_HEAD;
    }
    if (params.mode == LLAMA_TRIATTN_MODE_SHARED) {
        rule = params.aggregate == LLAMA_TRIATTN_AGGREGATE_MAX ? LLAMA_TRIATTN_SET_SHARED_MAX : LLAMA_TRIATTN_SET_SHARED_MEAN;
    }

    scores = llama_triattn_combine(last_scores, n_cand, rule);
    return true;
}

bool llama_triattn::rank_sets(
        llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores) {
    if (!score_sets(lctx, seq_id, cand, scores)) {
        return false;
    }
    if (ranking) {
        const uint32_t strm   = cells->stream(seq_id);
        const uint32_t n_cand = cand.size();

        std::vector<llama_pos> tokens((size_t) n_set*n_cand);
        for (uint32_t set = 0; set < n_set; ++set) {
            for (uint32_t i = 0; i < n_cand; ++i) {
                tokens[(size_t) set*n_cand + i] = cells->token(strm, cand[i], set);
            }
        }
        ranking(ranking_data, seq_id, kv.seq_pos_max(seq_id) + 1, n_set, n_cand, tokens.data(), cand.data(), scores.data());

        for (auto & s : scores) {
            s = std::isnan(s) ? -INFINITY : s; // an order needs numbers
        }
    }
    return true;
}

int32_t llama_triattn::score(llama_context & lctx, llama_seq_id seq_id) {
    const auto cand = candidates(seq_id);
    if (cand.empty()) {
        return 0;
    }
    std::vector<float> scores;
    return rank_sets(lctx, seq_id, cand, scores) ? (int32_t) cand.size() : LLAMA_TRIATTN_FAILED;
}

int32_t llama_triattn::evict(llama_context & lctx, llama_seq_id seq_id, uint32_t n_tokens, bool forced) {
    const int64_t t_start_us = ggml_time_us();

    const uint32_t strm = cells->stream(seq_id);
    const uint32_t used = n_used(seq_id);
    const auto     cand = candidates(seq_id);

    const uint32_t n_cand = cand.size();
    const uint32_t n_drop = used > n_tokens ? std::min(used - n_tokens, n_cand) : 0;
    if (n_drop == 0) {
        return 0;
    }

    if (const char * env = getenv("LLAMA_TRIATTN_FAIL"); env && atoi(env)) {
        return fail("LLAMA_TRIATTN_FAIL asks for a round that fails"); // for tests
    }

    if (store) {
        for (const auto s : cells->seqs()) {
            // cells that sequences share go from all of them
            if (s == seq_id || (cells->stream(s) == strm && kv.n_stream == 1)) {
                store_rows(s);
                note_worth(s);
            }
        }
    }

    std::vector<std::vector<llama_pos>> wanted; // what is recalled now
    if (store && !put_back(seq_id, wanted)) {
        return fail("the device failed while rows came back; the sequences in it are lost and must be read again");
    }

    std::vector<float> scores;
    if (!rank_sets(lctx, seq_id, cand, scores)) {
        return LLAMA_TRIATTN_FAILED;
    }
    cells->set_ranks(strm, cand, scores);

    const int64_t t_scored_us = ggml_time_us();

    const auto choice = llama_triattn_choose(cand, cells->groups(strm, cand), n_drop, n_set, scores, lctx.get_cparams().n_threads);

    llama_triattn_moves moves;
    uint64_t n_moved = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        llama_triattn_moves::layer m;

        const uint32_t n_head_kv = layers[i].n_head_kv;
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            m.n = std::max<uint32_t>(m.n, choice.src[set_of(i, h)].size());
        }
        for (uint32_t h = 0; h < n_head_kv; ++h) {
            const auto & src  = choice.src [set_of(i, h)];
            const auto & dst  = choice.dst [set_of(i, h)];
            const auto & stay = choice.stay[set_of(i, h)];
            const uint32_t fill = m.n - src.size();
            GGML_ASSERT(src.size() == dst.size());

            m.src.insert(m.src.end(), src.begin(), src.end());
            m.dst.insert(m.dst.end(), dst.begin(), dst.end());
            m.src.insert(m.src.end(), stay.begin(), stay.begin() + fill);
            m.dst.insert(m.dst.end(), stay.begin(), stay.begin() + fill);

            n_moved += src.size();
        }
        moves.layers.push_back(std::move(m));
    }

    const int64_t t_selected_us = ggml_time_us();

    const auto moved = n_moved > 0 ? llama_triattn_move(lctx, layers, moves, strm, kv.v_trans, counters) : LLAMA_TRIATTN_MOVED_ALL;
    if (moved == LLAMA_TRIATTN_MOVED_NOTHING) {
        return fail("the device has no memory left to move rows of the cache");
    }
    if (moved == LLAMA_TRIATTN_MOVED_SOME) {
        lose(strm);
        return fail("the device failed while rows of the cache moved; the sequences in it are lost and must be read again");
    }

    const int64_t t_moved_us = ggml_time_us();

    cells->move(strm, choice.src, choice.dst);
    cells->free(strm, choice.freed);

    auto & head = kv.v_heads[strm];
    head = std::min(head, (uint32_t) *std::min_element(choice.freed.begin(), choice.freed.end()));

    if (store && !call_again(seq_id, wanted)) {
        return fail("the device failed while rows came back; the sequences in it are lost and must be read again");
    }

    const int64_t t_end_us = ggml_time_us();

    counters.n_rounds         += 1;
    counters.n_rounds_forced  += forced;
    counters.n_tokens_evicted += n_drop;
    counters.n_rows_moved     += n_moved;
    counters.t_score_us       += t_scored_us   - t_start_us;
    counters.t_select_us      += t_selected_us - t_scored_us;
    counters.t_move_us        += t_moved_us    - t_selected_us;
    counters.t_total_us       += t_end_us      - t_start_us;

    return n_drop;
}

// A memory update that runs the rounds that are due.
class llama_triattn_update : public llama_memory_context_i {
public:
    llama_triattn_update(llama_triattn & triattn, llama_context & lctx, bool forced) : triattn(triattn), lctx(lctx), forced(forced) {}

    bool next() override { return false; }

    bool apply() override {
        triattn.update(lctx, forced);
        return true;
    }

    const llama_ubatch & get_ubatch() const override { GGML_ABORT("a memory update has no batch"); }

    llama_memory_status get_status() const override { return LLAMA_MEMORY_STATUS_SUCCESS; }

private:
    llama_triattn & triattn;
    llama_context & lctx;
    const bool      forced;
};

llama_memory_context_ptr llama_triattn::init_update(llama_context * lctx, bool forced) {
    return std::make_unique<llama_triattn_update>(*this, *lctx, forced);
}
