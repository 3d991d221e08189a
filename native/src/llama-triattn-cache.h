#pragma once

// Eviction as the KV cache sees it. One object per evicting llama_kv_cache; the hooks in upstream files call nothing else. What it
// does is told in files of one idea each:
//
//   -cache   the object, and what llama.cpp does to sequences     -halves  which cache evicts, and what memories of parts ask it
//   -cells   which tokens the cells hold, and T                   -round   when a round is due, and what it does
//   -state   saving and restoring                                 -cold    rows out, recall, going back
//   -decode  when a recall comes                                  -pin     tokens that no round takes
//   -api     the C API, and what it reads
//
// Two words are used with care here:
//   cell   a row index of the K and V tensors of one stream
//   token  a position of a sequence
// Before the first round a cell holds one token in every head. Afterwards every head (every *set*, see
// llama_triattn_mode) holds its own tokens in the cells of the sequence: llama-triattn-cells.h.

#include "llama-triattn-attention.h"
#include "llama-triattn-cells.h"
#include "llama-triattn-model.h"
#include "llama-triattn-move.h"
#include "llama-triattn-pin.h"
#include "llama-triattn-queries.h"
#include "llama-triattn-recall.h"
#include "llama-triattn-rows.h"
#include "llama-triattn-score.h"
#include "llama-triattn-store.h"

#include "llama-kv-cache.h"

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

struct llama_batch_ext;
struct llm_graph_context;

class llama_kv_cache_context;

class llama_triattn {
public:
    using slot_info = llama_kv_cache::slot_info;

    llama_triattn(llama_kv_cache & kv, const llama_triattn_params & params, const llama_cparams & cparams, uint32_t n_cells_full);
    ~llama_triattn();

    // the evicting cache of a context, nullptr if there is none
    static llama_triattn * of(const llama_context * ctx);

    // the full-attention cache inside a memory, nullptr if it is of a kind that cannot evict
    static llama_kv_cache * find_cache(const llama_memory_i * memory);

    // cells of a context's full-attention cache, whether it evicts or not
    static uint64_t n_cells(const llama_context * ctx);

    // for memories that hold a cache and something else, which must not change if the cache refuses
    static bool is_on    (const llama_kv_cache & kv);
    static bool can_rm   (const llama_kv_cache & kv, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    static bool can_cp   (const llama_kv_cache & kv, llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);
    static bool can_shift(const llama_kv_cache & kv, llama_seq_id seq_id);

    // Hook of attention: the graph of a batch also records the queries of layer il, for the cold tier.
    static void record(
            const llm_graph_context & graph, const llama_kv_cache_context * mctx, ggml_tensor * q, float kq_scale, ggml_tensor * sinks, int32_t il);

    // Hook of llama_decode: recalls what is due. True if it has decoded the batch too, with `res`: the end of a prompt is read in
    // two parts, so that its last token already sees what the tokens before it asked for.
    static bool decode_in_parts(llama_context & lctx, const llama_batch_ext & batch, int & res);

    // true if the last round of a context failed: it cannot go on, see why_failed
    static bool has_failed(const llama_context & lctx);

    // can_rm of a memory with a sliding-window half, whose cells outside the window may be gone
    static bool can_rm(const llama_kv_cache & kv, const llama_kv_cache & kv_swa, llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    // the first position that the sequence can be cut at so that whatever comes behind it finds all that it attends to
    static llama_pos seq_pos_cut(const llama_memory_i * memory, llama_seq_id seq_id);

    // The sliding-window half of a memory whose other half evicts: its cells too go back to where they were, see state_read.
    // Around upstream's own state_write and instead of its state_read.
    static void write_layout (const llama_kv_cache & kv, llama_io_write_i & io, llama_seq_id seq_id);
    static void read_in_place(      llama_kv_cache & kv, llama_io_read_i  & io, llama_seq_id seq_id, llama_state_seq_flags flags);

    // the context whose memory this is: rounds are computed on its scheduler
    void attach(llama_context & lctx) { this->lctx = &lctx; }

    // hooks of llama_kv_cache: what happens to sequences

    void clear();
    bool seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1); // false: refused, nothing touched
    bool seq_cp  (llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1);
    void seq_keep(llama_seq_id seq_id);
    bool seq_shift(llama_seq_id seq_id) const; // always false

    // true if seq_cp would be taken
    bool can_cp(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) const;

    // true if seq_rm would be taken
    bool can_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const;

    llama_pos seq_pos_min(llama_seq_id seq_id) const;
    llama_pos seq_pos_max(llama_seq_id seq_id) const;
    llama_pos seq_pos_whole(llama_seq_id seq_id) const;

    uint32_t n_used(llama_seq_id seq_id) const; // cells of the sequence

    void apply_ubatch(const slot_info & sinfo, const llama_ubatch & ubatch);

    void state_write(llama_io_write_i & io, llama_seq_id seq_id) const;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id);

    // rounds

    bool is_due(bool forced) const;

    llama_memory_context_ptr init_update(llama_context * lctx, bool forced);

    void update(llama_context & lctx, bool forced);

    // number of tokens evicted, or a negative llama_triattn_status
    int32_t evict(llama_context & lctx, llama_seq_id seq_id, uint32_t n_tokens, bool forced);
    int32_t score(llama_context & lctx, llama_seq_id seq_id);

    // Bring back what the last queries want, see llama-triattn-cold.cpp. Number of rows, or a negative llama_triattn_status.
    int32_t recall(llama_seq_id seq_id, bool is_prompt, uint32_t n_ahead = 0);

    // Tokens that no round takes, see llama-triattn-pin.cpp. Number of those of [p0, p1) that are pinned now; throws
    // std::runtime_error where they do not fit.
    int32_t pin  (llama_seq_id seq_id, llama_pos p0, llama_pos p1);
    void    unpin(llama_seq_id seq_id, llama_pos p0, llama_pos p1);

    const llama_triattn_pins & get_pins() const { return pins; }

    uint32_t n_pinned(llama_seq_id seq_id) const; // cells of its pinned tokens that are there

    // what the C API asks for runs as a memory update too, so that the context knows that its graphs are gone
    int32_t request(llama_context & lctx, std::function<int32_t()> fn);

    // for the C API

    // Throws std::runtime_error for what cannot be taken.
    void set_recall(float share, float share_prompt, uint32_t block, uint32_t queries, uint32_t period);

    // Bytes written; throws std::runtime_error.
    int64_t save_cold(llama_seq_id seq_id, const std::string & path);
    void    open_cold(const std::string & path) { cold_file(path, false); }

    void set_ranking(llama_triattn_ranking fn, void * user_data) { ranking = fn; ranking_data = user_data; }

    const llama_triattn_params & get_params() const { return params; }

    void get_stats(llama_triattn_stats & stats) const;

    uint64_t buffer_size() const; // of the evicting cache, with padding

    std::vector<int32_t> get_layers() const;

    // -1: no such layer
    int32_t find_layer(int32_t il) const;

    bool get_kept  (llama_seq_id seq_id, int32_t il, int32_t head_kv, std::vector<llama_pos> & pos, std::vector<int32_t> & cells) const;
    bool get_scores(int32_t il, int32_t head, std::vector<float> & scores, std::vector<int32_t> & cells) const;

    // scaled; throws std::runtime_error where none are recorded
    void get_queries(llama_seq_id seq_id, int32_t il, std::vector<llama_pos> & pos, std::vector<float> & rows) const;

    int32_t get_rows(llama_seq_id seq_id, int32_t il, int32_t head_kv, bool is_v, const int32_t * cells, int32_t n_cells, void * data) const;
    void    get_rows_info(bool is_v, int32_t & type, int32_t & n_rot) const;

private:
    llama_kv_cache & kv;

    llama_triattn_params params; // only what concerns recall changes

    const uint32_t n_cells_full; // cells of a stream without eviction

    const bool is_long_rope; // keys were turned by the RoPE factors of a long context

    std::vector<llama_triattn_layer> layers;

    std::vector<uint32_t> set_first; // [n_layer] first set of a layer, `per-layer-head` mode
    uint32_t              n_set = 1;

    std::unique_ptr<llama_triattn_scorer> scorer;

    std::vector<std::unique_ptr<llama_triattn_labels>> labels; // [n_stream] those of kv
    std::unique_ptr<llama_triattn_cells> cells;

    llama_triattn_pins pins;

    llama_triattn_stats counters = {};

    std::function<int32_t()> requested;
    int32_t                  requested_res = 0;
    bool                     is_requested  = false; // it runs now

    llama_context * lctx = nullptr;

    std::string why_failed; // of the last round that was due; empty if it did what it should

    llama_triattn_ranking ranking      = nullptr;
    void *                ranking_data = nullptr;

    // last scoring, before the z-score
    std::vector<llama_triattn_layer_scores> last_scores;
    std::vector<int32_t>                    last_cells;

    std::unique_ptr<llama_triattn_queries> queries; // nullptr where nothing asks for them

    // the cold tier, nullptr where it is off

    std::unique_ptr<llama_triattn_store>    store;
    std::unique_ptr<llama_triattn_recaller> recaller;

    struct reading {
        llama_pos at       = 0;     // where the last recall was
        uint32_t  n_prompt = 0;     // tokens since the last output
        bool      is_warned = false;

        // What had to give way to recalled tokens: it was the centres' choice, and is put back before they choose again.
        std::vector<std::vector<llama_pos>> aside; // [n_set], or empty
    };
    std::vector<reading> readings; // [n_seq]

    enum : uint8_t { CHOSEN, RECALLED, RECALLED_NOW }; // marks: by the policy; because a query wanted it, before the last round or since

    bool is_in_parts = false;

    uint32_t n_ring     = 0; // queries that are recorded of a sequence
    uint32_t n_recorded = 0; // sequences that they are recorded of

    // of a saved sequence, all but its rows
    struct cold_state {
        uint64_t retained = 0; // by the store, while the context lives
        std::vector<uint8_t> where; // in a file, empty: in none
        struct reading reading;
        uint32_t n_ring = 0;

        std::vector<float>   ranks;    // [cell][n_set]
        std::vector<uint8_t> recalled; // [cell][n_set]
        std::vector<uint8_t> queries;
    };

    void write_cold(llama_io_write_i & io, llama_seq_id seq_id, const std::vector<uint32_t> & idxs) const;
    cold_state read_cold(llama_io_read_i & io, uint32_t n_cells, uint32_t version) const;
    void take_cold(llama_seq_id seq_id, const cold_state & state, const std::vector<uint32_t> & idxs);

    // Files that rows were saved to or may be restored from. Those that no row lies in are closed when another is opened.
    std::map<std::string, std::shared_ptr<llama_triattn_slab_file>> cold_files;

    std::shared_ptr<llama_triattn_slab_file> cold_file(const std::string & path, bool make);

    std::string cold_layout() const; // what rows in a file must agree in

    void init_cold(const llama_cparams & cparams);

    // What the last queries attend to, nullptr where no score asks for it; `queries` is there without a cold tier too then.
    std::unique_ptr<llama_triattn_attention> attention;

    void init_queries(const llama_cparams & cparams);

    llama_triattn_attention::sequence sequence_of(llama_seq_id seq_id, const std::vector<int32_t> & cand) const;

    struct attention_state {
        std::vector<uint8_t> queries;
        std::vector<uint8_t> sums;
    };

    void write_attention(llama_io_write_i & io, llama_seq_id seq_id) const;
    attention_state read_attention(llama_io_read_i & io) const;
    void take_attention(llama_seq_id seq_id, const attention_state & state);

    // Copy to the store what is not there yet. False if some of it cannot be.
    bool store_rows(llama_seq_id seq_id);
    void give_up_store(llama_seq_id seq_id, const char * why);
    void note_worth(llama_seq_id seq_id);

    using recalled_tokens = llama_triattn_cells::placed;

    struct recall_bounds {
        llama_pos p0, p1;   // tokens that may come back
        uint32_t  n_max;    // cells for them
        uint32_t  n_block;
        bool      must_earn; // a row gives way only to one that is wanted more
        float     least = -INFINITY; // what is wanted less stays where it is
    };

    llama_triattn_wanting wanting_of(llama_seq_id seq_id, size_t i_layer, const std::vector<llama_pos> & qpos, size_t n_mean) const;

    void choose_recall(llama_seq_id seq_id, uint32_t set, const float * weights, const recall_bounds & b, recalled_tokens & res);
    bool bring_back   (llama_seq_id seq_id, const std::vector<recalled_tokens> & of_set);

    // rows come back, and take the place of what is in the cells
    bool replace(llama_seq_id seq_id, const std::vector<recalled_tokens> & of_set, uint8_t mark);

    // Around a round: the policy chooses among what it chose before; then what queries wanted since the last round takes its place again.
    bool put_back  (llama_seq_id seq_id, std::vector<std::vector<llama_pos>> & wanted);
    bool call_again(llama_seq_id seq_id, const std::vector<std::vector<llama_pos>> & wanted);

    // A sequence that is cut before T is made anew of rows of the store.
    bool can_rebuild(llama_seq_id seq_id, llama_pos p0) const;
    bool rebuild    (llama_seq_id seq_id, llama_pos p0);

    void forget(llama_seq_id seq_id); // nothing is left of it

    llama_pos period_of(llama_seq_id seq_id) const; // tokens from one recall to the next while text streams

    // cells of the sequence that no round takes, its window apart: the first ones and what it or a sequence that shares them has pinned
    uint32_t n_protected(llama_seq_id seq_id, const llama_triattn_pins & pins) const;

    // by any of its sequences
    bool is_pinned(uint32_t strm, uint32_t cell, const llama_triattn_pins & pins) const;

    // in states, [1], or [n_seq] of a whole context
    using saved_pins = std::vector<std::vector<llama_triattn_pins::range>>;

    void write_pins(llama_io_write_i & io, llama_seq_id seq_id) const;
    saved_pins read_pins(llama_io_read_i & io, llama_seq_id seq_id) const;
    void take_pins(llama_seq_id seq_id, const saved_pins & saved);

    // rows were written in part: nothing of the stream can be trusted
    void lose(uint32_t strm);

    bool decode_parts(llama_context & lctx, const llama_batch_ext & batch, int & res);

    uint32_t set_of(size_t i_layer, uint32_t head_kv) const;

    // cells that a round may empty
    std::vector<int32_t> candidates(llama_seq_id seq_id) const;

    // holds so many tokens that a round must come, and enough that may go
    bool is_over(llama_seq_id seq_id, bool forced) const;

    // the cells' own check, if LLAMA_TRIATTN_CHECK asks for it: for tests
    void check_cells() const;

    // brings sequences other than seq_id down to their budget until n_free cells of its stream could take its state
    void make_room(llama_seq_id seq_id, uint32_t n_free);

    // what makes the same bytes other rows: bits for rotated keys, rotated values, long RoPE factors
    uint32_t row_layout() const;

    void state_read_streams(llama_io_read_i & io, llama_seq_id seq_id, uint32_t n_saved, uint32_t version);

    // cells of the stream that are free, or are once the sequence is removed
    uint32_t n_free_without(llama_seq_id seq_id) const;

    int32_t fail(const char * why);

    // the policy's scores of the candidates, as the caller's ranking leaves them: [n_set][n_cand]
    bool rank_sets (llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores);
    bool score_sets(llama_context & lctx, llama_seq_id seq_id, const std::vector<int32_t> & cand, std::vector<float> & scores);

    // Hadamard matrix of a rotated K cache, empty if it is not rotated
    const std::vector<float> & k_rotation() const;
};

// While it lives, what its context computes is not aborted: rows that have moved in part cannot be mended.
class llama_triattn_unaborted {
public:
    explicit llama_triattn_unaborted(llama_context & lctx);
    ~llama_triattn_unaborted();

private:
    llama_context & lctx;

    const ggml_abort_callback callback;
    void * const              callback_data;
};
