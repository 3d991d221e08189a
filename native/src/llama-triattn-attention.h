#pragma once

// Scores from what the last real queries attend to: the policies that the paper is compared with, and the term `weight_q` beside
// the centres. Queries come from the ring (llama-triattn-queries.h), keys from the cache; triattn_local/model/baselines.py is the
// reference. Notation: a_q(i) is the softmax weight of query q for token i over all tokens that its head holds and q sees; tokens of
// a head are neighbours in the order of their positions among those that it holds.
//
//   snapkv  SnapKV, arXiv:2404.14469, eq. 1-2: C(i) = sum of a_q(i) over the last 32 queries, pooled over 5 neighbours (mean) before
//           the first of these queries; the mean over the query heads of a KV head
//   h2o     H2O, arXiv:2306.14048, sec. 4: the sum of a_q(i) over all queries so far; the mean over the query heads of a KV head.
//           Added up at each round, from the queries since the last one, of each micro-batch the last as many as the ring holds
//   tova    TOVA, arXiv:2401.06104, sec. 3.2: a_q(i) of the last query; the mean over all query heads of the layer
//   rkv     R-KV, arXiv:2505.24133, sec. 3: lambda I(i) - (1 - lambda) R(i), lambda = 0.1. I: softmax over the tokens before the last 8
//           queries of the largest logit of a KV head's query heads, mean over these queries, largest of 7 neighbours. R: softmax
//           over all tokens of the mean cosine of a token's key with the others', where each token leaves out the last that
//           is like it (cosine above 0.5), so that the most recent of its like is not redundant for it

#include "llama-triattn-queries.h"
#include "llama-triattn-score.h"

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

class llama_triattn_attention {
public:
    static constexpr uint32_t N_SNAPKV = 32;
    static constexpr uint32_t N_RKV    = 8;

    static bool is_policy(int32_t policy);

    // queries of a sequence that the settings need recorded; 0: none
    static uint32_t n_queries(const llama_triattn_params & params, uint32_t n_batch);

    // soft_cap: logits are soft_cap*tanh(logit/soft_cap); 0: as they are
    llama_triattn_attention(const llama_triattn_params & params, float soft_cap) : params(params), soft_cap(soft_cap) {}

    // A sequence as it lies in the cache.
    struct sequence {
        llama_seq_id seq_id;
        uint32_t     strm;
        llama_pos    whole; // T: queries from there on see all that lies before
        llama_pos    end;   // position of the next token

        std::vector<int32_t>   cells; // all that it holds
        std::vector<llama_pos> names; // [cells] their positions; from T on the token in all heads

        std::vector<int32_t> cand; // indices into cells: what is scored

        std::function<llama_pos(size_t i_layer, uint32_t head_kv, int32_t cell)> token;
    };

    // The policy's scores: `data` as z-scores over the candidates, and `heads`, one for each KV head, before that.
    // False: a graph failed.
    bool score(
            llama_context & lctx,
            const std::vector<llama_triattn_layer> & layers,
            const llama_triattn_queries & queries,
            const sequence & seq,
            std::vector<llama_triattn_layer_scores> & scores,
            llama_triattn_stats & counters);

    // Adds weight_q times the z-score of the logarithm of the mean of a_q(i) over the last queries and a KV head's query heads.
    bool add(
            llama_context & lctx,
            const std::vector<llama_triattn_layer> & layers,
            const llama_triattn_queries & queries,
            const sequence & seq,
            std::vector<llama_triattn_layer_scores> & scores,
            llama_triattn_stats & counters);

    // what `h2o` has added up, of a sequence

    void cut  (llama_seq_id seq_id, llama_pos pos); // positions from pos on are gone
    void clear(llama_seq_id seq_id) { sums.erase(seq_id); }
    void copy (llama_seq_id seq_id_src, llama_seq_id seq_id_dst);

    std::vector<uint8_t> save(llama_seq_id seq_id) const;
    void restore(llama_seq_id seq_id, const std::vector<uint8_t> & data); // nothing of it if it is damaged

private:
    const llama_triattn_params params;

    const float soft_cap;

    struct sum {
        llama_pos token;
        float     value;
    };
    struct accumulated {
        llama_pos end = 0; // queries before it are in
        std::map<uint32_t, std::vector<sum>> heads; // by layer and KV head, counted through; tokens ascend
    };
    std::map<llama_seq_id, accumulated> sums;

    // what a graph gives of a layer
    struct weights {
        uint32_t n_query_heads = 0; // of each KV head; layers that share a K are more of them

        std::vector<float> sums;   // [n_head_kv][n_query_heads][cells] a_q(i), summed over the queries
        std::vector<float> logits; // [n_head_kv][n_query_heads][query][cells], if asked for instead
        std::vector<float> keys;   // [cells][n_head_kv][n_embd_head], with them
    };

    bool compute(
            llama_context & lctx,
            const std::vector<llama_triattn_layer> & layers,
            const llama_triattn_queries & queries,
            const sequence & seq,
            const std::vector<llama_pos> & qpos,
            bool with_logits,
            std::vector<weights> & res,
            llama_triattn_stats & counters) const;

    // one KV head: [cells]
    std::vector<float> score_head(
            const llama_triattn_layer & layer, const weights & w, uint32_t head_kv, uint32_t i_head,
            const std::vector<llama_pos> & tokens, const std::vector<llama_pos> & qpos, accumulated & acc) const;
};
