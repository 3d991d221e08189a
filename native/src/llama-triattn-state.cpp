#include "llama-triattn-cache.h"

#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <stdexcept>

// Saving and restoring what an evicting cache holds.
//
// header (with how rows lie in this cache) | for each stream: head, cells (index, position, ext, sequences), tokens of the sets | T |
// what is pinned | recorded queries where there is no cold tier, what h2o has added up | of the cold tier: the number that it retains
// the sequence under, where its rows lie in a file, marks of the cells, recorded queries | K and V as upstream writes them
//
// What the cold tier holds is not in a state. While the context lives it keeps what a state was saved with, as memory allows;
// for others, and for later, it is in a file if it was written there before the state was taken.
//
// Cells are restored where they were if those are free, since the sums of attention depend on the order of the cells: then a
// restored sequence continues bit for bit.

static const uint32_t STATE_MAGIC   = 0x41495254; // "TRIA"
static const uint32_t STATE_VERSION = 5; // 4: without what is pinned and attended to; 3: without where the cold tier's rows lie; 2: without its number

template <typename T>
static void write_value(llama_io_write_i & io, const T & value) {
    io.write(&value, sizeof(value));
}

template <typename T>
static T read_value(llama_io_read_i & io) {
    T value;
    io.read(&value, sizeof(value));
    return value;
}

static void require(bool ok, const char * why) {
    if (!ok) {
        throw std::runtime_error(std::string("the saved state cannot be restored: ") + why);
    }
}

// the cells that llama_kv_cache::state_write takes, in its order
static std::vector<uint32_t> written_cells(const llama_kv_cells & cells, llama_seq_id seq_id, uint32_t n_swa, llama_swa_type swa_type) {
    std::vector<uint32_t> res;
    for (uint32_t i = 0; i < cells.size(); ++i) {
        if (cells.is_empty(i) || (seq_id >= 0 && !cells.seq_has(i, seq_id))) {
            continue;
        }
        if (seq_id >= 0 && llama_hparams::is_masked_swa(n_swa, swa_type, cells.pos_get(i), cells.seq_pos_max(seq_id))) {
            continue;
        }
        res.push_back(i);
    }
    return res;
}

void llama_triattn::state_write(llama_io_write_i & io, llama_seq_id seq_id) const {
    write_value<uint32_t>(io, STATE_MAGIC);
    write_value<uint32_t>(io, STATE_VERSION);
    write_value<uint32_t>(io, kv.n_stream);
    write_value<uint32_t>(io, n_set);
    write_value<uint32_t>(io, row_layout());

    const uint32_t s0 = seq_id < 0 ? 0           : kv.seq_to_stream[seq_id];
    const uint32_t s1 = seq_id < 0 ? kv.n_stream : s0 + 1;

    write_value<uint32_t>(io, s1 - s0);

    for (uint32_t s = s0; s < s1; ++s) {
        const auto & cells = kv.v_cells[s];

        llama_kv_cache::cell_ranges_t ranges { s, {} };
        const auto idxs = written_cells(cells, seq_id, kv.n_swa, kv.swa_type);
        for (const auto i : idxs) {
            if (ranges.data.empty() || ranges.data.back().second != i) {
                ranges.data.emplace_back(i, i);
            }
            ranges.data.back().second = i + 1;
        }

        write_value<uint32_t>(io, kv.v_heads[s]);
        write_value<uint32_t>(io, idxs.size());

        for (const auto i : idxs) {
            std::vector<llama_seq_id> ids;
            for (llama_seq_id id = 0; seq_id < 0 && id < LLAMA_MAX_SEQ; ++id) {
                if (cells.seq_has(i, id)) {
                    ids.push_back(id);
                }
            }
            write_value<uint32_t>(io, i);
            write_value<llama_pos>(io, cells.pos_get(i));
            write_value(io, cells.ext_get(i));
            write_value<uint32_t>(io, ids.size());
            io.write(ids.data(), ids.size()*sizeof(llama_seq_id));
            io.write(&pos[s][(size_t) i*n_set], n_set*sizeof(llama_pos));
        }

        // T: of the one sequence, or of all
        if (seq_id >= 0) {
            write_value<llama_pos>(io, whole[seq_id]);
        } else {
            io.write(whole.data(), whole.size()*sizeof(llama_pos));
        }
        write_pins(io, seq_id);
        write_attention(io, seq_id);
        const uint32_t with_cold = store && seq_id >= 0;
        write_value<uint32_t>(io, with_cold);
        if (with_cold) {
            write_cold(io, seq_id, idxs);
        }

        if (!idxs.empty()) {
            kv.state_write_data(io, ranges);
        }
    }
}

void llama_triattn::state_read(llama_io_read_i & io, llama_seq_id seq_id) {
    require(read_value<uint32_t>(io) == STATE_MAGIC,   "it was saved by a context without eviction");
    const uint32_t version = read_value<uint32_t>(io);
    require(version >= 2 && version <= STATE_VERSION,  "its version is not known here");
    const uint32_t n_stream = read_value<uint32_t>(io);
    require(read_value<uint32_t>(io) == n_set,         "it was saved in another mode, or of another model");
    require(read_value<uint32_t>(io) == row_layout(),
            "its rows lie otherwise (LLAMA_ATTN_ROT_DISABLE, or another side of the context that long RoPE factors begin at)");
    const uint32_t n_saved  = read_value<uint32_t>(io);
    require(n_saved == (seq_id < 0 ? kv.n_stream : 1), "it was saved with another number of streams, or is of one sequence only");
    require(seq_id >= 0 || n_stream == kv.n_stream,    "it was saved with another number of streams");

    if (seq_id < 0) {
        kv.clear(true);
    }
    try {
        state_read_streams(io, seq_id, n_saved, version);
    } catch (...) {
        if (seq_id < 0) {
            kv.clear(true); // no stream without the others
        }
        throw;
    }
}

// Of a single sequence, what it held before is only given up once all is read that can be wrong and there is room.
void llama_triattn::state_read_streams(llama_io_read_i & io, llama_seq_id seq_id, uint32_t n_saved, uint32_t version) {
    for (uint32_t s = 0; s < n_saved; ++s) {
        const uint32_t strm = seq_id < 0 ? s : kv.seq_to_stream[seq_id];

        auto & cells = kv.v_cells[strm];

        struct saved_cell {
            uint32_t idx;
            llama_pos pos;
            llama_kv_cell_ext ext;
            std::vector<llama_seq_id> ids;
            std::vector<llama_pos>    tokens;
        };

        const uint32_t head    = read_value<uint32_t>(io);
        const uint32_t n_cells = read_value<uint32_t>(io);
        require(n_cells <= cells.size(), "it holds more cells than the cache has");
        require(head    <= cells.size(), "it is damaged");

        std::vector<saved_cell> saved(n_cells);
        for (uint32_t i = 0; i < n_cells; ++i) {
            auto & c = saved[i];
            c.idx = read_value<uint32_t>(io);
            c.pos = read_value<llama_pos>(io);
            c.ext = read_value<llama_kv_cell_ext>(io);
            const uint32_t n_id = read_value<uint32_t>(io);
            require(n_id <= LLAMA_MAX_SEQ && c.pos >= 0 && (i == 0 || saved[i - 1].idx < c.idx), "it is damaged");
            c.ids.resize(n_id);
            io.read(c.ids.data(), n_id*sizeof(llama_seq_id));
            for (const auto id : c.ids) {
                require(id >= 0 && (size_t) id < kv.seq_to_stream.size() && kv.seq_to_stream[id] == strm, "it names a sequence that this context has not");
            }
            if (seq_id >= 0) {
                c.ids = { seq_id };
            }
            c.tokens.resize(n_set);
            io.read(c.tokens.data(), n_set*sizeof(llama_pos));
        }

        std::vector<llama_pos> t(seq_id < 0 ? whole.size() : 1);
        io.read(t.data(), t.size()*sizeof(llama_pos));
        const auto pinned   = version > 4 ? read_pins(io, seq_id) : saved_pins();
        const auto attended = version > 4 ? read_attention(io)    : attention_state();
        cold_state cold;
        if (version > 2 && read_value<uint32_t>(io)) {
            cold = read_cold(io, n_cells, version);
        }

        if (seq_id >= 0) {
            make_room(seq_id, n_cells);
            require(n_free_without(seq_id) >= n_cells, "the cache has too few free cells; the sequence was left as it is");
            kv.seq_rm(seq_id, -1, -1);
        }
        const bool in_place = std::all_of(saved.begin(), saved.end(), [&](const saved_cell & c) {
            return c.idx < cells.size() && cells.is_empty(c.idx);
        });

        slot_info sinfo;
        sinfo.s0 = strm;
        sinfo.s1 = strm;
        sinfo.resize(1);
        sinfo.strm[0] = strm;

        auto & idxs = sinfo.idxs[0];
        for (uint32_t i = 0; in_place && i < n_cells; ++i) {
            idxs.push_back(saved[i].idx);
        }
        for (uint32_t i = 0; !in_place && i < cells.size() && idxs.size() < n_cells; ++i) {
            if (cells.is_empty(i)) {
                idxs.push_back(i);
            }
        }
        require(idxs.size() == n_cells, "the cache has too few free cells");

        for (uint32_t i = 0; i < n_cells; ++i) {
            const auto & c = saved[i];
            cells.pos_set(idxs[i], c.pos);
            cells.ext_set(idxs[i], c.ext);
            for (const auto id : c.ids) {
                cells.seq_add(idxs[i], id);
            }
            std::copy(c.tokens.begin(), c.tokens.end(), &pos_at(strm, idxs[i], 0));
            unmark(strm, idxs[i]);
        }

        if (seq_id < 0) {
            whole = t;
        } else {
            whole[seq_id] = t[0];
        }
        take_pins(seq_id, pinned);
        take_attention(seq_id, attended);
        for (const auto id : seqs()) {
            if (store && (seq_id < 0 || id == seq_id) && kv.seq_to_stream[id] == strm) {
                take_cold(id, cold, idxs);
            }
        }
        if (in_place && (seq_id < 0 || cells.get_used() == n_cells)) {
            kv.v_heads[strm] = head;
        }

        if (n_cells == 0) {
            continue;
        }

        bool ok = false;
        try {
            ok = kv.state_read_data(io, strm, n_cells, sinfo);
        } catch (...) {
            ok = false;
        }
        if (!ok) {
            kv.state_clear(seq_id);
            throw std::runtime_error("failed to restore kv cache");
        }
    }
}

void llama_triattn::write_layout(const llama_kv_cache & kv, llama_io_write_i & io, llama_seq_id seq_id) {
    for (uint32_t s = 0; s < kv.n_stream; ++s) {
        const auto idxs = written_cells(kv.v_cells[s], seq_id, kv.n_swa, kv.swa_type);

        write_value<uint32_t>(io, kv.v_heads[s]);
        write_value<uint32_t>(io, idxs.size());
        io.write(idxs.data(), idxs.size()*sizeof(uint32_t));
    }
}

void llama_triattn::read_in_place(llama_kv_cache & kv, llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    llama_kv_cache::slot_info_vec_t sinfos(kv.n_stream);

    if (seq_id >= 0) {
        kv.seq_rm(seq_id, -1, -1);
    }

    uint32_t head = 0;
    bool in_place = seq_id >= 0; // upstream restores a whole context from cell 0 on
    for (uint32_t s = 0; s < kv.n_stream; ++s) {
        const uint32_t head_s = read_value<uint32_t>(io);
        const uint32_t n      = read_value<uint32_t>(io);
        require(n <= kv.get_size() && head_s <= kv.get_size(), "the sliding-window part has more cells than the cache");
        if (n == 0) {
            continue;
        }
        std::vector<uint32_t> idxs(n);
        io.read(idxs.data(), n*sizeof(uint32_t));
        if (seq_id < 0) {
            continue;
        }
        const auto strm = kv.seq_to_stream[seq_id];
        for (const auto i : idxs) {
            in_place = in_place && i < kv.get_size() && kv.v_cells[strm].is_empty(i);
        }
        head = head_s;

        auto & sinfo = sinfos[s];
        sinfo.s0 = sinfo.s1 = strm;
        sinfo.resize(1);
        sinfo.strm[0] = strm;
        sinfo.idxs[0] = std::move(idxs);
    }

    kv.state_read_sinfo(io, seq_id, flags, nullptr, in_place ? &sinfos : nullptr);
    if (in_place) {
        // masked cells are not saved, so fewer are used now than when the head came to where it was
        kv.v_heads[kv.seq_to_stream[seq_id]] = head;
        kv.triattn_in_place = true;
    }
}
