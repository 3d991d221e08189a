#ifndef LLAMA_TRIATTN_H
#define LLAMA_TRIATTN_H

// TriAttention eviction for the KV cache of llama.cpp (arXiv:2604.04921).
//
// A context created while eviction is on has a cache of
//
//     n_cells = pad256(n_seq_max * (budget + window) + n_batch)     one buffer for all sequences (kv_unified)
//     n_cells = pad256(             budget + window  + n_batch)     for each sequence of its own buffer
//
// cells, whatever n_ctx is (never more than n_ctx asks for). n_ctx stays the logical context: positions grow up to it as
// they always did. Whenever a sequence holds budget + window tokens at the start of a llama_decode, and whenever a batch
// finds no room, a round brings it down to budget tokens. Caches of sliding-window layers get cells for their window and a
// micro-batch, also where swa_full is true.
//
// Where a setting comes from, the first that is there:
//   1. llama_triattn_set_params() on the model
//   2. KV overrides at model load: "triattention.budget" and so on (llama-server --override-kv, Llama(kv_overrides=...))
//   3. environment: TRIATTN_BUDGET and so on
// Eviction is off until one of them gives a budget. A setting that cannot be taken, statistics that are missing or belong
// to another model, and a model or context that cannot evict make llama_init_from_model() return NULL with the reason in
// the log and in llama_triattn_last_error(); nothing falls back in silence.
//
//   key, variable                              type    values, default
//   triattention.budget      TRIATTN_BUDGET       u32     tokens that each head keeps of a sequence, or "off" (default)
//   triattention.window      TRIATTN_WINDOW       u32     128
//   triattention.n_keep      TRIATTN_KEEP         u32     4, or "auto": 4, and pin 0.5
//   triattention.mode        TRIATTN_MODE         string  shared, per-head, per-layer-head (default)
//   triattention.policy      TRIATTN_POLICY       string  triattention (default), streaming, knorm, random, snapkv, h2o, tova, rkv
//   triattention.aggregate   TRIATTN_AGGREGATE    string  mean (default), max: how `shared` makes one score of all heads
//   triattention.terms       TRIATTN_TERMS        string  both (default), trig, norm
//   triattention.weight_r    TRIATTN_WEIGHT_R     bool    true
//   triattention.offsets     TRIATTN_OFFSETS      string  geometric (default), linear
//   triattention.offset_max  TRIATTN_OFFSET_MAX   u32     65536
//   triattention.weight_v    TRIATTN_WEIGHT_V     f32     0.5: how much the length of a token's value counts, 0 as in the paper
//   triattention.seed        TRIATTN_SEED         u32     0
//   triattention.cold        TRIATTN_COLD         string  off (default), auto, or bytes (KiB, MiB, GiB behind the number): see below
//   triattention.recall          TRIATTN_RECALL          f32  0.5
//   triattention.recall_prompt   TRIATTN_RECALL_PROMPT   f32  0.65
//   triattention.recall_block    TRIATTN_RECALL_BLOCK    u32  16
//   triattention.recall_queries  TRIATTN_RECALL_QUERIES  u32  24
//   triattention.recall_period   TRIATTN_RECALL_PERIOD   u32  2
//   triattention.pin             TRIATTN_PIN             f32  0: part of the budget that a prompt may take that is pinned, see below
//   triattention.weight_q        TRIATTN_WEIGHT_Q        f32  0: how much what the last queries attend to counts beside the centres
//   triattention.stats       TRIATTN_STATS        string  path of a sidecar GGUF with the statistics (overrides the model's)

//
// Pinning (`pin`). Reasoning is about its prompt: programs that know where one ends, llama-server among them, pin it whole while it
// takes at most this part of the budget, else as much of it as its system prompt and tools are, while these do. A context by
// itself pins nothing that llama_triattn_pin() does not ask for.
//
// The cold tier (`cold`). Rows of K and V are copied to host memory before a round drops them. At the end of a prompt, before its
// last token is read, and every recall_period tokens of an answer, the last queries of each layer are compared with all rows that
// are there, and the rows that they want most take up to `recall_prompt` or `recall` of the budget's cells. A sequence can then be cut at any position
// (llama_memory_seq_rm), its heads get back what they had or the last tokens before; sliding-window layers and recurrent states
// limit that as they do without eviction. When the memory is full, blocks of 16 tokens that the fewest heads hold are destroyed,
// and T is again what it is without it. States hold what the cells hold, not the store: it keeps the rows of the last states while
// the context lives, and llama_triattn_save_cold() writes them to a file for later contexts.

#include "llama.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

    enum llama_triattn_status {
        LLAMA_TRIATTN_OK          =  0,
        LLAMA_TRIATTN_OFF         = -1, // the context was created without eviction
        LLAMA_TRIATTN_BAD_PARAM   = -2, // an argument or a setting cannot be taken
        LLAMA_TRIATTN_NO_STATS    = -3, // the model carries no statistics
        LLAMA_TRIATTN_BAD_STATS   = -4, // the statistics are damaged, of an unknown version, or of another model
        LLAMA_TRIATTN_UNSUPPORTED = -5, // the model or the context cannot evict
        LLAMA_TRIATTN_FAILED      = -6, // the round could not be computed; the cache is as it was before
    };

    enum llama_triattn_policy {
        LLAMA_TRIATTN_POLICY_TRIATTENTION = 0,
        LLAMA_TRIATTN_POLICY_STREAMING    = 1, // the first n_keep and the most recent (StreamingLLM, arXiv:2309.17453)
        LLAMA_TRIATTN_POLICY_KNORM        = 2, // the smallest key norm is kept (arXiv:2406.11430)
        LLAMA_TRIATTN_POLICY_RANDOM       = 3,
        // what recorded queries attended to; equations in llama-triattn-attention.h
        LLAMA_TRIATTN_POLICY_SNAPKV       = 4, // the last 32 (arXiv:2404.14469)
        LLAMA_TRIATTN_POLICY_H2O          = 5, // all of them, added up (arXiv:2306.14048)
        LLAMA_TRIATTN_POLICY_TOVA         = 6, // the last one (arXiv:2401.06104)
        LLAMA_TRIATTN_POLICY_RKV          = 7, // the last 8, less what keys say twice (arXiv:2505.24133)
    };

    enum llama_triattn_mode {
        LLAMA_TRIATTN_MODE_SHARED         = 0, // one set of tokens for the model
        LLAMA_TRIATTN_MODE_PER_HEAD       = 1, // one set for each KV head index, over all layers
        LLAMA_TRIATTN_MODE_PER_LAYER_HEAD = 2, // one set for each layer and KV head
    };

    enum llama_triattn_aggregate {
        LLAMA_TRIATTN_AGGREGATE_MEAN = 0,
        LLAMA_TRIATTN_AGGREGATE_MAX  = 1,
    };

    enum llama_triattn_terms {
        LLAMA_TRIATTN_TERMS_BOTH = 0,
        LLAMA_TRIATTN_TERMS_TRIG = 1,
        LLAMA_TRIATTN_TERMS_NORM = 2,
    };

    enum llama_triattn_offsets {
        LLAMA_TRIATTN_OFFSETS_GEOMETRIC = 0, // 1, 2, 4, ... up to offset_max
        LLAMA_TRIATTN_OFFSETS_LINEAR    = 1, // as many, evenly spaced up to offset_max
    };

    // all fields 32 bits wide, in this order: the Python face mirrors it
    struct llama_triattn_params {
        uint32_t budget;     // tokens that each head keeps of a sequence after a round; 0: eviction off
        uint32_t window;     // most recent tokens, never evicted
        uint32_t n_keep;     // first tokens of a sequence, never evicted
        int32_t  mode;       // enum llama_triattn_mode
        int32_t  policy;     // enum llama_triattn_policy
        int32_t  aggregate;  // enum llama_triattn_aggregate, `shared` mode only
        int32_t  terms;      // enum llama_triattn_terms
        int32_t  weight_r;   // 1: norm term weighted with a_f - |q_f|; 0: with a_f (ablation)
        int32_t  offsets;    // enum llama_triattn_offsets
        uint32_t offset_max; // largest future distance, in tokens
        float    weight_v;   // weight of the z-score of log |v| beside that of the score; 0: keys alone decide, as in the paper
        uint32_t seed;       // LLAMA_TRIATTN_POLICY_RANDOM
        uint32_t cold;           // KiB of host memory for what is evicted, or LLAMA_TRIATTN_COLD_OFF, _AUTO
        float    recall;         // part of the budget that a recall may take while text streams, 0 to 0.9
        float    recall_prompt;  // the same at the end of a prompt
        uint32_t recall_block;   // tokens that come back together at the end of a prompt
        uint32_t recall_queries; // last queries of a prompt that a recall is made for
        uint32_t recall_period;  // tokens between recalls while text streams; 0: none
        float    pin;            // part of the budget that a prompt may take to be pinned by programs that know where it ends; 0: they do not
        float    weight_q;       // weight of the z-score of the log of what the last recall_queries queries attend to, beside that of the centres
    };

    #define LLAMA_TRIATTN_PIN_AUTO 0.5f // of "n_keep" = "auto"

    #define LLAMA_TRIATTN_COLD_OFF  0u
    #define LLAMA_TRIATTN_COLD_AUTO UINT32_MAX // three quarters of what is free when the context is made

    struct llama_triattn_stats {
        uint64_t n_rounds;         // rounds that evicted something
        uint64_t n_rounds_forced;  // of these, because a batch found no room or llama_triattn_evict() asked
        uint64_t n_tokens_evicted; // summed over rounds: tokens that left each head's set
        uint64_t n_rows_moved;     // K rows that changed their cell, summed over rounds, layers and heads
        uint64_t t_score_us;       // scoring, with the download of the scores
        uint64_t t_select_us;      // selection on the host
        uint64_t t_move_us;        // moving
        uint64_t t_total_us;       // whole rounds
        uint64_t n_graphs;         // computed to score and to move: two a round
        uint64_t n_operations;     // in these graphs: what a GPU launches
        uint64_t n_bytes_copied;   // scores to the host, indices from it
        uint64_t n_cells;          // cells of the cache, all streams
        uint64_t n_cells_used;
        uint64_t kv_bytes;         // bytes of the evicting cache: K and V of its layers
        uint64_t kv_bytes_full;    // what the same layers would hold for n_ctx without eviction
        uint64_t kv_bytes_other;   // bytes of caches that do not evict (sliding-window layers)
        int32_t  n_layer;          // layers that evict
        int32_t  n_head_kv;        // KV heads of the first of them
        uint64_t cold_bytes;         // host memory that the cold tier holds now
        uint64_t cold_bytes_max;     // and may hold; 0: it is off
        uint64_t n_tokens_stored;    // rows out: tokens whose rows were copied to it
        uint64_t n_tokens_destroyed; // that had to leave it, for good
        uint64_t n_recalls;
        uint64_t n_rows_recalled;    // K rows that came back, summed over layers and heads
        uint64_t t_store_us;         // rows out
        uint64_t t_recall_us;        // scoring the store and rows in, without t_store_us of the same tokens
        uint64_t n_pinned;           // cells of the cache that hold pinned tokens now
    };

    LLAMA_API struct llama_triattn_params llama_triattn_default_params(void);

    // Settings for the contexts created from the model afterwards. budget == 0 turns eviction off for them.
    LLAMA_API int32_t llama_triattn_set_params(struct llama_model * model, const struct llama_triattn_params * params);

    // Read the statistics from a sidecar GGUF instead of the model file.
    LLAMA_API int32_t llama_triattn_load_stats(struct llama_model * model, const char * path);

    // OK, NO_STATS or BAD_STATS (then llama_triattn_last_error() says what is wrong with them).
    LLAMA_API int32_t llama_triattn_check_stats(const struct llama_model * model);

    // Text that tells one model from another, the same for all its quantisations; "" if it is not known.
    // The pointer lives as long as the model.
    LLAMA_API const char * llama_triattn_fingerprint(const struct llama_model * model);

    // Why the last llama_triattn_* call, or llama_init_from_model() with eviction on, failed in this thread; "" if it did not.
    LLAMA_API const char * llama_triattn_last_error(void);

    // The settings in force.
    LLAMA_API int32_t llama_triattn_get_params(const struct llama_context * ctx, struct llama_triattn_params * params);

    // Of a context without eviction: OFF, with n_cells and kv_bytes_other filled in.
    LLAMA_API int32_t llama_triattn_get_stats(const struct llama_context * ctx, struct llama_triattn_stats * stats);

    // Compute buffers: names of up to n_max buffer types (CPU, CUDA0, CUDA_Host), which live as long as the library, and
    // their bytes, as they would be if the model was loaded without allocation. Returns how many there are.
    LLAMA_API int32_t llama_triattn_get_compute(
            const struct llama_context * ctx, const char ** names, uint64_t * bytes, int32_t n_max);

    // T: the first position from which every token is present in every head; 0 while nothing was evicted or eviction is off.
    // A sequence can be rewound to T and later, not to before.
    LLAMA_API llama_pos llama_triattn_seq_pos_whole(const struct llama_context * ctx, llama_seq_id seq_id);

    // The first position that the sequence can be cut at: T, or later where a cache of sliding-window layers no longer holds what
    // tokens from there on attend to; its end for a recurrent state. Without eviction too.
    LLAMA_API llama_pos llama_triattn_seq_pos_cut(const struct llama_context * ctx, llama_seq_id seq_id);

    // Cells that the sequence takes, 0 if eviction is off.
    LLAMA_API int32_t llama_triattn_seq_n_cells(const struct llama_context * ctx, llama_seq_id seq_id);

    // Round now, down to n_tokens tokens (0: the budget), or to what is pinned. Returns the number of tokens evicted, or a negative
    // status.
    LLAMA_API int32_t llama_triattn_evict(struct llama_context * ctx, llama_seq_id seq_id, uint32_t n_tokens);

    // Pin the tokens [p0, p1) of a sequence: no round evicts them, and no recall puts others in their place. They may be still to come,
    // and count in the budget: with n_keep, the window and all that is pinned (by sequences that share cells too) some of it must be
    // left, else BAD_PARAM, and nothing changes. What is before T and was not pinned already cannot be pinned any more, but for the
    // first n_keep. Pins are saved and restored with the sequence, copied and removed with it, and cut with it: llama_memory_seq_rm()
    // takes them from the positions that it removes, also where no token is yet. A negative p0 is the beginning, a negative p1 of
    // unpin the end. pin returns the number of tokens of [p0, p1) that are pinned now, or a negative status.
    LLAMA_API int32_t llama_triattn_pin  (struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    LLAMA_API int32_t llama_triattn_unpin(struct llama_context * ctx, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // The pinned ranges of a sequence, ascending: [p0s[i], p1s[i]). Returns their number, or a negative status; writes at most n_max.
    LLAMA_API int32_t llama_triattn_get_pins(
            const struct llama_context * ctx, llama_seq_id seq_id, llama_pos * p0s, llama_pos * p1s, int32_t n_max);

    // Score the candidates of the sequence as a round would, without evicting: the scores below are of this moment then.
    // Returns the number of candidates, or a negative status.
    LLAMA_API int32_t llama_triattn_score(struct llama_context * ctx, llama_seq_id seq_id);

    // Other recalls from now on than the settings asked for: share of the budget while text streams and at the end of a prompt
    // (0 to 0.9, 0: none), tokens that come back together and queries at the end of a prompt, tokens between recalls while text
    // streams (0: none). Queries and period at most what the larger of both was when the context was made.
    LLAMA_API int32_t llama_triattn_set_recall(
            struct llama_context * ctx, float share, float share_prompt, uint32_t block, uint32_t queries, uint32_t period);

    // Write to a file what it does not have yet of the cold tier's rows of a sequence; it is made where there is none. Rows are only added,
    // so that one file serves all states and branches of a conversation. A state that is taken from now on, until the sequence
    // evicts again, names the file and its place there. Nothing is synced: fsync() the file before the state is of worth.
    // Returns the bytes written, or a negative status: OFF without a cold tier, FAILED if the file cannot be opened (another program has it
    // open, or its rows are of another model or lie otherwise) or written; llama_triattn_last_error() says which.
    LLAMA_API int64_t llama_triattn_save_cold(struct llama_context * ctx, llama_seq_id seq_id, const char * path);

    // A file that states name, which llama_state_seq_set_data() then maps the rows from. Reads the head of the file only.
    LLAMA_API int32_t llama_triattn_open_cold(struct llama_context * ctx, const char * path);

    // While *flag is true, llama_decode() gives up at the next operation and returns 2, on backends that ask whether to go on
    // (CPU, Metal; the others finish their graph); micro-batches that are done stay in the memory. Any thread may write it: what
    // asks is in the library, so that a caller's language need not run amid a graph. It takes the place of
    // llama_set_abort_callback(); a round is finished in spite of either. The flag lives as long as it is set here; NULL: none.
    LLAMA_API int32_t llama_triattn_set_abort_flag(struct llama_context * ctx, const volatile bool * flag);

    // A ranking of one's own, for research: called in every round, and in llama_triattn_score(), after the scores were made and
    // before the lowest are dropped. `scores` [n_set][n_cand] holds what the policy gave (higher: kept longer) and may be
    // written, what is not a number is dropped first; `pos` [n_set][n_cand] are the tokens, `cells` [n_cand] the cells that
    // they lie in. Sets are in the order layer by layer, KV head by KV head (`per-layer-head`), KV head (`per-head`), or one
    // (`shared`). The function may call llama_triattn_get_kept, _get_scores and _get_rows, and nothing that changes the
    // context. NULL: the policy's scores.
    typedef void (*llama_triattn_ranking)(
                         void * user_data,
                 llama_seq_id   seq_id,
                    llama_pos   pos_next,
                      int32_t   n_set,
                      int32_t   n_cand,
              const llama_pos * pos,
                const int32_t * cells,
                        float * scores);

    LLAMA_API int32_t llama_triattn_set_ranking(struct llama_context * ctx, llama_triattn_ranking fn, void * user_data);

    // Model layers that evict, in cache order. Returns their number; writes at most n_max.
    LLAMA_API int32_t llama_triattn_get_layers(const struct llama_context * ctx, int32_t * layers, int32_t n_max);

    // Queries of model layer `il` that are recorded of the sequence, where a policy, weight_q or the cold tier asks for it: positions, ascending,
    // and rows of n_head*head_dim numbers, after RoPE, rotated where the cached keys are, times the scale of attention: a product with a cached
    // key is a logit. Either array may be NULL. Returns their number, or a negative status; writes at most n_max.
    LLAMA_API int32_t llama_triattn_get_queries(
                  struct llama_context * ctx,
                          llama_seq_id   seq_id,
                               int32_t   il,
                             llama_pos * pos,
                                 float * rows,
                               int32_t   n_max);

    // What KV head `head_kv` of layer `il` holds of the sequence: positions and the cells that they lie in, in order of cells.
    // Either array may be NULL. Returns the number of tokens, or a negative status; writes at most n_max.
    LLAMA_API int32_t llama_triattn_get_kept(
            const struct llama_context * ctx,
                          llama_seq_id   seq_id,
                               int32_t   il,
                               int32_t   head_kv,
                             llama_pos * pos,
                               int32_t * cells,
                               int32_t   n_max);

    // The scores of query head `head` of layer `il`, before the z-score, and the cells that they belong to: those of the last
    // round, if it was asked for by llama_triattn_score() or llama_triattn_evict(), or has a ranking of the caller's.
    // Either array may be NULL. Returns the number of candidates, or a negative status; writes at most n_max.
    LLAMA_API int32_t llama_triattn_get_scores(
            const struct llama_context * ctx,
                               int32_t   il,
                               int32_t   head,
                                 float * scores,
                               int32_t * cells,
                               int32_t   n_max);

    // Bytes of the cached row (K, or V if is_v) of KV head `head_kv` of layer `il` in a cell of the sequence's buffer, as
    // they lie in the cache. Quantised rows are Hadamard-rotated there, see llama_triattn_get_rows_info.
    // Returns the bytes of a row; writes n_cells of them to data if it is not NULL.
    LLAMA_API int32_t llama_triattn_get_rows(
            const struct llama_context * ctx,
                          llama_seq_id   seq_id,
                               int32_t   il,
                               int32_t   head_kv,
                                  bool   is_v,
                         const int32_t * cells,
                               int32_t   n_cells,
                                  void * data);

    // How rows are stored: the ggml type, and the size of the Hadamard rotation applied to them (0: none).
    LLAMA_API int32_t llama_triattn_get_rows_info(
            const struct llama_context * ctx,
                                  bool   is_v,
                               int32_t * type,
                               int32_t * n_rot);

#ifdef __cplusplus
}
#endif

#endif // LLAMA_TRIATTN_H
