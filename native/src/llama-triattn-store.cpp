#include "llama-triattn-store.h"

#include "llama-triattn-slabs.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

static const std::align_val_t ALIGNMENT { 64 };

static const size_t N_RETAINED = 256;

static uint64_t random_id() {
    std::random_device device;
    return (uint64_t) device() << 32; // the rest counts
}

struct llama_triattn_store::slab {
    std::shared_ptr<uint8_t> data;

    size_t size = 0;

    llama_pos end = 0; // the last position that a sequence has room for here, + 1

    // where it lies in a file, and how many rows of each stripe are there
    std::shared_ptr<llama_triattn_slab_file> file;
    int32_t                                  i_file = -1;
    std::vector<uint8_t>                     n_saved;

    // Rows from i on of a stripe are written: those that a file has are another slab's from now on.
    void change(int32_t stripe, uint8_t i) {
        if (file && n_saved[stripe] > i) {
            file.reset();
        }
    }

    std::shared_ptr<uint64_t> bytes_held;

    ~slab() {
        if (bytes_held) {
            *bytes_held -= size;
        }
    }
};

llama_triattn_store::llama_triattn_store(
        std::vector<llama_triattn_row_sizes> layers_, uint32_t n_seq, uint32_t n_keep, uint64_t n_bytes_max) :
    layers(std::move(layers_)), n_keep(n_keep), bytes_max(n_bytes_max), n_tokens(N_SLAB), seqs(n_seq), first_id(random_id()), bytes_held(std::make_shared<uint64_t>(0)) {
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

bool llama_triattn_store::make_room() {
    const size_t size = slab_size();

    while (*bytes_held + size > bytes_max && !retained.empty()) {
        retained.pop_front();
    }
    const char * env = getenv("LLAMA_TRIATTN_FAIL_STORE"); // for tests: no memory after so many slabs
    return *bytes_held + size <= bytes_max && !(env && *bytes_held/size >= (uint64_t) atoll(env));
}

std::shared_ptr<llama_triattn_store::slab> llama_triattn_store::new_slab() {
    const size_t size = slab_size();
    if (!make_room()) {
        return nullptr;
    }
    auto * data = (uint8_t *) ::operator new(size, ALIGNMENT, std::nothrow);
    if (!data) {
        return nullptr;
    }
    auto res = std::make_shared<slab>();
    res->data       = { data, [](uint8_t * p) { ::operator delete(p, ALIGNMENT); } };
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
    if (is_free(seq, i_slab)) {
        return true;
    }
    auto copy = new_slab();
    auto & mem = seq.slabs[i_slab].mem;
    if (copy && mem.use_count() > 1) { // others may have gone for it
        memcpy(copy->data.get(), mem->data.get(), mem->size);
        copy->end = mem->end;
        mem = std::move(copy);
    }
    return is_free(seq, i_slab);
}

bool llama_triattn_store::is_free(const sequence & seq, int32_t i_slab) const {
    const auto & mem = seq.slabs[i_slab].mem;
    return mem.use_count() == 1 || (seq.is_whole && mem->end == seq.size);
}

llama_triattn_store::place llama_triattn_store::take(sequence & seq, uint32_t n_live) {
    for (size_t i = seq.slabs.size(); i-- > 0;) {
        auto & blocks = seq.slabs[i].blocks;
        const auto it = std::find(blocks.begin(), blocks.end(), -1);
        if (it != blocks.end() && is_free(seq, i)) {
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

    seq.retained = 0;

    // a block that is begun is written on
    const bool is_begun = size % N_BLOCK != 0 && seq.places[size/N_BLOCK].slab >= 0;
    bool ok = !is_begun || own(seq, seq.places[size/N_BLOCK].slab);
    if (ok && is_begun) {
        const auto & p = seq.places[size/N_BLOCK];
        seq.slabs[p.slab].mem->change(p.stripe, size % N_BLOCK);
        seq.size = std::min<llama_pos>(end, (size/N_BLOCK + 1)*N_BLOCK);
        seq.slabs[seq.places[size/N_BLOCK].slab].mem->end = seq.size;
    }

    for (llama_pos b = (size + N_BLOCK - 1)/N_BLOCK; ok && b*(llama_pos) N_BLOCK < end; ++b) {
        const auto p = take(seq, n_live);
        ok = p.slab >= 0;
        if (ok) {
            seq.places.resize(b + 1);
            seq.worth .resize(b + 1, 0.0f);
            seq.places[b] = p;
            seq.worth [b] = 0.0f;
            seq.slabs[p.slab].blocks[p.stripe] = b;
            seq.slabs[p.slab].mem->change(p.stripe, 0);
            seq.size = std::min(end, (b + 1)*(llama_pos) N_BLOCK); // later blocks see this one as live
            seq.slabs[p.slab].mem->end = seq.size;
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

std::pair<uint8_t *, size_t> llama_triattn_store::find(
        llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos) const {
    const auto & seq = seqs[seq_id];
    const auto & p   = seq.places[pos/N_BLOCK];
    const auto & l   = layers[i_layer];

    uint8_t * layer = seq.slabs[p.slab].mem->data.get() + offsets[i_layer];

    const size_t block = head_kv*n_tokens + p.stripe*N_BLOCK; // its first row
    const size_t i     = pos % N_BLOCK;
    if (is_v) {
        return { layer + l.n_head_kv*l.k*n_tokens + (block + i)*l.v, 0 };
    }
    return l.k_element == 0 ?
        std::make_pair(layer + (block + i)*l.k,             (size_t) 0) :
        std::make_pair(layer + block*l.k + i*l.k_element, l.k_element*N_BLOCK);
}

// one way or the other between a row and where its elements lie
template <typename T, bool is_put>
static void copy_elements(uint8_t * here, size_t stride, uint8_t * row, size_t size) {
    for (size_t i = 0; i < size/sizeof(T); ++i) {
        is_put ? memcpy(here + i*stride, row + i*sizeof(T), sizeof(T)) : memcpy(row + i*sizeof(T), here + i*stride, sizeof(T));
    }
}

template <bool is_put>
static void copy_row(const std::pair<uint8_t *, size_t> & place, size_t k_element, uint8_t * row, size_t size) {
    const auto [here, stride] = place;
    if (stride == 0) {
        is_put ? memcpy(here, row, size) : memcpy(row, here, size);
    } else if (k_element == sizeof(uint16_t)) {
        copy_elements<uint16_t, is_put>(here, stride, row, size);
    } else {
        copy_elements<uint32_t, is_put>(here, stride, row, size);
    }
}

void llama_triattn_store::put(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos, const uint8_t * row) {
    const auto & l = layers[i_layer];
    copy_row<true>(find(seq_id, i_layer, head_kv, is_v, pos), l.k_element, const_cast<uint8_t *>(row), is_v ? l.v : l.k);
}

void llama_triattn_store::get(llama_seq_id seq_id, uint32_t i_layer, uint32_t head_kv, bool is_v, llama_pos pos, uint8_t * row) const {
    const auto & l = layers[i_layer];
    copy_row<false>(find(seq_id, i_layer, head_kv, is_v, pos), l.k_element, row, is_v ? l.v : l.k);
}

void llama_triattn_store::cut(llama_seq_id seq_id, llama_pos pos) {
    auto & seq = seqs[seq_id];
    if (pos < seq.size) {
        seq.retained = 0;
    }

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

uint64_t llama_triattn_store::retain(llama_seq_id seq_id) {
    auto & seq = seqs[seq_id];
    if (seq.size == 0) {
        return 0;
    }
    const auto is_it = [&](const auto & r) { return r.first == seq.retained; };
    if (seq.retained == 0 || std::none_of(retained.begin(), retained.end(), is_it)) {
        seq.retained = first_id + ++n_retained;
        retained.emplace_back(seq.retained, seq);
        if (retained.size() > N_RETAINED) {
            retained.pop_front();
        }
    }
    return seq.retained;
}

bool llama_triattn_store::resume(uint64_t id, llama_seq_id seq_id) {
    const auto it = std::find_if(retained.begin(), retained.end(), [&](const auto & r) { return r.first == id; });
    seqs[seq_id] = it == retained.end() ? sequence() : it->second;
    return it != retained.end();
}

//
// files
//

uint8_t llama_triattn_store::n_rows_of(const sequence & seq, int32_t block) {
    return block < 0 ? 0 : std::min<llama_pos>(N_BLOCK, seq.size - block*(llama_pos) N_BLOCK);
}

int64_t llama_triattn_store::save_slab(const sequence & seq, const slab_of & s, const std::shared_ptr<llama_triattn_slab_file> & file) const {
    auto & mem = *s.mem;
    if (mem.file != file) {
        const int32_t i_file = file->add();
        if (i_file < 0) {
            return -1;
        }
        mem.file   = file;
        mem.i_file = i_file;
        mem.n_saved.assign(n_tokens/N_BLOCK, 0);
    }
    int64_t res = 0;
    bool    ok  = true;
    const auto write = [&](size_t offset, size_t size) {
        ok = ok && file->write(mem.i_file, offset, mem.data.get() + offset, size);
        res += size;
    };
    auto n_saved = mem.n_saved;
    for (uint32_t i = 0; i < s.blocks.size();) {
        uint32_t end = i; // stripes side by side
        for (; end < s.blocks.size() && n_rows_of(seq, s.blocks[end]) > mem.n_saved[end]; ++end) {
            n_saved[end] = n_rows_of(seq, s.blocks[end]);
        }
        for (size_t il = 0; end > i && il < layers.size(); ++il) {
            const auto & l = layers[il];
            for (uint32_t h = 0; h < l.n_head_kv; ++h) {
                const size_t row = (size_t) h*n_tokens + i*N_BLOCK;
                write(offsets[il] + row*l.k, (size_t) (end - i)*N_BLOCK*l.k);
                if (l.v > 0) {
                    write(offsets[il] + l.n_head_kv*l.k*n_tokens + row*l.v, (size_t) (end - i)*N_BLOCK*l.v);
                }
            }
        }
        i = std::max(end, i + 1);
    }
    if (!ok || (res > 0 && !file->write_tail(mem.i_file, n_saved))) {
        mem.file.reset();
        return -1;
    }
    mem.n_saved = n_saved;
    return res;
}

int64_t llama_triattn_store::save(llama_seq_id seq_id, const std::shared_ptr<llama_triattn_slab_file> & file) {
    int64_t res = 0;
    for (const auto & s : seqs[seq_id].slabs) {
        const int64_t n = save_slab(seqs[seq_id], s, file);
        if (n < 0) {
            return -1;
        }
        res += n;
    }
    return res;
}

// id of the file | size | is_whole | slabs | of each: its number in the file, its blocks
static const size_t N_WHERE = 4;

std::vector<uint8_t> llama_triattn_store::where(llama_seq_id seq_id) const {
    const auto & seq = seqs[seq_id];
    if (seq.slabs.empty()) {
        return {};
    }
    const auto & file = seq.slabs[0].mem->file;

    std::vector<int64_t> res { file ? (int64_t) file->id() : 0, seq.size, seq.is_whole, (int64_t) seq.slabs.size() };
    for (const auto & s : seq.slabs) {
        bool is_saved = file && s.mem->file == file;
        for (size_t i = 0; is_saved && i < s.blocks.size(); ++i) {
            is_saved = n_rows_of(seq, s.blocks[i]) <= s.mem->n_saved[i];
        }
        if (!is_saved) {
            return {};
        }
        res.push_back(s.mem->i_file);
        res.insert(res.end(), s.blocks.begin(), s.blocks.end());
    }
    const auto * data = (const uint8_t *) res.data();
    return { data, data + res.size()*sizeof(res[0]) };
}

uint64_t llama_triattn_store::file_of(const std::vector<uint8_t> & where) {
    uint64_t res = 0;
    if (where.size() >= N_WHERE*sizeof(int64_t)) {
        memcpy(&res, where.data(), sizeof(res));
    }
    return res;
}

bool llama_triattn_store::load(llama_seq_id seq_id, const std::shared_ptr<llama_triattn_slab_file> & file, const std::vector<uint8_t> & where) {
    clear(seq_id);

    std::vector<int64_t> values(where.size()/sizeof(int64_t));
    memcpy(values.data(), where.data(), values.size()*sizeof(values[0]));

    const size_t n_stripes = n_tokens/N_BLOCK;
    if (values.size() < N_WHERE || values[1] < 0 || values[1] > INT32_MAX || values[3] < 0 ||
            (values.size() - N_WHERE) % (n_stripes + 1) != 0 || (uint64_t) values[3] != (values.size() - N_WHERE)/(n_stripes + 1)) {
        return false;
    }
    sequence seq;
    seq.size     = (llama_pos) values[1];
    seq.is_whole = values[2] != 0;

    const int64_t n_blocks = (values[1] + N_BLOCK - 1)/N_BLOCK;
    if (n_blocks > values[3]*(int64_t) n_stripes && seq.is_whole) {
        return false;
    }
    seq.places.resize(n_blocks);
    seq.worth .resize(n_blocks, 0.0f);

    for (int64_t i = 0; i < values[3]; ++i) {
        const int64_t * slab_values = &values[N_WHERE + i*(n_stripes + 1)];

        // a slab that is here already, for another sequence
        std::shared_ptr<slab> mem;
        const auto look = [&](const sequence & other) {
            for (const auto & s : other.slabs) {
                if (s.mem->file == file && s.mem->i_file == slab_values[0]) {
                    mem = s.mem;
                }
            }
        };
        std::for_each(seqs.begin(), seqs.end(), look);
        for (const auto & [id, other] : retained) {
            look(other);
        }
        look(seq);
        if (!mem) {
            if (!make_room() || slab_values[0] < 0 || slab_values[0] > INT32_MAX) {
                return false;
            }
            mem = std::make_shared<slab>();
            mem->data = file->map((int32_t) slab_values[0], mem->n_saved);
            if (!mem->data) {
                return false;
            }
            mem->size       = slab_size();
            mem->file       = file;
            mem->i_file     = (int32_t) slab_values[0];
            mem->bytes_held = bytes_held;
            *bytes_held += mem->size;
        }
        slab_of s { mem, std::vector<int32_t>(n_stripes, -1) };
        for (size_t j = 0; j < n_stripes; ++j) {
            const int64_t b = slab_values[1 + j];
            if (b < 0) {
                continue;
            }
            if (b >= n_blocks || seq.places[b].slab >= 0 || mem->n_saved[j] > N_BLOCK || mem->n_saved[j] < n_rows_of(seq, (int32_t) b)) {
                return false;
            }
            s.blocks[j]   = (int32_t) b;
            seq.places[b] = { (int32_t) seq.slabs.size(), (int32_t) j };
            mem->end      = std::max<llama_pos>(mem->end, (llama_pos) b*N_BLOCK + mem->n_saved[j]);
        }
        seq.slabs.push_back(std::move(s));
    }
    for (const auto & p : seq.places) {
        if (seq.is_whole && p.slab < 0) {
            return false;
        }
    }
    seqs[seq_id] = std::move(seq);
    return true;
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
