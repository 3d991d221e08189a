#include "llama-triattn-store.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

static const std::align_val_t ALIGNMENT { 64 };

struct llama_triattn_store::slab {
    struct deleter {
        void operator()(uint8_t * p) const { ::operator delete(p, ALIGNMENT); }
    };
    std::unique_ptr<uint8_t, deleter> data;

    size_t size = 0;

    std::shared_ptr<uint64_t> bytes_held;

    ~slab() {
        if (bytes_held) {
            *bytes_held -= size;
        }
    }
};

llama_triattn_store::llama_triattn_store(
        std::vector<llama_triattn_row_sizes> layers_, uint32_t n_seq, uint32_t n_keep, uint64_t n_bytes_max) :
    layers(std::move(layers_)), n_keep(n_keep), bytes_max(n_bytes_max), n_tokens(N_SLAB), seqs(n_seq), bytes_held(std::make_shared<uint64_t>(0)) {
    for (const auto & l : layers) {
        bytes_token += l.n_head_kv*(l.k + l.v);
    }
    // of a small store a slab is an eighth at most
    while (n_tokens > N_BLOCK && n_tokens*bytes_token > bytes_max/8) {
        n_tokens /= 2;
    }
    size_t offset = 0;
    for (const auto & l : layers) {
        offsets.push_back(offset);
        offset += l.n_head_kv*(l.k + l.v)*n_tokens;
    }
    offsets.push_back(offset);
}

llama_triattn_store::~llama_triattn_store() = default;

uint64_t llama_triattn_store::n_bytes() const {
    return *bytes_held;
}

std::shared_ptr<llama_triattn_store::slab> llama_triattn_store::new_slab() const {
    const size_t size = offsets.back();

    const char * env = getenv("LLAMA_TRIATTN_FAIL_STORE"); // for tests: no memory after so many slabs
    if (*bytes_held + size > bytes_max || (env && *bytes_held/size >= (uint64_t) atoll(env))) {
        return nullptr;
    }
    auto res = std::make_shared<slab>();
    res->data.reset((uint8_t *) ::operator new(size, ALIGNMENT, std::nothrow));
    if (!res->data) {
        return nullptr;
    }
    res->size       = size;
    res->bytes_held = bytes_held;
    *bytes_held += size;
    return res;
}

bool llama_triattn_store::has(llama_seq_id seq_id, llama_pos pos) const {
    const auto & seq = seqs[seq_id];
    return pos >= 0 && pos < seq.size && seq.places[pos/N_BLOCK].slab >= 0;
}

bool llama_triattn_store::own(sequence & seq, int32_t i_slab) {
    auto & mem = seq.slabs[i_slab].mem;
    if (mem.use_count() == 1) {
        return true;
    }
    auto copy = new_slab();
    if (!copy) {
        return false;
    }
    memcpy(copy->data.get(), mem->data.get(), mem->size);
    mem = std::move(copy);
    return true;
}

llama_triattn_store::place llama_triattn_store::take(sequence & seq, uint32_t n_live) {
    for (size_t i = seq.slabs.size(); i-- > 0;) {
        auto & blocks = seq.slabs[i].blocks;
        const auto it = std::find(blocks.begin(), blocks.end(), -1);
        // another sequence takes the free stripes of a slab that it shares as well
        if (it != blocks.end() && seq.slabs[i].mem.use_count() == 1) {
            return { (int32_t) i, (int32_t) (it - blocks.begin()) };
        }
    }
    if (auto mem = new_slab()) {
        seq.slabs.push_back({ std::move(mem), std::vector<int32_t>(n_tokens/N_BLOCK, -1) });
        return { (int32_t) seq.slabs.size() - 1, 0 };
    }

    const int64_t first = (n_keep + N_BLOCK - 1)/N_BLOCK;
    const int64_t end   = ((int64_t) seq.size - n_live)/N_BLOCK;

    int64_t least = -1;
    for (int64_t b = first; b < end; ++b) {
        const auto & p = seq.places[b];
        if (p.slab >= 0 && seq.slabs[p.slab].mem.use_count() == 1 && (least < 0 || seq.worth[b] < seq.worth[least])) {
            least = b;
        }
    }
    if (least < 0) {
        return {};
    }
    const auto res = seq.places[least];
    seq.places[least] = {};
    seq.slabs[res.slab].blocks[res.stripe] = -1;
    seq.is_whole = false;
    destroyed += N_BLOCK;
    return res;
}

bool llama_triattn_store::append(llama_seq_id seq_id, uint32_t n, uint32_t n_live) {
    auto & seq = seqs[seq_id];

    const llama_pos size = seq.size;
    const llama_pos end  = size + (llama_pos) n;

    // a block that is begun is written on
    const bool is_begun = size % N_BLOCK != 0 && seq.places[size/N_BLOCK].slab >= 0;
    bool ok = !is_begun || own(seq, seq.places[size/N_BLOCK].slab);

    for (llama_pos b = (size + N_BLOCK - 1)/N_BLOCK; ok && b*(llama_pos) N_BLOCK < end; ++b) {
        const auto p = take(seq, n_live);
        ok = p.slab >= 0;
        if (ok) {
            seq.places.resize(b + 1);
            seq.worth .resize(b + 1, 0.0f);
            seq.places[b] = p;
            seq.worth [b] = 0.0f;
            seq.slabs[p.slab].blocks[p.stripe] = b;
            seq.size = std::min(end, (b + 1)*(llama_pos) N_BLOCK); // later blocks see this one as live
        }
    }
    if (!ok) {
        cut(seq_id, size);
        return false;
    }
    seq.size = end;
    return true;
}

llama_pos llama_triattn_store::skip_to(llama_seq_id seq_id, llama_pos pos) {
    auto & seq = seqs[seq_id];
    if (pos <= seq.size) {
        return seq.size;
    }
    // the rows of a block that lie before pos are not here, so that those behind it cannot be either
    cut(seq_id, seq.size/N_BLOCK*N_BLOCK);

    seq.size     = (pos + N_BLOCK - 1)/N_BLOCK*N_BLOCK;
    seq.is_whole = false;
    seq.places.resize(seq.size/N_BLOCK);
    seq.worth .resize(seq.size/N_BLOCK, 0.0f);
    return seq.size;
}

uint8_t * llama_triattn_store::row(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos) {
    const auto & seq = seqs[seq_id];
    const auto & p   = seq.places[pos/N_BLOCK];
    const auto & l   = layers[i_layer];

    const size_t i    = p.stripe*N_BLOCK + pos % N_BLOCK;
    const size_t of_v = is_v ? l.n_head_kv*l.k*n_tokens : 0;

    return seq.slabs[p.slab].mem->data.get() + offsets[i_layer] + of_v + (head_kv*n_tokens + i)*(is_v ? l.v : l.k);
}

void llama_triattn_store::cut(llama_seq_id seq_id, llama_pos pos) {
    auto & seq = seqs[seq_id];

    const llama_pos size     = std::max(pos, 0);
    const size_t    n_blocks = (size + N_BLOCK - 1)/N_BLOCK;

    for (size_t b = n_blocks; b < seq.places.size(); ++b) {
        if (seq.places[b].slab >= 0) {
            seq.slabs[seq.places[b].slab].blocks[seq.places[b].stripe] = -1;
        }
    }
    if (n_blocks < seq.places.size()) {
        seq.places.resize(n_blocks);
        seq.worth .resize(n_blocks);
    }
    while (!seq.slabs.empty()) {
        const auto & blocks = seq.slabs.back().blocks;
        if (!std::all_of(blocks.begin(), blocks.end(), [](int32_t b) { return b < 0; })) {
            break;
        }
        seq.slabs.pop_back();
    }
    seq.size = std::min(seq.size, size);
    if (seq.size == 0) {
        seq.is_whole = true;
    }
}

void llama_triattn_store::clear(llama_seq_id seq_id) {
    seqs[seq_id] = {};
}

void llama_triattn_store::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst) {
    if (seq_id_src != seq_id_dst) {
        seqs[seq_id_dst] = seqs[seq_id_src];
    }
}

void llama_triattn_store::set_worth(llama_seq_id seq_id, const std::vector<float> & worth) {
    auto & seq = seqs[seq_id];
    for (size_t b = 0; b < std::min(worth.size(), seq.worth.size()); ++b) {
        seq.worth[b] = worth[b];
    }
}

std::vector<llama_triattn_store::slab_view> llama_triattn_store::slabs(llama_seq_id seq_id, uint32_t i_layer) const {
    std::vector<slab_view> res;
    for (const auto & s : seqs[seq_id].slabs) {
        res.push_back({ s.mem->data.get(), s.mem->size, offsets[i_layer], &s.blocks });
    }
    return res;
}
