#include "llama-triattn-cache.h"

#include "llama-context.h"
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

// the cells of a sliding-window cache that llama_kv_cache::state_write takes, in its order
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

uint32_t llama_triattn::row_layout() const {
    return (uint32_t) kv.attn_rot_k | (uint32_t) kv.attn_rot_v << 1 | (uint32_t) is_long_rope << 2;
}

void llama_triattn::make_room(llama_seq_id seq_id, uint32_t n_free) {
    for (const auto s : cells->seqs()) {
        if (cells->available(seq_id, n_free).size() == n_free) {
            return;
        }
        if (lctx && s != seq_id && cells->stream(s) == cells->stream(seq_id) && n_used(s) > params.budget) {
            lctx->synchronize();
            request(*lctx, [&] { return evict(*lctx, s, params.budget, true); });
        }
    }
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
        const auto idxs = cells->used(s, seq_id);

        write_value<uint32_t>(io, kv.v_heads[s]);
        cells->save([&](const void * data, size_t size) { io.write(data, size); }, s, seq_id);

        write_pins(io, seq_id);
        write_attention(io, seq_id);
        const uint32_t with_cold = store && seq_id >= 0;
        write_value<uint32_t>(io, with_cold);
        if (with_cold) {
            write_cold(io, seq_id, idxs);
        }

        llama_kv_cache::cell_ranges_t ranges { s, {} };
        for (const auto i : idxs) {
            if (ranges.data.empty() || ranges.data.back().second != i) {
                ranges.data.emplace_back(i, i);
            }
            ranges.data.back().second = i + 1;
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

        const uint32_t head  = read_value<uint32_t>(io);
        const auto     saved = cells->load([&](void * data, size_t size) { io.read(data, size); }, strm, seq_id);

        const uint32_t n_cells = saved.cells.size();
        require(head <= kv.get_size(), "it is damaged");

        const auto pinned   = version > 4 ? read_pins(io, seq_id) : saved_pins();
        const auto attended = version > 4 ? read_attention(io)    : attention_state();
        cold_state cold;
        if (version > 2 && read_value<uint32_t>(io)) {
            cold = read_cold(io, n_cells, version);
        }

        if (seq_id >= 0) {
            make_room(seq_id, n_cells);
            require(cells->available(seq_id, n_cells).size() == n_cells, "the cache has too few free cells; the sequence was left as it is");
            kv.seq_rm(seq_id, -1, -1);
        }
        slot_info sinfo;
        sinfo.s0 = strm;
        sinfo.s1 = strm;
        sinfo.resize(1);
        sinfo.strm[0] = strm;

        bool in_place = false;
        auto & idxs = sinfo.idxs[0];
        idxs = cells->restore(saved, strm, seq_id, in_place);
        require(idxs.size() == n_cells, "the cache has too few free cells");

        take_pins(seq_id, pinned);
        take_attention(seq_id, attended);
        for (const auto id : cells->seqs()) {
            if (store && (seq_id < 0 || id == seq_id) && cells->stream(id) == strm) {
                take_cold(id, cold, idxs);
            }
        }
        if (in_place && (seq_id < 0 || kv.v_cells[strm].get_used() == n_cells)) {
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
        if (!idxs.empty()) {
            io.write(idxs.data(), idxs.size()*sizeof(uint32_t));
        }
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
