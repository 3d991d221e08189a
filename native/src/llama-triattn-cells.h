#pragma once

// What the cells of an evicting cache hold: the token in each cell for each set, and T of each sequence. Knows no rows, no scores, no
// ggml and no llama.cpp, and compiles alone: tests/support/cells_test.cpp tries it with operations by chance beside a plain model.
//
// Three things must agree here.
//
//   label  what llama.cpp has for a cell: a position, and the sequences that it belongs to. Its masks and its search for free cells
//          read labels, and it changes them itself for batches, cuts and copies, so that they stay where they are
//          (llama_triattn_labels). What rounds, recalls and restored states change of them is changed in this class.
//   token  the position whose row a set has in the cell
//   T      from this position on, a sequence is whole: the cell of each label holds that token in all sets. Labels before T only
//          say that a cell is used; its tokens lie before T too.
//
// check() says what else holds. A position is an int32_t, -1: none; so is the number of a sequence.

#include <cstddef>
#include <cstdint>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

// The labels of one stream.
class llama_triattn_labels {
public:
    using ordered = std::set<std::pair<int32_t, uint32_t>>; // position and cell

    virtual ~llama_triattn_labels() = default;

    virtual uint32_t size() const = 0; // cells, used or not

    virtual bool is_empty(uint32_t cell) const = 0;

    virtual const ordered & of(int32_t seq) const = 0; // cells of a sequence

    // of a used cell
    virtual int32_t  pos  (uint32_t cell) const = 0;
    virtual bool     has  (uint32_t cell, int32_t seq) const = 0;
    virtual uint32_t n_seq(uint32_t cell) const = 0;

    virtual void set  (uint32_t cell, int32_t pos) = 0; // an empty cell; it belongs to no sequence yet
    virtual void join (uint32_t cell, int32_t seq) = 0;
    virtual void leave(uint32_t cell, int32_t seq) = 0; // empty, if it was the last one
    virtual void clear(uint32_t cell) = 0;
    virtual void copy (uint32_t dst, uint32_t src) = 0; // all that a label is, in place of what it was

    // what else there is of a used cell, for states
    virtual size_t       extra_size() const = 0;
    virtual const void * extra(uint32_t cell) const = 0;
    virtual void         set_extra(uint32_t cell, const void * data) = 0;
};

class llama_triattn_cells {
public:
    struct settings {
        uint32_t n_set  = 1;
        uint32_t n_keep = 0;     // first tokens of a sequence, in all sets for ever
        uint32_t window = 0;     // last cells of a sequence, whole
        uint32_t n_whole = 0;    // sequences that a T is noted of: at least as many as there are
        bool is_marked = false;  // ranks, and what came back, are noted
        bool is_unique = true;   // a sequence has a position once; pictures have it many times
    };

    // stream_of: [n_seq]. The labels live longer than this.
    llama_triattn_cells(std::vector<llama_triattn_labels *> streams, std::vector<uint32_t> stream_of, const settings & s);

    // sequences, as their labels have them

    uint32_t n_seq() const { return stream_of.size(); }
    uint32_t n_set() const { return with.n_set; }

    uint32_t stream(int32_t seq) const { return stream_of[seq]; }

    const llama_triattn_labels & labels(uint32_t strm) const { return *streams[strm]; }

    const llama_triattn_labels::ordered & of(int32_t seq) const { return streams[stream_of[seq]]->of(seq); }

    uint32_t n_used(int32_t seq) const { return of(seq).size(); }

    std::vector<int32_t> seqs() const; // that hold cells

    int32_t whole(int32_t seq) const { return t[seq]; } // T

    // Positions that it holds, -1: none. What was evicted before T counts for the last, and not for the first.
    int32_t first(int32_t seq) const;
    int32_t last (int32_t seq) const;

    int32_t token(uint32_t strm, uint32_t cell, uint32_t set) const { return tokens[strm][(size_t) cell*with.n_set + set]; }

    // of settings.is_marked: the policy's score at the last round (INFINITY: not ranked yet), and 0 or the mark of what came back
    float   rank(uint32_t strm, uint32_t cell, uint32_t set) const { return ranks[strm][(size_t) cell*with.n_set + set]; }
    uint8_t mark(uint32_t strm, uint32_t cell, uint32_t set) const { return marks[strm][(size_t) cell*with.n_set + set]; }

    float   * ranks_of(uint32_t strm, uint32_t cell) { return &ranks[strm][(size_t) cell*with.n_set]; } // [n_set]
    uint8_t * marks_of(uint32_t strm, uint32_t cell) { return &marks[strm][(size_t) cell*with.n_set]; }

    // Cells that no other sequence uses: those that a state of the sequence could be restored to; at most n of them.
    std::vector<int32_t> available(int32_t seq, uint32_t n) const;

    // what llama.cpp does to sequences: called before it changes the labels

    void clear();

    void add(uint32_t strm, uint32_t cell, int32_t pos); // a batch puts a token there

    // [p0, p1) of a sequence; p1 < 0: to its end. It cannot be cut before T, but for all of it.
    bool can_cut(int32_t seq, int32_t p0, int32_t p1) const;
    bool is_all (int32_t seq, int32_t p0, int32_t p1) const; // nothing would be left
    void cut    (int32_t seq, int32_t p0, int32_t p1);

    // dst gets [p0, p1) of src besides what it has, or in the place of all that its stream has. Not a part before T.
    bool can_copy(int32_t src, int32_t dst, int32_t p0, int32_t p1) const;
    void copy    (int32_t src, int32_t dst, int32_t p0, int32_t p1);

    void keep(int32_t seq); // the others of its stream go

    // a round

    // Cells that it may empty, ascending. Those that the sequence shares with others are among them if no window protects them:
    // they go from all sequences at once.
    // is_pinned: cells that no round empties, empty: none.
    std::vector<int32_t> candidates(int32_t seq, const std::function<bool(uint32_t cell)> & is_pinned = {}) const;

    // Candidates that belong to the same sequences, as indices into `cand`, ascending. Tokens move within a group only.
    std::vector<std::vector<uint32_t>> groups(uint32_t strm, const std::vector<int32_t> & cand) const;

    void set_ranks(uint32_t strm, const std::vector<int32_t> & cand, const std::vector<float> & scores); // [n_set][n_cand]

    // For each set, tokens go from cells that are freed next to others of the same group, whose tokens are gone. Ends the round.
    void move(uint32_t strm, const std::vector<std::vector<int32_t>> & src, const std::vector<std::vector<int32_t>> & dst);
    void free(uint32_t strm, const std::vector<int32_t> & cells);

    // the cold tier

    using placed = std::vector<std::pair<int32_t, int32_t>>; // a token, and the cell that it comes to in place of another before T

    void bring_back(int32_t seq, const std::vector<placed> & of_set, uint8_t mark = 1);

    // A sequence that is cut at p0, not 0, and made anew of tokens that are stored: in each set of at most n_max the first ones, what
    // is pinned (positions), the window, the best of what else the set has, and then the last before the window.
    struct plan {
        int32_t whole = 0; // T
        std::vector<int32_t> cells;
        std::vector<std::vector<int32_t>> tokens; // [n_set][cells]; what all sets have lies in the same cells
    };

    plan plan_cut(int32_t seq, int32_t p0, uint32_t n_max, const std::function<bool(int32_t pos)> & is_pinned = {}) const;
    void replace (int32_t seq, const plan & p); // its cells were available: nothing else was done since
    void drop    (int32_t seq);                 // labels too

    // states

    using writer = std::function<void(const void * data, size_t size)>;
    using reader = std::function<void(      void * data, size_t size)>; // throws if there is no more

    struct saved {
        struct cell {
            uint32_t idx;
            int32_t  pos;
            std::vector<uint8_t> extra;
            std::vector<int32_t> seqs;
            std::vector<int32_t> tokens; // [n_set]
        };
        std::vector<cell>    cells; // ascending
        std::vector<int32_t> whole;
    };

    std::vector<uint32_t> used(uint32_t strm, int32_t seq) const; // cells that are saved, ascending; seq < 0: of the stream

    // number of cells | for each: idx, pos, extra, number of sequences and their ids if seq < 0 (else 0), tokens | T, of all sequences if seq < 0
    void save(const writer & write, uint32_t strm, int32_t seq) const;

    // Reads what save() wrote and changes nothing. Throws std::runtime_error: it cannot have been saved here, or is damaged.
    saved load(const reader & read, uint32_t strm, int32_t seq) const;

    // Into empty cells: where they were, if those are empty, else wherever. The sequence, or all, holds nothing. Returns the cells;
    // changes nothing and returns fewer where there is no room.
    std::vector<uint32_t> restore(const saved & state, uint32_t strm, int32_t seq, bool & in_place);

    // "", or what does not hold
    std::string check() const;

private:
    const std::vector<llama_triattn_labels *> streams;
    const std::vector<uint32_t> stream_of;

    const settings with;

    // valid where the cell is used; [n_stream][n_cells*n_set], set index fastest
    std::vector<std::vector<int32_t>> tokens;
    std::vector<std::vector<float>>   ranks;
    std::vector<std::vector<uint8_t>> marks;

    std::vector<int32_t> t;        // [n_whole]
    std::vector<uint8_t> is_mixed; // [n_whole] of two texts, which may have the same positions, or of a state

    void unmark(uint32_t strm, uint32_t cell); // other tokens lie there now

    void forget(int32_t seq);

    // nullptr, or why a sequence with T at `whole` cannot have the token in a cell
    const char * why_wrong(int32_t label, int32_t whole, int32_t token) const;

    // The first cell in the order of labels that the window protects. In that order, not by position: the hundreds of tokens of a
    // picture may stand on one.
    std::pair<int32_t, uint32_t> window_first(int32_t seq) const;

    int32_t whole_from(int32_t seq) const; // T after tokens before the window have gone
};
