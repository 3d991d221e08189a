#include "llama-triattn-pin.h"

#include "llama-triattn-cache.h"

#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

const std::vector<llama_triattn_pins::range> & llama_triattn_pins::ranges(llama_seq_id seq_id) const {
    static const std::vector<range> none;

    const auto it = seqs.find(seq_id);
    return it == seqs.end() ? none : it->second;
}

void llama_triattn_pins::add(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (p0 >= p1) {
        return;
    }
    std::vector<range> res;
    for (const auto & r : ranges(seq_id)) {
        if (r.second < p0 || r.first > p1) {
            res.push_back(r);
        } else {
            p0 = std::min(p0, r.first);
            p1 = std::max(p1, r.second);
        }
    }
    res.emplace_back(p0, p1);
    std::sort(res.begin(), res.end());
    seqs[seq_id] = std::move(res);
}

void llama_triattn_pins::remove(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    if (p0 >= p1) {
        return;
    }
    std::vector<range> res;
    for (const auto & r : ranges(seq_id)) {
        const range before = { r.first, std::min(r.second, p0) };
        const range behind = { std::max(r.first, p1), r.second };
        for (const auto & part : { before, behind }) {
            if (part.first < part.second) {
                res.push_back(part);
            }
        }
    }
    if (res.empty()) {
        seqs.erase(seq_id);
    } else {
        seqs[seq_id] = std::move(res);
    }
}

void llama_triattn_pins::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst, llama_pos p0, llama_pos p1) {
    const auto copied = ranges(seq_id_src);

    seqs.erase(seq_id_dst);
    for (const auto & r : copied) {
        add(seq_id_dst, std::max(r.first, p0), std::min(r.second, p1));
    }
}

bool llama_triattn_pins::has(llama_seq_id seq_id, llama_pos pos) const {
    const auto & all = ranges(seq_id);
    return std::any_of(all.begin(), all.end(), [pos](const range & r) { return pos >= r.first && pos < r.second; });
}

uint32_t llama_triattn_pins::count(llama_seq_id seq_id, llama_pos n_keep) const {
    llama_pos res = n_keep;
    for (const auto & r : ranges(seq_id)) {
        res += std::max(0, r.second - std::max(r.first, n_keep));
    }
    return res;
}

//
// in a cache
//
// A round takes no cell whose name is a pinned position. Such a cell holds that token in all heads, since a position is pinned
// only while all heads have it, and so it stays.

static llama_pos end_of(llama_pos p1) {
    return p1 < 0 ? std::numeric_limits<llama_pos>::max() : p1;
}

uint32_t llama_triattn::n_protected(llama_seq_id seq_id, const llama_triattn_pins & pins) const {
    const auto & labels = cells->labels(cells->stream(seq_id));

    uint32_t res = pins.count(seq_id, params.n_keep);
    for (const auto & [p, cell] : cells->of(seq_id)) {
        const bool is_own = p < (llama_pos) params.n_keep || pins.has(seq_id, p);
        res += !is_own && labels.n_seq(cell) > 1 && is_pinned(cells->stream(seq_id), cell, pins);
    }
    return res;
}

int32_t llama_triattn::pin(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    p0 = std::max(p0, 0);
    if (p1 <= p0) {
        throw std::runtime_error(format("there is nothing to pin in [%d, %d)", p0, p1));
    }
    auto changed = pins;
    // what heads have evicted is not there to be pinned, but for what no round has taken
    changed.add(seq_id, std::max(p0, cells->whole(seq_id)), p1);
    changed.add(seq_id, p0, std::min(p1, (llama_pos) params.n_keep));

    auto all = cells->seqs();
    if (std::find(all.begin(), all.end(), seq_id) == all.end()) {
        all.push_back(seq_id);
    }
    for (const auto s : all) {
        const uint32_t n = n_protected(s, changed);
        if (n + params.window >= params.budget && (s == seq_id || n > n_protected(s, pins))) {
            throw std::runtime_error(format("%u pinned and first tokens of sequence %d, and a window of %u, leave nothing of a budget of %u",
                    n, s, params.window, params.budget));
        }
    }
    pins = std::move(changed);

    int32_t res = 0;
    for (const auto & r : pins.ranges(seq_id)) {
        res += std::max(0, std::min(r.second, p1) - std::max(r.first, p0));
    }
    return res;
}

void llama_triattn::unpin(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    pins.remove(seq_id, std::max(p0, 0), end_of(p1));
}

uint32_t llama_triattn::n_pinned(llama_seq_id seq_id) const {
    uint32_t res = 0;
    for (const auto & [p, cell] : cells->of(seq_id)) {
        res += pins.has(seq_id, p);
    }
    return res;
}

bool llama_triattn::is_pinned(uint32_t strm, uint32_t cell, const llama_triattn_pins & pins) const {
    const auto &    labels = cells->labels(strm);
    const llama_pos p      = labels.pos(cell);

    return std::any_of(pins.all().begin(), pins.all().end(), [&](const auto & it) {
        return labels.has(cell, it.first) && pins.has(it.first, p);
    });
}

void llama_triattn::write_pins(llama_io_write_i & io, llama_seq_id seq_id) const {
    for (llama_seq_id s = std::max(seq_id, 0); s < (llama_seq_id) (seq_id < 0 ? kv.seq_to_stream.size() : seq_id + 1); ++s) {
        const auto &   ranges = pins.ranges(s);
        const uint32_t n      = ranges.size();
        io.write(&n, sizeof(n));
        for (const auto & r : ranges) {
            io.write(&r.first,  sizeof(r.first));
            io.write(&r.second, sizeof(r.second));
        }
    }
}

std::vector<std::vector<llama_triattn_pins::range>> llama_triattn::read_pins(llama_io_read_i & io, llama_seq_id seq_id) const {
    std::vector<std::vector<llama_triattn_pins::range>> res(seq_id < 0 ? kv.seq_to_stream.size() : 1);
    for (auto & ranges : res) {
        uint32_t n = 0;
        io.read(&n, sizeof(n));
        for (uint32_t i = 0; i < n; ++i) { // reading beyond a damaged state's end throws
            llama_triattn_pins::range r;
            io.read(&r.first,  sizeof(r.first));
            io.read(&r.second, sizeof(r.second));
            ranges.push_back(r);
        }
    }
    return res;
}

void llama_triattn::take_pins(llama_seq_id seq_id, const std::vector<std::vector<llama_triattn_pins::range>> & saved) {
    for (size_t i = 0; i < saved.size(); ++i) {
        const llama_seq_id s = seq_id < 0 ? i : seq_id;

        unpin(s, 0, -1);
        for (const auto & r : saved[i]) {
            if (r.first >= 0) {
                pins.add(s, r.first, r.second);
            }
        }
        if (pins.count(s, params.n_keep) + params.window >= params.budget) {
            LLAMA_LOG_WARN("%s: sequence %d: what was pinned when it was saved does not fit a budget of %u: nothing of it is pinned now\n",
                    __func__, s, params.budget);
            unpin(s, 0, -1);
        }
    }
}
