#include "llama-triattn-move.h"

#include "llama-triattn-graph.h"
#include "llama-triattn-rows.h"

#include "llama-context.h"
#include "llama-graph.h"
#include "llama-impl.h"

#include <algorithm>
#include <cstring>

static bool has_whole_words(const ggml_tensor * t, uint32_t n_head) {
    return ggml_row_size(t->type, t->ne[0]/n_head) % sizeof(float) == 0;
}

// The indices of all layers in one tensor, so that they are uploaded at once.
struct triattn_index {
    ggml_tensor * tensor; // I32
    std::vector<int32_t> data;

    ggml_tensor * add(ggml_context * ctx, const std::vector<int32_t> & idx, int64_t ne0, int64_t ne1, int64_t ne2) {
        const size_t size = sizeof(int32_t);
        ggml_tensor * res = ggml_view_3d(ctx, tensor, ne0, ne1, ne2, ne0*size, ne0*ne1*size, data.size()*size);
        data.insert(data.end(), idx.begin(), idx.end());
        return res;
    }
};

// rows, gathered before any is written, so that the order of the pairs does not matter
static void build_move(ggml_context * ctx, ggml_cgraph * gf, ggml_tensor * rows, ggml_tensor * src, ggml_tensor * dst) {
    ggml_tensor * cur = ggml_get_rows(ctx, rows, src);
    ggml_build_forward_expand(gf, ggml_set_rows(ctx, rows, cur, dst));
}

// Rows of an odd number of half words (a quantised cache with heads of 32 or 96 dimensions): on the host. What lies on a device
// comes here and goes back in one piece each way, from the first cell that is touched to the last.
static size_t move_on_host(ggml_tensor * t, const llama_triattn_moves::layer & m, uint32_t n_head, uint32_t stream) {
    const size_t row_size = ggml_row_size(t->type, t->ne[0]/n_head);

    // destinations lie among the candidates, as sources do
    const auto [src0, src1] = std::minmax_element(m.src.begin(), m.src.end());
    const auto [dst0, dst1] = std::minmax_element(m.dst.begin(), m.dst.end());

    const size_t cell0  = std::min(*src0, *dst0);
    const size_t n_cell = std::max(*src1, *dst1) + 1 - cell0;
    const size_t first  = stream*t->nb[2] + cell0*t->nb[1];
    const size_t size   = n_cell*t->nb[1];

    const bool is_here = llama_triattn_is_in_reach(t);

    std::vector<uint8_t> copy(is_here ? 0 : size);
    if (!is_here) {
        ggml_backend_tensor_get(t, copy.data(), first, size);
    }
    uint8_t * base = is_here ? (uint8_t *) t->data + first : copy.data();

    const auto row = [&](int32_t cell, uint32_t h) { return base + (cell - cell0)*t->nb[1] + h*row_size; };

    std::vector<uint8_t> buf((size_t) n_head*m.n*row_size);

    for (size_t i = 0; i < m.src.size(); ++i) {
        memcpy(buf.data() + i*row_size, row(m.src[i], i/m.n), row_size);
    }
    for (size_t i = 0; i < m.dst.size(); ++i) {
        memcpy(row(m.dst[i], i/m.n), buf.data() + i*row_size, row_size);
    }
    if (!is_here) {
        ggml_backend_tensor_set(t, copy.data(), first, size);
    }
    return 2*copy.size();
}

// Transposed V in host memory: the elements of a cell lie far apart, and a loop is ten times as fast as rows of one element.
template <typename T>
static void move_columns(ggml_tensor * t, const llama_triattn_moves::layer & m, uint32_t n_head, uint32_t n_embd_head, uint32_t stream) {
    std::vector<T> buf(m.n);

    auto * base = (T *) ((char *) t->data + stream*t->nb[2]);

    for (uint32_t h = 0; h < n_head; ++h) {
        const int32_t * src = m.src.data() + (size_t) h*m.n;
        const int32_t * dst = m.dst.data() + (size_t) h*m.n;
        for (uint32_t d = 0; d < n_embd_head; ++d) {
            T * col = base + ((size_t) h*n_embd_head + d)*t->ne[1];
            for (uint32_t i = 0; i < m.n; ++i) {
                buf[i] = col[src[i]];
            }
            for (uint32_t i = 0; i < m.n; ++i) {
                col[dst[i]] = buf[i];
            }
        }
    }
}

llama_triattn_moved llama_triattn_move(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const llama_triattn_moves & moves,
        uint32_t stream,
        bool v_trans,
        llama_triattn_stats & counters) {
    auto * sched = lctx.get_sched();

    const auto [ctx, gf] = llama_triattn_begin(lctx);

    // transposed V that lies on a device: every element is a row of its own
    const auto is_by_element = [&](const llama_triattn_layer & layer) { return layer.v && v_trans && !llama_triattn_is_in_reach(layer.v); };

    size_t n_index = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        n_index += moves.layers[i].src.size()*(2 + is_by_element(layers[i])*(layers[i].n_embd_head_v + 1));
    }

    triattn_index index { ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_index), {} };
    ggml_set_input(index.tensor);
    if (auto * backend = llama_triattn_backend_of(lctx, layers[0].k)) {
        ggml_backend_sched_set_tensor_backend(sched, index.tensor, backend);
    }

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];
        const auto & m     = moves.layers[i];

        if (m.n == 0) {
            continue;
        }

        const int n_nodes = ggml_graph_n_nodes(gf);

        const uint32_t n_head = layer.n_head_kv;

        ggml_tensor * src = index.add(ctx, m.src, m.n, n_head, 1);
        ggml_tensor * dst = index.add(ctx, m.dst, m.n, n_head, 1);

        if (has_whole_words(layer.k, n_head)) {
            build_move(ctx, gf, llama_triattn_view_words(ctx, layer.k, n_head, stream), src, dst);
        }

        if (is_by_element(layer)) {
            // a cell is a column: [1, n_cells, n_embd_head_v, n_head_kv]
            const uint32_t n_embd_head = layer.n_embd_head_v;
            const size_t   size_el     = ggml_type_size(layer.v->type);
            const size_t   size_col    = size_el*layer.v->ne[1];

            ggml_tensor * v = ggml_view_4d(ctx, layer.v, 1, layer.v->ne[1], n_embd_head, n_head,
                    size_el, size_col, size_col*n_embd_head, stream*layer.v->nb[2]);

            std::vector<int32_t> src_el((size_t) n_head*n_embd_head*m.n);
            for (uint32_t h = 0; h < n_head; ++h) {
                for (uint32_t d = 0; d < n_embd_head; ++d) {
                    std::copy_n(m.src.begin() + (size_t) h*m.n, m.n, src_el.begin() + ((size_t) h*n_embd_head + d)*m.n);
                }
            }

            build_move(ctx, gf, v, index.add(ctx, src_el, m.n, n_embd_head, n_head), index.add(ctx, m.dst, m.n, 1, n_head));
        } else if (layer.v && !v_trans && has_whole_words(layer.v, n_head)) {
            build_move(ctx, gf, llama_triattn_view_words(ctx, layer.v, n_head, stream), src, dst);
        }

        llama_triattn_pin(lctx, gf, n_nodes, layer.k);
    }

    if (ggml_graph_n_nodes(gf) > 0) {
        if (!ggml_backend_sched_alloc_graph(sched, gf)) {
            return LLAMA_TRIATTN_MOVED_NOTHING;
        }
        ggml_backend_tensor_set(index.tensor, index.data.data(), 0, index.data.size()*sizeof(int32_t));
        counters.n_bytes_copied += index.data.size()*sizeof(int32_t);
        if (!llama_triattn_compute(lctx, gf, (int64_t) moves.layers[0].n*layers[0].k->ne[0], counters)) {
            return LLAMA_TRIATTN_MOVED_SOME;
        }
        ggml_backend_sched_synchronize(sched);
    }

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];
        const auto & m     = moves.layers[i];

        if (m.n == 0) {
            continue;
        }
        if (!has_whole_words(layer.k, layer.n_head_kv)) {
            counters.n_bytes_copied += move_on_host(layer.k, m, layer.n_head_kv, stream);
        }
        if (!layer.v) {
            continue;
        }
        if (!v_trans && !has_whole_words(layer.v, layer.n_head_kv)) {
            counters.n_bytes_copied += move_on_host(layer.v, m, layer.n_head_kv, stream);
        }
        if (v_trans && llama_triattn_is_in_reach(layer.v)) {
            if (ggml_type_size(layer.v->type) == sizeof(uint32_t)) {
                move_columns<uint32_t>(layer.v, m, layer.n_head_kv, layer.n_embd_head_v, stream);
            } else {
                move_columns<uint16_t>(layer.v, m, layer.n_head_kv, layer.n_embd_head_v, stream);
            }
        }
    }

    return LLAMA_TRIATTN_MOVED_ALL;
}
