#include "llama-triattn-queries.h"

#include "llama-graph.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

// The rows of the ring that a batch's queries go to. Everything else of the graph stays, so that it is used again for the next token.
class llama_triattn_queries_input : public llm_graph_input_i {
public:
    llama_triattn_queries_input(llama_triattn_queries & queries, ggml_tensor * rows) : queries(queries), rows(rows) {}

    void set_input(const llama_ubatch * ubatch) override {
        if (rows->buffer) {
            std::vector<int64_t> data(ubatch->n_tokens);
            queries.set_rows(*ubatch, data.data());
            ggml_backend_tensor_set(rows, data.data(), 0, ggml_nbytes(rows));
        }
    }

    bool can_reuse(const llm_graph_params & params) override { return rows->ne[0] == (int64_t) params.ubatch.n_tokens; }

    llama_triattn_queries & queries;

    ggml_tensor * rows; // I64 [n_tokens]
};

llama_triattn_queries::llama_triattn_queries(const std::vector<llama_triattn_layer> & layers, uint32_t n_seq, uint32_t n_ring) :
    n_seq(n_seq), n_ring(n_ring), pos(n_seq, std::vector<llama_pos>(n_ring, -1)) {
    for (const auto & layer : layers) {
        ggml_init_params init = {
            /*.mem_size   =*/ layer.ils.size()*ggml_tensor_overhead(),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx { ggml_init(init) };

        for (const int32_t il : layer.ils) {
            auto & ring = rings[il];
            ring.n_head = layer.n_head;
            ring.q      = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F16, layer.n_embd_head_k*layer.n_head, n_seq*n_ring + 1);
            ggml_format_name(ring.q, "triattn_queries-%d", il);
        }

        auto * buft = ggml_backend_buffer_get_type(layer.k->buffer);
        ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), buft) };
        if (!buf) {
            throw std::runtime_error("failed to allocate the ring of recorded queries");
        }
        bufs.emplace_back(std::move(ctx), std::move(buf));
    }
}

void llama_triattn_queries::record(const llm_graph_context & graph, ggml_tensor * q, float kq_scale, ggml_tensor * sinks, int32_t il) {
    const auto it = rings.find(il);
    if (it == rings.end()) {
        return; // this layer does not evict
    }
    auto & ring = it->second;
    ring.kq_scale = kq_scale;
    ring.sinks    = sinks;

    auto * ctx = graph.ctx0;

    ggml_tensor * rows = nullptr;
    for (const auto & input : graph.res->inputs) {
        if (const auto * ours = dynamic_cast<const llama_triattn_queries_input *>(input.get())) {
            rows = ours->rows;
        }
    }
    if (!rows) {
        rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, graph.n_tokens);
        ggml_set_input(rows);
        graph.res->add_input(std::make_unique<llama_triattn_queries_input>(*this, rows));
    }

    q = ggml_is_contiguous(q) ? ggml_reshape_2d(ctx, q, ring.q->ne[0], graph.n_tokens) : ggml_cont_2d(ctx, q, ring.q->ne[0], graph.n_tokens);

    ggml_build_forward_expand(graph.gf, ggml_set_rows(ctx, ring.q, q, rows));
}

void llama_triattn_queries::set_rows(const llama_ubatch & ubatch, int64_t * rows) {
    std::map<llama_seq_id, llama_pos> last;
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const auto s = ubatch.seq_id[i][0];
        const auto [it, is_new] = last.emplace(s, ubatch.pos[i]);
        it->second = std::max(it->second, ubatch.pos[i]);
    }
    for (uint32_t i = 0; i < ubatch.n_tokens; ++i) {
        const auto      s = ubatch.seq_id[i][0];
        const llama_pos p = ubatch.pos[i];
        if (s >= (llama_seq_id) n_seq || p + (llama_pos) n_ring <= last[s]) {
            rows[i] = (int64_t) n_seq*n_ring;
            continue;
        }
        rows[i] = (int64_t) s*n_ring + p % n_ring;
        pos[s][p % n_ring] = p;
    }
}

std::vector<llama_pos> llama_triattn_queries::positions(llama_seq_id seq_id, llama_pos p0, llama_pos p1) const {
    std::vector<llama_pos> res;
    for (const auto p : pos[seq_id]) {
        if (p >= std::max(p0, 0) && p < p1) {
            res.push_back(p);
        }
    }
    std::sort(res.begin(), res.end());
    return res;
}

llama_triattn_queries::layer llama_triattn_queries::get(llama_seq_id seq_id, int32_t il, const std::vector<llama_pos> & positions) const {
    const auto & ring = rings.at(il);

    layer res;
    res.kq_scale = ring.kq_scale;
    if (ring.sinks) {
        res.sinks.resize(ggml_nelements(ring.sinks));
        ggml_backend_tensor_get(ring.sinks, res.sinks.data(), 0, ggml_nbytes(ring.sinks));
    }

    const size_t n_embd = ring.q->ne[0];

    std::vector<ggml_fp16_t> rows(n_embd*n_ring);
    ggml_backend_tensor_get(ring.q, rows.data(), seq_id*n_ring*ring.q->nb[1], n_ring*ring.q->nb[1]);

    res.q.resize(positions.size()*n_embd);
    for (size_t i = 0; i < positions.size(); ++i) {
        ggml_fp16_to_fp32_row(rows.data() + positions[i] % n_ring*n_embd, res.q.data() + i*n_embd, n_embd);
    }
    return res;
}

void llama_triattn_queries::clear(llama_seq_id seq_id) {
    std::fill(pos[seq_id].begin(), pos[seq_id].end(), -1);
}

std::vector<uint8_t> llama_triattn_queries::save(llama_seq_id seq_id) const {
    const auto * first = (const uint8_t *) pos[seq_id].data();

    std::vector<uint8_t> res(first, first + n_ring*sizeof(llama_pos));
    for (const auto & [il, ring] : rings) {
        const size_t size = n_ring*ring.q->nb[1];
        res.resize(res.size() + size);
        ggml_backend_tensor_get(ring.q, res.data() + res.size() - size, seq_id*size, size);
    }
    return res;
}

void llama_triattn_queries::restore(llama_seq_id seq_id, const std::vector<uint8_t> & data) {
    size_t size = n_ring*sizeof(llama_pos);
    for (const auto & [il, ring] : rings) {
        size += n_ring*ring.q->nb[1];
    }
    if (data.size() != size) {
        return;
    }
    memcpy(pos[seq_id].data(), data.data(), n_ring*sizeof(llama_pos));
    size_t offset = n_ring*sizeof(llama_pos);
    for (const auto & [il, ring] : rings) {
        const size_t n = n_ring*ring.q->nb[1];
        ggml_backend_tensor_set(ring.q, data.data() + offset, seq_id*n, n);
        offset += n;
    }
}

uint64_t llama_triattn_queries::n_bytes() const {
    uint64_t res = 0;
    for (const auto & [ctx, buf] : bufs) {
        res += ggml_backend_buffer_get_size(buf.get());
    }
    return res;
}
