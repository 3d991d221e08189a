#include "llama-triattn-cells.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <stdexcept>
#include <unordered_map>

static int32_t end_of(int32_t p1) {
    return p1 < 0 ? std::numeric_limits<int32_t>::max() : p1;
}

llama_triattn_cells::llama_triattn_cells(
        std::vector<llama_triattn_labels *> streams_, std::vector<uint32_t> stream_of_, const settings & s) :
    streams(std::move(streams_)), stream_of(std::move(stream_of_)), with(s),
    tokens(streams.size()), ranks(streams.size()), marks(streams.size()), t(with.n_whole, 0), is_mixed(with.n_whole, 0) {
    for (size_t i = 0; i < streams.size(); ++i) {
        const size_t n = (size_t) streams[i]->size()*with.n_set;
        tokens[i].resize(n, -1);
        if (with.is_marked) {
            ranks[i].resize(n, INFINITY);
            marks[i].resize(n, 0);
        }
    }
}

//
// sequences
//

std::vector<int32_t> llama_triattn_cells::seqs() const {
    std::vector<int32_t> res;
    for (int32_t s = 0; s < (int32_t) n_seq(); ++s) {
        if (n_used(s) > 0) {
            res.push_back(s);
        }
    }
    return res;
}

int32_t llama_triattn_cells::first(int32_t seq) const {
    const auto & cells = of(seq);
    return cells.empty() ? -1 : std::min(std::max(cells.begin()->first, t[seq]), last(seq));
}

int32_t llama_triattn_cells::last(int32_t seq) const {
    const auto & cells = of(seq);

    // cut at T: the token before it was there, whether its cell still is or not
    return cells.empty() ? -1 : std::max(cells.rbegin()->first, t[seq] - 1);
}

std::vector<int32_t> llama_triattn_cells::available(int32_t seq, uint32_t n) const {
    const auto & labels = *streams[stream_of[seq]];

    std::vector<int32_t> res;
    for (uint32_t i = 0; i < labels.size() && res.size() < n; ++i) {
        if (labels.is_empty(i) || (labels.n_seq(i) == 1 && labels.has(i, seq))) {
            res.push_back(i);
        }
    }
    return res;
}

void llama_triattn_cells::forget(int32_t seq) {
    t[seq]        = 0;
    is_mixed[seq] = 0;
}

void llama_triattn_cells::unmark(uint32_t strm, uint32_t cell) {
    if (with.is_marked) {
        std::fill_n(ranks_of(strm, cell), with.n_set, INFINITY);
        std::fill_n(marks_of(strm, cell), with.n_set, 0);
    }
}

//
// what llama.cpp does
//

void llama_triattn_cells::clear() {
    for (int32_t s = 0; s < (int32_t) t.size(); ++s) {
        forget(s);
    }
}

void llama_triattn_cells::add(uint32_t strm, uint32_t cell, int32_t pos) {
    std::fill_n(&tokens[strm][(size_t) cell*with.n_set], with.n_set, pos);
    unmark(strm, cell);
}

bool llama_triattn_cells::is_all(int32_t seq, int32_t p0, int32_t p1) const {
    return p0 <= 0 && end_of(p1) > last(seq);
}

bool llama_triattn_cells::can_cut(int32_t seq, int32_t p0, int32_t p1) const {
    // before T, a set may hold other tokens in a cell than the one that the cell is named after
    return p0 >= t[seq] || is_all(seq, p0, p1) || n_used(seq) == 0;
}

void llama_triattn_cells::cut(int32_t seq, int32_t p0, int32_t p1) {
    if (is_all(seq, p0, p1)) {
        forget(seq);
    }
}

bool llama_triattn_cells::can_copy(int32_t src, int32_t, int32_t p0, int32_t p1) const {
    return t[src] == 0 || p0 >= t[src] || (p0 <= 0 && end_of(p1) >= t[src]);
}

void llama_triattn_cells::copy(int32_t src, int32_t dst, int32_t p0, int32_t) {
    const auto s0 = stream_of[src];
    const auto s1 = stream_of[dst];
    if (s0 != s1) {
        tokens[s1] = tokens[s0];
        ranks [s1] = ranks [s0];
        marks [s1] = marks [s0];
        t       [dst] = t       [src];
        is_mixed[dst] = is_mixed[src];
        return;
    }
    is_mixed[dst] |= is_mixed[src] || n_used(dst) > 0;
    if (p0 <= 0) {
        t[dst] = std::max(t[dst], t[src]);
    }
}

void llama_triattn_cells::keep(int32_t seq) {
    for (int32_t s = 0; s < (int32_t) n_seq(); ++s) {
        if (s != seq && stream_of[s] == stream_of[seq]) {
            forget(s);
        }
    }
}

//
// a round
//

std::pair<int32_t, uint32_t> llama_triattn_cells::window_first(int32_t seq) const {
    const auto & cells = of(seq);

    return *(cells.size() <= with.window ? cells.begin() : std::prev(cells.end(), with.window));
}

int32_t llama_triattn_cells::whole_from(int32_t seq) const {
    const auto & cells = of(seq);
    const auto   first = cells.find(window_first(seq));

    // of a picture's tokens, which share a position, some may have gone
    const bool is_split = first != cells.begin() && std::prev(first)->first == first->first;

    return first->first + is_split;
}

std::vector<int32_t> llama_triattn_cells::candidates(int32_t seq, const std::function<bool(uint32_t cell)> & is_pinned) const {
    const auto & labels = *streams[stream_of[seq]];

    std::unordered_map<int32_t, std::pair<int32_t, uint32_t>> ends;
    const auto window_of = [&](int32_t s) {
        const auto it = ends.find(s);
        return it != ends.end() ? it->second : ends[s] = window_first(s);
    };
    const auto all = seqs();

    std::vector<int32_t> res;
    for (const auto & cell : of(seq)) {
        if (cell.first < (int32_t) with.n_keep) {
            continue;
        }
        if (cell >= window_of(seq)) {
            break;
        }
        const uint32_t i = cell.second;
        if (is_pinned && is_pinned(i)) {
            continue;
        }
        if (labels.n_seq(i) == 1 || std::all_of(all.begin(), all.end(), [&](int32_t s) {
                return stream_of[s] != stream_of[seq] || !labels.has(i, s) || cell < window_of(s);
            })) {
            res.push_back(i);
        }
    }
    std::sort(res.begin(), res.end());
    return res;
}

std::vector<std::vector<uint32_t>> llama_triattn_cells::groups(uint32_t strm, const std::vector<int32_t> & cand) const {
    const auto & labels = *streams[strm];

    std::vector<int32_t> all;
    for (const auto s : seqs()) {
        if (stream_of[s] == strm) {
            all.push_back(s);
        }
    }

    std::map<std::vector<int32_t>, size_t> index; // by the sequences of a cell
    std::vector<std::vector<uint32_t>> res;

    for (uint32_t i = 0; i < cand.size(); ++i) {
        std::vector<int32_t> owners;
        std::copy_if(all.begin(), all.end(), std::back_inserter(owners), [&](int32_t s) { return labels.has(cand[i], s); });

        const auto [it, is_new] = index.emplace(std::move(owners), res.size());
        if (is_new) {
            res.emplace_back();
        }
        res[it->second].push_back(i);
    }
    return res;
}

void llama_triattn_cells::set_ranks(uint32_t strm, const std::vector<int32_t> & cand, const std::vector<float> & scores) {
    for (uint32_t set = 0; with.is_marked && set < with.n_set; ++set) {
        for (size_t i = 0; i < cand.size(); ++i) {
            ranks_of(strm, cand[i])[set] = scores[set*cand.size() + i];
        }
    }
}

void llama_triattn_cells::move(
        uint32_t strm, const std::vector<std::vector<int32_t>> & src, const std::vector<std::vector<int32_t>> & dst) {
    for (uint32_t set = 0; set < with.n_set; ++set) {
        for (size_t i = 0; i < src[set].size(); ++i) {
            const size_t from = (size_t) src[set][i]*with.n_set + set;
            const size_t to   = (size_t) dst[set][i]*with.n_set + set;

            tokens[strm][to] = tokens[strm][from];
            if (with.is_marked) {
                ranks[strm][to] = ranks[strm][from];
                marks[strm][to] = marks[strm][from];
            }
        }
    }
    // one set for all: cells keep the name of their token
    for (size_t i = 0; with.n_set == 1 && i < src[0].size(); ++i) {
        streams[strm]->copy(dst[0][i], src[0][i]);
    }
}

void llama_triattn_cells::free(uint32_t strm, const std::vector<int32_t> & cells) {
    auto & labels = *streams[strm];

    for (const auto s : seqs()) {
        if (stream_of[s] == strm && std::any_of(cells.begin(), cells.end(), [&](int32_t cell) { return labels.has(cell, s); })) {
            t[s] = std::max(t[s], whole_from(s));
        }
    }
    for (const int32_t cell : cells) {
        labels.clear(cell);
    }
}

//
// the cold tier
//

void llama_triattn_cells::bring_back(int32_t seq, const std::vector<placed> & of_set, uint8_t mark) {
    const uint32_t strm = stream_of[seq];

    for (uint32_t set = 0; set < with.n_set; ++set) {
        for (const auto & [token, cell] : of_set[set]) {
            tokens[strm][(size_t) cell*with.n_set + set] = token;
            if (with.is_marked) {
                ranks_of(strm, cell)[set] = -INFINITY;
                marks_of(strm, cell)[set] = mark;
            }
        }
    }
    if (with.n_set > 1) {
        return;
    }
    // one set for all: cells keep the name of their token
    for (const auto & [token, cell] : of_set[0]) {
        streams[strm]->clear(cell);
    }
    for (const auto & [token, cell] : of_set[0]) {
        streams[strm]->set (cell, token);
        streams[strm]->join(cell, seq);
    }
}

llama_triattn_cells::plan llama_triattn_cells::plan_cut(
        int32_t seq, int32_t p0, uint32_t n_max, const std::function<bool(int32_t pos)> & is_pinned) const {
    const uint32_t strm   = stream_of[seq];
    const uint32_t n      = std::min<uint32_t>(p0, n_max);
    const int32_t  n_keep = std::min<int32_t>(with.n_keep, p0);
    const int32_t  window = std::max<int32_t>(p0 - (int32_t) with.window, n_keep); // its first position

    std::vector<uint8_t> is_common(p0, 0); // all sets hold it
    for (int32_t p = 0; p < p0; ++p) {
        is_common[p] = p < n_keep || p >= window || (is_pinned && is_pinned(p));
    }
    const uint32_t n_free = n - std::count(is_common.begin(), is_common.end(), 1); // tokens of a set's choice

    plan res;
    res.whole = (int32_t) n < p0 ? window : 0;
    res.cells = available(seq, n);
    res.tokens.resize(with.n_set);

    for (uint32_t set = 0; set < with.n_set; ++set) {
        std::vector<std::pair<float, int32_t>> held;
        for (const auto & [label, cell] : of(seq)) {
            const int32_t p = token(strm, cell, set);
            if (p < p0 && !is_common[p]) {
                held.emplace_back(with.is_marked ? rank(strm, cell, set) : 0.0f, p);
            }
        }
        std::sort(held.begin(), held.end(), [](const auto & x, const auto & y) { return x.first != y.first ? x.first > y.first : x.second > y.second; });

        std::vector<uint8_t> is_taken(p0, 0);
        uint32_t n_taken = 0;
        for (size_t i = 0; i < held.size() && n_taken < n_free; ++i) {
            n_taken += !is_taken[held[i].second];
            is_taken[held[i].second] = 1;
        }
        for (int32_t p = window - 1; p >= n_keep && n_taken < n_free; --p) {
            n_taken += !is_taken[p] && !is_common[p];
            is_taken[p] = 1;
        }
        const auto take = [&](int32_t first, int32_t end, bool common) {
            for (int32_t p = first; p < end; ++p) {
                if (common ? is_common[p] : is_taken[p] && !is_common[p]) {
                    res.tokens[set].push_back(p);
                }
            }
        };
        take(0, window, true);
        take(0, window, false);
        take(window, p0, true);
    }
    return res;
}

void llama_triattn_cells::drop(int32_t seq) {
    const auto owned = of(seq);
    for (const auto & [label, cell] : owned) {
        streams[stream_of[seq]]->leave(cell, seq);
    }
    forget(seq);
}

void llama_triattn_cells::replace(int32_t seq, const plan & p) {
    const uint32_t strm = stream_of[seq];

    drop(seq);

    for (size_t i = 0; i < p.cells.size(); ++i) {
        // what all sets have comes before and behind the rest, and so lies in the same cells
        streams[strm]->set (p.cells[i], p.tokens[0][i]);
        streams[strm]->join(p.cells[i], seq);
        for (uint32_t set = 0; set < with.n_set; ++set) {
            tokens[strm][(size_t) p.cells[i]*with.n_set + set] = p.tokens[set][i];
        }
        unmark(strm, p.cells[i]);
    }
    t[seq] = p.whole;
}

const char * llama_triattn_cells::why_wrong(int32_t label, int32_t whole, int32_t token) const {
    if (label >= whole && token != label) {
        return "a cell from T on holds another token";
    }
    if (label < whole && (token < 0 || token >= whole)) {
        return "a cell before T holds a token that is not before T";
    }
    if (with.n_set == 1 && token != label) {
        return "a cell is not named after its token";
    }
    return nullptr;
}

//
// states
//

static void require(bool ok, const char * why) {
    if (!ok) {
        throw std::runtime_error(std::string("the saved state cannot be restored: ") + why);
    }
}

template <typename T>
static void write_value(const llama_triattn_cells::writer & write, const T & value) {
    write(&value, sizeof(value));
}

template <typename T>
static T read_value(const llama_triattn_cells::reader & read) {
    T value;
    read(&value, sizeof(value));
    return value;
}

std::vector<uint32_t> llama_triattn_cells::used(uint32_t strm, int32_t seq) const {
    const auto & labels = *streams[strm];

    std::vector<uint32_t> res;
    for (uint32_t i = 0; i < labels.size(); ++i) {
        if (!labels.is_empty(i) && (seq < 0 || labels.has(i, seq))) {
            res.push_back(i);
        }
    }
    return res;
}

void llama_triattn_cells::save(const writer & write, uint32_t strm, int32_t seq) const {
    const auto & labels = *streams[strm];
    const auto   cells  = used(strm, seq);

    write_value<uint32_t>(write, cells.size());
    for (const auto i : cells) {
        std::vector<int32_t> ids;
        for (int32_t s = 0; seq < 0 && s < (int32_t) n_seq(); ++s) {
            if (stream_of[s] == strm && labels.has(i, s)) {
                ids.push_back(s);
            }
        }
        write_value<uint32_t>(write, i);
        write_value<int32_t> (write, labels.pos(i));
        write(labels.extra(i), labels.extra_size());
        write_value<uint32_t>(write, ids.size());
        if (!ids.empty()) {
            write(ids.data(), ids.size()*sizeof(int32_t));
        }
        write(&tokens[strm][(size_t) i*with.n_set], with.n_set*sizeof(int32_t));
    }
    if (seq >= 0) {
        write_value(write, t[seq]);
    } else {
        write(t.data(), t.size()*sizeof(int32_t));
    }
}

llama_triattn_cells::saved llama_triattn_cells::load(const reader & read, uint32_t strm, int32_t seq) const {
    const auto & labels = *streams[strm];

    saved res;
    const uint32_t n_cells = read_value<uint32_t>(read);
    require(n_cells <= labels.size(), "it holds more cells than the cache has");

    res.cells.resize(n_cells);
    for (uint32_t i = 0; i < n_cells; ++i) {
        auto & c = res.cells[i];
        c.idx = read_value<uint32_t>(read);
        c.pos = read_value<int32_t>(read);
        c.extra.resize(labels.extra_size());
        read(c.extra.data(), c.extra.size());
        const uint32_t n_id = read_value<uint32_t>(read);
        require(n_id <= t.size() && c.pos >= 0 && (i == 0 || res.cells[i - 1].idx < c.idx), "it is damaged");
        c.seqs.resize(n_id);
        if (n_id > 0) {
            read(c.seqs.data(), n_id*sizeof(int32_t));
        }
        for (const auto s : c.seqs) {
            require(s >= 0 && s < (int32_t) n_seq() && stream_of[s] == strm, "it names a sequence that this context has not");
        }
        if (seq >= 0) {
            c.seqs = { seq };
        }
        c.tokens.resize(with.n_set);
        read(c.tokens.data(), with.n_set*sizeof(int32_t));
    }
    res.whole.resize(seq < 0 ? t.size() : 1);
    read(res.whole.data(), res.whole.size()*sizeof(int32_t));
    require(seq < 0 || n_cells > 0 || res.whole[0] == 0, "it is damaged");

    for (const auto & c : res.cells) {
        for (const auto s : c.seqs) {
            const int32_t whole = res.whole[seq < 0 ? s : 0];
            for (const auto token : c.tokens) {
                require(!why_wrong(c.pos, whole, token), "it is damaged");
            }
        }
    }
    return res;
}

std::vector<uint32_t> llama_triattn_cells::restore(const saved & state, uint32_t strm, int32_t seq, bool & in_place) {
    auto & labels = *streams[strm];

    in_place = std::all_of(state.cells.begin(), state.cells.end(), [&](const saved::cell & c) {
        return c.idx < labels.size() && labels.is_empty(c.idx);
    });

    std::vector<uint32_t> res;
    for (size_t i = 0; in_place && i < state.cells.size(); ++i) {
        res.push_back(state.cells[i].idx);
    }
    for (uint32_t i = 0; !in_place && i < labels.size() && res.size() < state.cells.size(); ++i) {
        if (labels.is_empty(i)) {
            res.push_back(i);
        }
    }
    if (res.size() < state.cells.size()) {
        return res;
    }

    for (size_t i = 0; i < res.size(); ++i) {
        const auto & c = state.cells[i];
        labels.set(res[i], c.pos);
        labels.set_extra(res[i], c.extra.data());
        for (const auto s : c.seqs) {
            labels.join(res[i], s);
        }
        std::copy(c.tokens.begin(), c.tokens.end(), &tokens[strm][(size_t) res[i]*with.n_set]);
        unmark(strm, res[i]);
    }

    for (int32_t s = 0; s < (int32_t) t.size(); ++s) {
        if (seq < 0 || s == seq) {
            t[s]        = state.whole[seq < 0 ? s : 0];
            is_mixed[s] = 1; // a state does not say, nor with what settings it was made
        }
    }
    return res;
}

//
// what holds
//

std::string llama_triattn_cells::check() const {
    const auto at = [](int32_t seq, uint32_t cell) {
        return " (sequence " + std::to_string(seq) + ", cell " + std::to_string(cell) + ")";
    };
    for (int32_t s = 0; s < (int32_t) n_seq(); ++s) {
        const uint32_t strm = stream_of[s];

        if (of(s).empty() && t[s] != 0) {
            return "a sequence without cells has T" + at(s, 0);
        }
        std::vector<std::set<int32_t>> seen(with.n_set);
        for (const auto & [label, cell] : of(s)) {
            for (uint32_t set = 0; set < with.n_set; ++set) {
                const int32_t p = token(strm, cell, set);
                if (const char * why = why_wrong(label, t[s], p)) {
                    return why + at(s, cell);
                }
                if (label < (int32_t) with.n_keep && p != label && !is_mixed[s]) {
                    return "one of the first tokens, which stay, is gone" + at(s, cell);
                }
                if (with.is_marked && label >= t[s] && mark(strm, cell, set) != 0) {
                    return "a token from T on was recalled" + at(s, cell);
                }
                if (with.is_unique && !is_mixed[s] && !seen[set].insert(p).second) {
                    return "a set holds a token twice" + at(s, cell);
                }
            }
        }
    }
    return "";
}
