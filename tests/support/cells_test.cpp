// llama_triattn_cells under operations by chance, beside a model that is plain enough to be right: cells_test SEED N_OPERATIONS.
//
// The model knows no cells. A sequence is a text, the number of each of its tokens by position, and for each set the positions that
// the set holds. What ties both together are rows: each cell has for each set the number that lies there, as the tensors of a
// cache have keys and values, moved when the class under test says so and by nothing else. After each operation the rows of
// a sequence's cells must be those of its text at the positions that the class names, and these must be what the model holds.
//
// What llama.cpp does to labels (llama_kv_cache: find_slot, seq_rm, seq_cp, seq_keep) stands here in its plainest form.
//
// Exit status 0, or 1 with a line: operation, seed, what does not hold.

#include "llama-triattn-cells.h"
#include "llama-triattn-choose.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>

static std::mt19937 rng;

static int32_t below(int32_t n) { // [0, n)
    return (int32_t) (rng() % (uint32_t) n);
}

static void require(bool ok, const std::string & what) {
    if (!ok) {
        throw std::runtime_error(what);
    }
}

// ---- labels, as plain as they can be

class plain_labels : public llama_triattn_labels {
public:
    struct cell {
        int32_t           pos   = -1;
        int32_t           extra = 0;
        std::set<int32_t> seqs;
    };

    plain_labels(uint32_t n, uint32_t n_seq) : cells(n), ordered_of(n_seq) {}

    uint32_t size() const override { return cells.size(); }
    bool is_empty(uint32_t c) const override { return cells[c].pos < 0; }

    const ordered & of(int32_t seq) const override {
        if (is_stale) {
            for (auto & o : ordered_of) {
                o.clear();
            }
            for (uint32_t c = 0; c < cells.size(); ++c) {
                for (const int32_t s : cells[c].seqs) {
                    ordered_of[s].insert({ cells[c].pos, c });
                }
            }
            is_stale = false;
        }
        return ordered_of[seq];
    }

    int32_t  pos  (uint32_t c)              const override { return used(c).pos; }
    bool     has  (uint32_t c, int32_t seq) const override { return cells[c].seqs.count(seq) > 0; }
    uint32_t n_seq(uint32_t c)              const override { return used(c).seqs.size(); }

    void set(uint32_t c, int32_t pos) override {
        require(is_empty(c) && pos >= 0, "a used cell was labelled");
        change()[c].pos = pos;
    }
    void join (uint32_t c, int32_t seq) override { require(!used(c).seqs.count(seq), "joined twice"); change()[c].seqs.insert(seq); }
    void leave(uint32_t c, int32_t seq) override {
        require(change()[c].seqs.erase(seq) == 1, "left what it was not in");
        if (cells[c].seqs.empty()) {
            cells[c] = {};
        }
    }
    void clear(uint32_t c) override { used(c); change()[c] = {}; }
    void copy (uint32_t dst, uint32_t src) override { used(dst); change()[dst] = used(src); }

    size_t       extra_size()                         const override { return sizeof(int32_t); }
    const void * extra(uint32_t c)                    const override { return &used(c).extra; }
    void         set_extra(uint32_t c, const void * data)    override { memcpy(&cells[c].extra, data, sizeof(int32_t)); }

    const std::vector<cell> & all() const { return cells; }
    std::vector<cell> & change() {
        is_stale = true;
        return cells;
    }

private:
    std::vector<cell> cells;

    mutable std::vector<ordered> ordered_of; // of cells, unless it is stale
    mutable bool is_stale = false;

    const cell & used(uint32_t c) const {
        require(cells[c].pos >= 0, "an empty cell was taken for a used one");
        return cells[c];
    }
};

// ---- the model

struct note { // of a token in a set, if notes are made
    float   rank = INFINITY;
    uint8_t mark = 0; // of what came back

    bool operator==(const note & other) const { return rank == other.rank && mark == other.mark; }
};

struct plain_sequence {
    std::map<int32_t, int32_t> text; // position -> number of the token
    std::vector<std::map<int32_t, note>> held; // [n_set] by position
    int32_t whole = 0; // T

    int32_t end() const { return text.empty() ? 0 : text.rbegin()->first + 1; }

    bool is_empty() const { return text.empty(); }
};

struct configuration {
    uint32_t n_stream, n_seq, n_cells, n_set, n_keep, window, budget;
    bool is_marked;
};

class world {
public:
    explicit world(const configuration & c) : c(c) {
        std::vector<llama_triattn_labels *> streams;
        std::vector<uint32_t> stream_of;
        for (uint32_t s = 0; s < c.n_stream; ++s) {
            labels.push_back(std::make_unique<plain_labels>(c.n_cells, c.n_seq));
            streams.push_back(labels.back().get());
            rows.emplace_back((size_t) c.n_cells*c.n_set, -1);
        }
        for (uint32_t s = 0; s < c.n_seq; ++s) {
            stream_of.push_back(c.n_stream == 1 ? 0 : s);
        }
        llama_triattn_cells::settings with;
        with.n_set     = c.n_set;
        with.n_keep    = c.n_keep;
        with.window    = c.window;
        with.n_whole   = c.n_seq + 2;
        with.is_marked = c.is_marked;
        cells = std::make_unique<llama_triattn_cells>(streams, stream_of, with);
        plain.resize(c.n_seq);
        for (auto & p : plain) {
            p.held.resize(c.n_set);
        }
    }

    std::map<std::string, int32_t> done; // operations that did something

    const char * step() {
        const int32_t seq = below(c.n_seq);
        const int32_t dice = below(100);
        if (dice < 50) { add(seq);                return "add"; }
        if (dice < 64) { round(seq, c.budget);    return "round"; }
        if (dice < 67) { round(seq, c.n_keep + c.window + 1 + below(c.budget)); return "forced round"; }
        if (dice < 75) { cut(seq);                return "cut"; }
        if (dice < 80) { copy(seq, below(c.n_seq)); return "copy"; }
        if (dice < 86) { bring_back(seq);         return "bring back"; }
        if (dice < 90) { go_back(seq);            return "go back"; }
        if (dice < 96) { save_and_load(seq);      return "save and load"; }
        if (dice < 97) { all_of_it();             return "save and load all"; }
        if (dice < 98) { keep(seq);               return "keep"; }
        if (dice < 99) { damage(seq);             return "damaged state"; }
        clear();
        return "clear";
    }

    void compare() const {
        for (int32_t s = 0; s < (int32_t) c.n_seq; ++s) {
            const uint32_t strm = cells->stream(s);
            const auto &   p    = plain[s];
            const std::string of = " of sequence " + std::to_string(s);

            require(cells->whole(s) == p.whole, "T" + of + " is " + std::to_string(cells->whole(s)) + ", not " + std::to_string(p.whole));
            require(cells->n_used(s) == p.held[0].size(), "the number of cells" + of);
            require(cells->last (s) == p.end() - 1, "the last position" + of);
            require(cells->first(s) == (p.is_empty() ? -1 : p.whole > 0 ? std::min(p.whole, p.end() - 1) : p.text.begin()->first), "the first position" + of);

            for (uint32_t set = 0; set < c.n_set; ++set) {
                std::map<int32_t, note> found;
                for (const auto & [label, cell] : cells->of(s)) {
                    const int32_t token = cells->token(strm, cell, set);
                    const auto    it    = p.text.find(token);
                    require(it != p.text.end(), "a token that is not in the text" + of);
                    require(rows[strm][cell*c.n_set + set] == it->second, "the row of another token" + of);
                    found[token] = c.is_marked ? note{ cells->rank(strm, cell, set), cells->mark(strm, cell, set) } : note();
                }
                require(found == p.held[set], "what a set holds, or what is noted of it" + of);
                for (const auto & [pos, number] : p.text) {
                    require(pos < p.whole || found.count(pos), "a token from T on is missing" + of);
                }
            }
        }
        const std::string why = cells->check();
        require(why.empty(), "check() says: " + why);
    }

private:
    const configuration c;

    std::vector<std::unique_ptr<plain_labels>> labels;
    std::vector<std::vector<int32_t>>          rows; // [n_stream][n_cells*n_set] number of the token whose row lies there

    std::unique_ptr<llama_triattn_cells> cells;

    std::vector<plain_sequence> plain;

    int32_t n_tokens = 0; // numbers that were given

    plain_labels & labels_of(int32_t seq) { return *labels[cells->stream(seq)]; }

    int32_t n_free(uint32_t strm) const {
        const auto & all = labels[strm]->all();
        return std::count_if(all.begin(), all.end(), [](const auto & cell) { return cell.pos < 0; });
    }

    // a batch: tokens into empty cells from a place by chance on, as find_slot
    void add(int32_t seq) {
        auto & of = labels_of(seq);
        const uint32_t strm = cells->stream(seq);
        const int32_t  n    = std::min(1 + below(8), n_free(strm));
        uint32_t cell = below(c.n_cells);

        // first without a trace, as llama_kv_cache::prepare does: the hook is called, and labels go back
        for (int32_t i = 0; i < n; ++i) {
            while (!of.is_empty(cell)) {
                cell = (cell + 1) % c.n_cells;
            }
            if (below(2)) {
                cells->add(strm, cell, 12345);
            }
            const int32_t pos = plain[seq].end();
            cells->add(strm, cell, pos);
            of.set(cell, pos);
            of.join(cell, seq);
            of.set_extra(cell, &n_tokens);
            for (uint32_t set = 0; set < c.n_set; ++set) {
                rows[strm][cell*c.n_set + set] = n_tokens;
                plain[seq].held[set][pos] = {};
            }
            plain[seq].text[pos] = n_tokens++;
        }
    }

    // down to n cells: each set drops the lowest of what it has, as many in each group
    void round(int32_t seq, uint32_t n) {
        const uint32_t strm = cells->stream(seq);
        const uint32_t pin  = below(c.n_cells);
        const auto     cand = cells->candidates(seq, [&](uint32_t cell) { return cell == pin; });

        require(std::count(cand.begin(), cand.end(), (int32_t) pin) == 0, "a pinned cell is a candidate");

        const uint32_t used   = plain[seq].held[0].size();
        const uint32_t n_drop = used > n ? std::min<uint32_t>(used - n, cand.size()) : 0;
        for (const int32_t cell : cand) {
            for (const int32_t s : labels[strm]->all()[cell].seqs) {
                int32_t n_later = 0;
                for (const auto & other : cells->of(s)) {
                    n_later += other > std::make_pair(labels[strm]->all()[cell].pos, (uint32_t) cell);
                }
                require(n_later >= (int32_t) c.window, "a candidate in a window");
            }
            require(labels[strm]->all()[cell].pos >= (int32_t) c.n_keep, "a candidate among the first tokens");
        }
        if (n_drop == 0) {
            return;
        }
        std::vector<float> scores(c.n_set*cand.size());
        for (auto & s : scores) {
            s = below(1000);
        }
        cells->set_ranks(strm, cand, scores);
        for (size_t i = 0; c.is_marked && i < scores.size(); ++i) {
            const int32_t cell = cand[i % cand.size()], set = i/cand.size();
            for (const int32_t s : labels[strm]->all()[cell].seqs) {
                plain[s].held[set][cells->token(strm, cell, set)].rank = scores[i];
            }
        }

        const auto groups = cells->groups(strm, cand);
        const auto choice = llama_triattn_choose(cand, groups, n_drop, c.n_set, scores, 1);
        require(choice.freed.size() == n_drop, "as many cells as were asked for");

        // rows, and what the sets hold: the freed cells of sets that do not move their token, and the cells that another comes to
        std::set<int32_t> owners;
        for (uint32_t set = 0; set < c.n_set; ++set) {
            std::vector<std::pair<int32_t, int32_t>> gone; // cell, and the token there
            require(choice.src[set].size() == choice.dst[set].size(), "as many sources as destinations");
            for (const auto * list : { &choice.dst[set], &choice.stay[set] }) {
                for (const int32_t cell : *list) {
                    gone.emplace_back(cell, cells->token(strm, cell, set));
                }
            }
            require(gone.size() == n_drop, "each set drops as many");
            for (const auto & [cell, token] : gone) {
                for (const int32_t s : labels[strm]->all()[cell].seqs) {
                    require(plain[s].held[set].erase(token) == 1, "a set drops what it does not hold");
                    owners.insert(s);
                }
            }
            auto before = rows[strm];
            for (size_t i = 0; i < choice.src[set].size(); ++i) {
                require(labels[strm]->all()[choice.src[set][i]].seqs == labels[strm]->all()[choice.dst[set][i]].seqs, "a row moves between sequences");
                rows[strm][choice.dst[set][i]*c.n_set + set] = before[choice.src[set][i]*c.n_set + set];
            }
        }
        // T, from the labels as they are before cells go: the first of the window
        for (const int32_t s : owners) {
            std::vector<int32_t> positions;
            for (const auto & [label, cell] : cells->of(s)) {
                positions.push_back(label);
            }
            plain[s].whole = std::max(plain[s].whole, positions[positions.size() - std::min<size_t>(c.window, positions.size())]);
        }
        cells->move(strm, choice.src, choice.dst);
        cells->free(strm, choice.freed);
        ++done["round"];
    }

    // llama_kv_cache::seq_rm behind the hook
    void remove_labels(int32_t seq, int32_t p0, int32_t p1) {
        auto & of = labels_of(seq);
        for (uint32_t cell = 0; cell < c.n_cells; ++cell) {
            if (of.all()[cell].pos >= p0 && of.all()[cell].pos < p1 && of.has(cell, seq)) {
                of.leave(cell, seq);
            }
        }
    }

    void cut(int32_t seq) {
        auto & p = plain[seq];
        const int32_t p0 = below(4) ? below(p.end() + 2) : 0;
        const int32_t p1 = below(3) ? -1 : p0 + below(p.end() + 2);
        const int32_t end = p1 < 0 ? INT32_MAX : p1;

        const bool is_all = p0 == 0 && end >= p.end();
        const bool ok     = p.is_empty() || is_all || p0 >= p.whole;
        require(cells->can_cut(seq, p0, p1) == ok, "whether a sequence can be cut");
        if (!ok) {
            return;
        }
        // a hole in the text, or its beginning gone, is for texts that go on: their end is not what was cut
        if (!is_all && end < p.end() && p.whole > 0 && p0 < p.whole) {
            return;
        }
        cells->cut(seq, p0, p1);
        ++done["cut"];
        remove_labels(seq, p0, end);
        if (is_all) {
            forget(seq);
            return;
        }
        for (auto & held : p.held) {
            held.erase(held.lower_bound(p0), held.lower_bound(end));
        }
        p.text.erase(p.text.lower_bound(p0), p.text.lower_bound(end));
        if (p.held[0].empty()) {
            forget(seq);
        }
    }

    void forget(int32_t seq) {
        plain[seq] = {};
        plain[seq].held.resize(c.n_set);
    }

    void copy(int32_t src, int32_t dst) {
        auto & from = plain[src];
        if (src == dst || from.is_empty()) {
            return;
        }
        const bool is_across = cells->stream(src) != cells->stream(dst);
        const int32_t p0  = is_across || below(2) ? 0 : below(from.end());
        const int32_t p1  = is_across || below(2) ? -1 : p0 + 1 + below(from.end());
        const int32_t end = p1 < 0 ? INT32_MAX : p1;

        const bool ok = from.whole == 0 || p0 >= from.whole || (p0 <= 0 && end >= from.whole);
        require(cells->can_copy(src, dst, p0, p1) == ok, "whether a sequence can be copied");
        if (!ok || (!is_across && !plain[dst].is_empty())) {
            return; // two texts in one sequence are not what anybody wants
        }
        cells->copy(src, dst, p0, p1);
        ++done["copy"];
        if (is_across) {
            auto & to = labels_of(dst);
            to.change().assign(c.n_cells, {});
            for (uint32_t cell = 0; cell < c.n_cells; ++cell) {
                if (labels_of(src).has(cell, src)) {
                    to.change()[cell] = labels_of(src).all()[cell];
                    to.change()[cell].seqs = { dst };
                }
            }
            rows[cells->stream(dst)] = rows[cells->stream(src)];
            plain[dst] = from;
            return;
        }
        for (uint32_t cell = 0; cell < c.n_cells; ++cell) {
            const auto & to = labels_of(src).all()[cell];
            if (to.pos >= p0 && to.pos < end && to.seqs.count(src)) {
                labels_of(dst).join(cell, dst);
            }
        }
        // before T the labels do not say which tokens lie there, but all of them are copied
        forget(dst);
        const int32_t from_t = p0 <= 0 ? from.whole : 0;
        for (const auto & [pos, number] : from.text) {
            if (pos < from_t || (pos >= p0 && pos < end)) {
                plain[dst].text[pos] = number;
            }
        }
        for (uint32_t set = 0; set < c.n_set; ++set) {
            for (const auto & [pos, what] : from.held[set]) {
                if (plain[dst].text.count(pos)) {
                    plain[dst].held[set][pos] = what;
                }
            }
        }
        plain[dst].whole = from_t;
        if (plain[dst].held[0].empty()) {
            cells->cut(dst, 0, -1);
            forget(dst);
        }
    }

    void keep(int32_t seq) {
        cells->keep(seq);
        ++done["keep"];
        for (int32_t s = 0; s < (int32_t) c.n_seq; ++s) {
            if (s != seq && cells->stream(s) == cells->stream(seq)) {
                remove_labels(s, 0, INT32_MAX);
                forget(s);
            }
        }
    }

    void clear() {
        cells->clear();
        for (uint32_t s = 0; s < c.n_stream; ++s) {
            labels[s]->change().assign(c.n_cells, {});
        }
        for (int32_t s = 0; s < (int32_t) c.n_seq; ++s) {
            forget(s);
        }
    }

    // in each set some tokens that it lacks come in place of some that it has, of its own cells and neither first nor from T on
    void bring_back(int32_t seq) {
        auto & p = plain[seq];
        const uint32_t strm = cells->stream(seq);
        if (!c.is_marked || p.whole == 0) {
            return;
        }
        const uint8_t mark = 1 + below(2);
        std::vector<llama_triattn_cells::placed> of_set(c.n_set);
        for (uint32_t set = 0; set < c.n_set; ++set) {
            std::vector<int32_t> missing, victims;
            for (const auto & [pos, number] : p.text) {
                if (pos >= (int32_t) c.n_keep && pos < p.whole && !p.held[set].count(pos)) {
                    missing.push_back(pos);
                }
            }
            for (const auto & [label, cell] : cells->of(seq)) {
                const int32_t token = cells->token(strm, cell, set);
                if (token >= (int32_t) c.n_keep && token < p.whole && cells->labels(strm).n_seq(cell) == 1) {
                    victims.push_back(cell);
                }
            }
            std::shuffle(missing.begin(), missing.end(), rng);
            std::shuffle(victims.begin(), victims.end(), rng);
            for (size_t i = 0; i < std::min({ missing.size(), victims.size(), (size_t) below(6) }); ++i) {
                of_set[set].emplace_back(missing[i], victims[i]);
                p.held[set].erase(cells->token(strm, victims[i], set));
                p.held[set][missing[i]] = { -INFINITY, mark };
                rows[strm][victims[i]*c.n_set + set] = p.text[missing[i]];
            }
        }
        cells->bring_back(seq, of_set, mark);
        for (const auto & placed : of_set) {
            done["recall"] += placed.size();
        }
    }

    // cut before T: the whole text is stored somewhere, and rows come from there
    void go_back(int32_t seq) {
        auto & p = plain[seq];
        const uint32_t strm = cells->stream(seq);
        if (!c.is_marked || p.whole <= 1 || p.text.begin()->first != 0 || (int32_t) p.text.size() != p.end()) {
            return;
        }
        const int32_t p0 = 1 + below(p.whole - 1);
        if (cells->available(seq, std::min<uint32_t>(p0, c.budget)).size() < std::min<uint32_t>(p0, c.budget)) {
            return;
        }
        const std::set<int32_t> pinned = { below(p0), below(p0) };
        const auto plan = cells->plan_cut(seq, p0, c.budget, [&](int32_t pos) { return pinned.count(pos) > 0; });
        require(plan.cells.size() == std::min<uint32_t>(p0, c.budget), "as many cells as a budget has");
        for (uint32_t set = 0; set < c.n_set; ++set) {
            require(plan.tokens[set].size() == plan.cells.size(), "a token for each cell");
            for (size_t i = 0; i < plan.cells.size(); ++i) {
                rows[strm][plan.cells[i]*c.n_set + set] = p.text[plan.tokens[set][i]];
            }
            std::map<int32_t, note> now;
            for (const int32_t pos : plan.tokens[set]) {
                now[pos] = {};
            }
            for (int32_t pos = 0; pos < p0; ++pos) {
                require(now.count(pos) || (pos >= (int32_t) c.n_keep && pos < p0 - (int32_t) c.window && !pinned.count(pos)), "the first tokens, the pinned ones and the window");
            }
            p.held[set] = now;
        }
        cells->replace(seq, plan);
        ++done["go back"];
        p.text.erase(p.text.lower_bound(p0), p.text.end());
        p.whole = (int32_t) plan.cells.size() < p0 ? std::max<int32_t>(p0 - (int32_t) c.window, std::min<int32_t>(c.n_keep, p0)) : 0;
    }

    std::vector<uint8_t> saved(uint32_t strm, int32_t seq) const {
        std::vector<uint8_t> res;
        cells->save([&](const void * data, size_t size) {
            res.insert(res.end(), (const uint8_t *) data, (const uint8_t *) data + size);
        }, strm, seq);
        return res;
    }

    static llama_triattn_cells::reader reader_of(const std::vector<uint8_t> & data, size_t & at) {
        return [&](void * dst, size_t size) {
            require(size <= data.size() - at, "a state ends early");
            std::copy_n(data.begin() + at, size, (uint8_t *) dst);
            at += size;
        };
    }

    // they are saved with the rest of the cold tier
    void without_notes(int32_t seq) {
        for (auto & held : plain[seq].held) {
            for (auto & [pos, what] : held) {
                what = {};
            }
        }
    }

    // into another sequence, or the same, whatever that holds
    void save_and_load(int32_t seq) {
        const uint32_t strm = cells->stream(seq);
        const int32_t  dst  = below(c.n_seq);
        const uint32_t to   = cells->stream(dst);

        const auto data = saved(strm, seq);
        const auto from = cells->used(strm, seq);
        const auto text = plain[seq];
        std::vector<int32_t> moved; // rows, as a state has them
        for (const uint32_t cell : from) {
            moved.insert(moved.end(), &rows[strm][cell*c.n_set], &rows[strm][cell*c.n_set] + c.n_set);
        }

        size_t at = 0;
        const auto state = cells->load(reader_of(data, at), to, dst);
        require(at == data.size(), "a state is read to its end");
        if (cells->available(dst, from.size()).size() < from.size()) {
            return;
        }
        cells->cut(dst, 0, -1);
        remove_labels(dst, 0, INT32_MAX);
        forget(dst);

        bool in_place = false;
        const auto idxs = cells->restore(state, to, dst, in_place);
        ++done["restore"];
        require(idxs.size() == from.size(), "room that was there is not");
        require(!in_place || idxs == from, "where it was");
        for (size_t i = 0; i < idxs.size(); ++i) {
            std::copy_n(&moved[i*c.n_set], c.n_set, &rows[to][idxs[i]*c.n_set]);
        }
        plain[dst] = text;
        without_notes(dst);
        if (in_place) {
            require(saved(to, dst) == data, "a restored sequence is saved as it was");
        }
    }

    void all_of_it() {
        std::vector<std::vector<uint8_t>> data;
        for (uint32_t s = 0; s < c.n_stream; ++s) {
            data.push_back(saved(s, -1));
        }
        const auto before = plain;
        clear();
        plain = before;
        for (int32_t s = 0; s < (int32_t) c.n_seq; ++s) {
            without_notes(s);
        }
        for (uint32_t s = 0; s < c.n_stream; ++s) {
            size_t at = 0;
            bool in_place = false;
            cells->restore(cells->load(reader_of(data[s], at), s, -1), s, -1, in_place);
            require(in_place && at == data[s].size(), "all of it where it was");
        }
        for (uint32_t s = 0; s < c.n_stream; ++s) {
            require(saved(s, -1) == data[s], "all of it is saved as it was");
        }
    }

    // some bytes changed or missing: refused, or a state that holds together
    void damage(int32_t seq) {
        auto data = saved(cells->stream(seq), seq);
        for (int32_t i = 0; i < 1 + below(3); ++i) {
            data[below(data.size())] = (uint8_t) rng();
        }
        if (below(3) == 0) {
            data.resize(below(data.size() + 1));
        }
        world other(c);
        const uint32_t strm = cells->stream(seq);
        llama_triattn_cells::saved state;
        size_t at = 0;
        try {
            state = other.cells->load(reader_of(data, at), strm, seq);
        } catch (const std::runtime_error &) {
            ++done["refuse"];
            return;
        }
        bool in_place = false;
        other.cells->restore(state, strm, seq, in_place);
        require(other.cells->check().empty(), "a damaged state was taken: " + other.cells->check());
        ++done["take"];
    }
};

int main(int argc, char ** argv) {
    const uint32_t seed = argc > 1 ? strtoul(argv[1], nullptr, 10) : 0;
    const uint32_t n    = argc > 2 ? strtoul(argv[2], nullptr, 10) : 100000;

    //                                   streams seqs cells sets keep window budget marked
    const configuration configurations[] = {
                                       { 1,      1,   32,   3,   2,   5,     16,    true  },
                                       { 1,      3,   64,   2,   2,   5,     16,    true  },
                                       { 1,      3,   64,   1,   1,   4,     14,    true  },
                                       { 2,      2,   40,   4,   0,   6,     20,    true  },
                                       { 1,      4,   72,   2,   3,   4,     15,    false },
    };
    uint32_t i = 0;
    const char * what = "nothing";
    std::map<std::string, int32_t> done;
    try {
        rng.seed(seed);
        for (const auto & c : configurations) {
            world w(c);
            for (const uint32_t end = i + n/5; i < end; ++i) {
                what = w.step();
                w.compare();
            }
            for (const auto & [name, n_done] : w.done) {
                done[name] += n_done;
            }
        }
    } catch (const std::exception & err) {
        printf("seed %u, operation %u (%s): %s\n", seed, i, what, err.what());
        return 1;
    }
    printf("%u operations", i);
    for (const auto & [name, n_done] : done) {
        printf(", %s %d", name.c_str(), n_done);
    }
    printf("\n");
    return 0;
}
