#include "llama-triattn-rows.h"

#include "llama-triattn-graph.h"

#include "llama-context.h"
#include "llama-impl.h"

#include "ggml-alloc.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

static size_t row_size(const ggml_tensor * t, uint32_t n_embd_head) {
    return t ? ggml_row_size(t->type, n_embd_head) : 0;
}

size_t llama_triattn_row_size_k(const llama_triattn_layer & layer) {
    return row_size(layer.k, layer.n_embd_head_k);
}

size_t llama_triattn_row_size_v(const llama_triattn_layer & layer) {
    return row_size(layer.v, layer.n_embd_head_v);
}

std::string llama_triattn_rows_why_not(const std::vector<llama_triattn_layer> & layers, bool v_trans) {
    for (const auto & layer : layers) {
        if (v_trans && layer.v && !llama_triattn_is_in_reach(layer.v)) {
            return "values lie transposed on a device; turn flash attention on";
        }
    }
    return "";
}

//
// on the host
//

// a row's bytes and where they lie in the cache
struct triattn_row_place {
    uint8_t * data;
    size_t    stride; // of elements; 0: side by side
};

static triattn_row_place place_of(ggml_tensor * t, bool is_trans, uint32_t stream, uint32_t head, uint32_t n_embd_head, int32_t cell) {
    auto * base = (uint8_t *) t->data + stream*t->nb[2];
    if (is_trans) {
        const size_t size_el = ggml_type_size(t->type);
        return { base + ((size_t) head*n_embd_head*t->ne[1] + cell)*size_el, t->ne[1]*size_el };
    }
    return { base + cell*t->nb[1] + head*row_size(t, n_embd_head), 0 };
}

template <bool is_write>
static void copy_on_host(
        ggml_tensor * t, bool is_trans, uint32_t stream, uint32_t n_head, uint32_t n_embd_head, const llama_triattn_rows & rows, uint8_t * data) {
    const size_t size    = row_size(t, n_embd_head);
    const size_t size_el = ggml_type_size(t->type);

    for (size_t i = 0; i < (size_t) n_head*rows.n; ++i) {
        const auto place = place_of(t, is_trans, stream, i/rows.n, n_embd_head, rows.cells[i]);

        uint8_t * row = data + i*size;
        if (place.stride == 0) {
            is_write ? memcpy(place.data, row, size) : memcpy(row, place.data, size);
            continue;
        }
        for (uint32_t d = 0; d < n_embd_head; ++d) {
            uint8_t * el = place.data + d*place.stride;
            is_write ? memcpy(el, row + d*size_el, size_el) : memcpy(row + d*size_el, el, size_el);
        }
    }
}

//
// on a device
//

ggml_tensor * llama_triattn_view_words(ggml_context * ctx, ggml_tensor * t, uint32_t n_head, uint32_t stream) {
    const size_t size = ggml_row_size(t->type, t->ne[0]/n_head);

    ggml_tensor * res = ggml_view_2d(ctx, t, t->ne[0], t->ne[1], t->nb[1], stream*t->nb[2]);

    res->type  = GGML_TYPE_F32;
    res->ne[0] = size/sizeof(float);
    res->ne[1] = t->ne[1];
    res->ne[2] = n_head;
    res->nb[0] = sizeof(float);
    res->nb[1] = t->nb[1];
    res->nb[2] = size;
    res->nb[3] = size*n_head;

    return res;
}

// Rows of an odd number of half words (a quantised cache with heads of 32 or 96 dimensions): the cells from the first to the last
// that is touched, in one piece.
template <bool is_write>
static void copy_span(ggml_tensor * t, uint32_t stream, uint32_t n_head, uint32_t n_embd_head, const llama_triattn_rows & rows, uint8_t * data) {
    const auto [c0, c1] = std::minmax_element(rows.cells.begin(), rows.cells.end());

    const size_t size  = row_size(t, n_embd_head);
    const size_t first = stream*t->nb[2] + *c0*t->nb[1];

    std::vector<uint8_t> span((*c1 - *c0 + 1)*t->nb[1]);
    ggml_backend_tensor_get(t, span.data(), first, span.size());
    for (size_t i = 0; i < (size_t) n_head*rows.n; ++i) {
        uint8_t * here = span.data() + (rows.cells[i] - *c0)*t->nb[1] + i/rows.n*size;
        is_write ? memcpy(here, data + i*size, size) : memcpy(data + i*size, here, size);
    }
    if (is_write) {
        ggml_backend_tensor_set(t, span.data(), first, span.size());
    }
}

struct triattn_copy {
    ggml_tensor * t;      // of the cache
    ggml_tensor * staged; // [words, n, n_head_kv] what comes or goes
    ggml_tensor * index;  // I32 [n, n_head_kv]

    const llama_triattn_rows * rows;
    uint8_t *                  data;
};

template <bool is_write>
static bool copy_on_backend(ggml_backend_t backend, uint32_t stream, const std::vector<std::pair<triattn_copy, uint32_t>> & todo) {
    ggml_init_params init = {
        /*.mem_size   =*/ (8*todo.size() + 8)*ggml_tensor_overhead() + ggml_graph_overhead_custom(8*todo.size() + 8, false),
        /*.mem_buffer =*/ nullptr,
        /*.no_alloc   =*/ true,
    };
    ggml_context_ptr ctx { ggml_init(init) };

    ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), 8*todo.size() + 8, false);

    std::vector<triattn_copy> copies;
    for (const auto & [c, n_head] : todo) {
        auto   cur   = c;
        auto * words = llama_triattn_view_words(ctx.get(), c.t, n_head, stream);

        cur.index = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_I32, c.rows->n, n_head);
        ggml_set_input(cur.index);
        if (is_write) {
            cur.staged = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, words->ne[0], c.rows->n, n_head);
            ggml_set_input(cur.staged);
            ggml_build_forward_expand(gf, ggml_set_rows(ctx.get(), words, cur.staged, cur.index));
        } else {
            cur.staged = ggml_get_rows(ctx.get(), words, cur.index);
            ggml_set_output(cur.staged);
            ggml_build_forward_expand(gf, cur.staged);
        }
        copies.push_back(cur);
    }

    std::unique_ptr<ggml_gallocr, decltype(&ggml_gallocr_free)> alloc {
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend)), ggml_gallocr_free };
    if (!ggml_gallocr_alloc_graph(alloc.get(), gf)) {
        return false;
    }
    for (const auto & c : copies) {
        ggml_backend_tensor_set(c.index, c.rows->cells.data(), 0, ggml_nbytes(c.index));
        if (is_write) {
            ggml_backend_tensor_set(c.staged, c.data, 0, ggml_nbytes(c.staged));
        }
    }
    if (ggml_backend_graph_compute(backend, gf) != GGML_STATUS_SUCCESS) {
        return false;
    }
    for (const auto & c : copies) {
        if (!is_write) {
            ggml_backend_tensor_get(c.staged, c.data, 0, ggml_nbytes(c.staged));
        }
    }
    return true;
}

// What lies on a device is noted for its backend.
template <bool is_write>
static bool copy_rows(
        llama_context & lctx, const std::vector<llama_triattn_layer> & layers, uint32_t stream, bool v_trans, std::vector<llama_triattn_rows> & rows) {
    std::map<ggml_backend_t, std::vector<std::pair<triattn_copy, uint32_t>>> todo; // with the number of KV heads

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];
        auto & r = rows[i];
        if (r.n == 0) {
            continue;
        }
        for (const bool is_v : { false, true }) {
            auto * t = is_v ? layer.v : layer.k;
            if (!t) {
                continue;
            }
            const uint32_t n_embd_head = is_v ? layer.n_embd_head_v : layer.n_embd_head_k;
            const size_t   size        = row_size(t, n_embd_head);

            auto & data = is_v ? r.v : r.k;
            data.resize((size_t) layer.n_head_kv*r.n*size);

            if (llama_triattn_is_in_reach(t)) {
                copy_on_host<is_write>(t, is_v && v_trans, stream, layer.n_head_kv, n_embd_head, r, data.data());
            } else if (size % sizeof(float) != 0) {
                copy_span<is_write>(t, stream, layer.n_head_kv, n_embd_head, r, data.data());
            } else {
                auto * backend = llama_triattn_backend_of(lctx, t);
                if (!backend) {
                    backend = ggml_backend_sched_get_backend(lctx.get_sched(), 0);
                }
                todo[backend].push_back({ { t, nullptr, nullptr, &r, data.data() }, layer.n_head_kv });
            }
        }
    }
    for (const auto & [backend, copies] : todo) {
        if (!copy_on_backend<is_write>(backend, stream, copies)) {
            return false;
        }
    }
    return true;
}

bool llama_triattn_rows_read(
        llama_context & lctx, const std::vector<llama_triattn_layer> & layers, uint32_t stream, bool v_trans, std::vector<llama_triattn_rows> & rows) {
    ggml_backend_sched_synchronize(lctx.get_sched());
    return copy_rows<false>(lctx, layers, stream, v_trans, rows);
}

bool llama_triattn_rows_write(
        llama_context & lctx, const std::vector<llama_triattn_layer> & layers, uint32_t stream, bool v_trans, const std::vector<llama_triattn_rows> & rows) {
    ggml_backend_sched_synchronize(lctx.get_sched());
    return copy_rows<true>(lctx, layers, stream, v_trans, const_cast<std::vector<llama_triattn_rows> &>(rows));
}
