#include "llama-triattn-recall.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

// logits of one graph, in elements: beyond it, KV heads come one after another
static const size_t N_LOGITS_MAX = 64u << 20;

llama_triattn_recaller::llama_triattn_recaller(ggml_type type_k, uint32_t n_threads) :
    type_k(type_k), backend(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr)) {
    if (!backend) {
        throw std::runtime_error("no CPU backend to compare queries with the stored keys");
    }
    auto * reg = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend.get()));
    auto * fn  = (ggml_backend_set_n_threads_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_set_n_threads");
    if (fn) {
        fn(backend.get(), n_threads);
    }
}

// e^x for x <= 0, to 3e-5: a polynomial that compilers make vectors of
static inline float exp_of(float x) {
    const float t = std::max(x, -80.0f)*1.44269504f;
    const int   i = (int) (t - 0.5f);
    const float f = t - (float) i;

    const float p = 1.0f + f*(0.693147f + f*(0.240227f + f*(0.0555041f + f*(0.0096181f + f*0.0013333f))));

    const int32_t bits = (i + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return p*scale;
}

// What the nodes behind the products need. Logits lie as the products leave them: for each slab [n_head][n_query][n_rows].
struct triattn_logits {
    struct slab {
        const float *   data;
        const int32_t * blocks; // [n_rows/N_BLOCK]
        int64_t         n_rows;
    };
    std::vector<slab> slabs;

    const llama_triattn_wanting * wanting;

    uint32_t  head0;  // first KV head of the graph
    uint32_t  n_head;
    llama_pos size;   // of the sequence

    std::vector<float> lse; // [n_head][n_query] logarithm of the sum of exponentials

    float * weights; // [n_head][size]

    const float * row(const slab & s, uint32_t head, uint32_t query) const {
        return s.data + ((size_t) head*wanting->n_query + query)*s.n_rows;
    }

    // tokens of a block that a query sees: they come first
    int n_seen(int32_t block, llama_pos pos) const {
        const llama_pos p0 = block*(llama_pos) llama_triattn_store::N_BLOCK;
        return block < 0 ? 0 : std::clamp<llama_pos>(std::min(pos + 1, size) - p0, 0, llama_triattn_store::N_BLOCK);
    }
};

static float capped(float x, float cap) {
    return cap > 0.0f ? cap*tanhf(x/cap) : x;
}

// One query after another: the sum that its softmax divides by.
static void compute_sums(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;
    const auto & w = *l.wanting;

    const int n_block = llama_triattn_store::N_BLOCK;

    for (uint32_t i = ith; i < l.n_head*w.n_query; i += nth) {
        const uint32_t head = i/w.n_query, query = i % w.n_query;

        float largest = w.sink.empty() ? -INFINITY : w.sink[(l.head0 + head)*w.n_query + query];
        for (const auto & s : l.slabs) {
            float * row = const_cast<float *>(l.row(s, head, query));
            for (int64_t b = 0; b < s.n_rows/n_block; ++b) {
                const int n = l.n_seen(s.blocks[b], w.pos[query]);
                float * x = row + b*n_block;
                for (int j = 0; w.soft_cap > 0.0f && j < n; ++j) {
                    x[j] = capped(x[j], w.soft_cap);
                }
                for (int j = 0; j < n; ++j) {
                    largest = std::max(largest, x[j]);
                }
            }
        }

        float sum = w.sink.empty() ? 0.0f : exp_of(w.sink[(l.head0 + head)*w.n_query + query] - largest);
        for (const auto & s : l.slabs) {
            const float * row = l.row(s, head, query);
            for (int64_t b = 0; b < s.n_rows/n_block; ++b) {
                const int n = l.n_seen(s.blocks[b], w.pos[query]);
                const float * x = row + b*n_block;
                if (n == n_block) {
                    float part[llama_triattn_store::N_BLOCK];
                    for (int j = 0; j < n_block; ++j) {
                        part[j] = exp_of(x[j] - largest);
                    }
                    for (int j = 0; j < n_block; ++j) {
                        sum += part[j];
                    }
                } else {
                    for (int j = 0; j < n; ++j) {
                        sum += exp_of(x[j] - largest);
                    }
                }
            }
        }
        l.lse[i] = largest + logf(sum);
    }
}

// One block after another: the largest weight that its tokens get.
static void compute_weights(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;
    const auto & w = *l.wanting;

    const int n_block = llama_triattn_store::N_BLOCK;

    for (const auto & s : l.slabs) {
        for (int64_t b = ith; b < s.n_rows/n_block; b += nth) {
            if (s.blocks[b] < 0) {
                continue;
            }
            const llama_pos p0 = s.blocks[b]*(llama_pos) n_block;
            const int n_here = std::min<llama_pos>(n_block, l.size - p0);
            for (uint32_t head = 0; head < l.n_head; ++head) {
                float best[llama_triattn_store::N_BLOCK];
                std::fill_n(best, n_block, -INFINITY);
                for (uint32_t query = 0; query < w.n_query; ++query) {
                    const int     n   = l.n_seen(s.blocks[b], w.pos[query]);
                    const float * x   = l.row(s, head, query) + b*n_block;
                    const float   lse = l.lse[head*w.n_query + query];
                    if (n == n_block) {
                        for (int j = 0; j < n_block; ++j) {
                            best[j] = std::max(best[j], x[j] - lse);
                        }
                    } else {
                        for (int j = 0; j < n; ++j) {
                            best[j] = std::max(best[j], x[j] - lse);
                        }
                    }
                }
                std::copy_n(best, std::max(n_here, 0), l.weights + (size_t) head*l.size + p0);
            }
        }
    }
}

bool llama_triattn_recaller::score(
        const llama_triattn_store & store,
        llama_seq_id seq_id,
        uint32_t i_layer,
        uint32_t n_head_kv,
        uint32_t n_embd_head,
        const llama_triattn_wanting & wanting,
        std::vector<float> & weights) {
    const llama_pos size  = store.size(seq_id);
    const auto      slabs = store.slabs(seq_id, i_layer);
    const size_t    n_slab = store.n_slab();
    const size_t    row    = ggml_row_size(type_k, n_embd_head);

    weights.assign((size_t) n_head_kv*size, -INFINITY);

    // of the last slab the rows behind its last block are not there
    std::vector<int64_t> n_rows;
    size_t n_row = 0;
    for (const auto & s : slabs) {
        const auto & b = *s.blocks;
        const auto last = std::find_if(b.rbegin(), b.rend(), [](int32_t x) { return x >= 0; });
        n_rows.push_back((b.rend() - last)*llama_triattn_store::N_BLOCK);
        n_row += n_rows.back();
    }
    if (n_row == 0) {
        return true;
    }

    const size_t n_logits = n_row*wanting.n_query;
    const uint32_t n_head = std::clamp<size_t>(N_LOGITS_MAX/n_logits, 1, n_head_kv);

    scratch.resize(n_logits*n_head + 16);

    for (uint32_t head0 = 0; head0 < n_head_kv; head0 += n_head) {
        const uint32_t n = std::min(n_head, n_head_kv - head0);

        const size_t n_nodes = slabs.size() + 2;
        ggml_init_params init = {
            /*.mem_size   =*/ (2*n_nodes + 4)*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes + 4, false),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx { ggml_init(init) };
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), n_nodes + 4, false);

        ggml_tensor * q = ggml_new_tensor_3d(ctx.get(), GGML_TYPE_F32, n_embd_head, wanting.n_query, n);
        q->data = const_cast<float *>(wanting.q.data()) + (size_t) head0*wanting.n_query*n_embd_head;

        triattn_logits logits;
        logits.wanting = &wanting;
        logits.head0   = head0;
        logits.n_head  = n;
        logits.size    = size;
        logits.weights = weights.data() + (size_t) head0*size;
        logits.lse.resize((size_t) n*wanting.n_query);

        float * out = scratch.data();
        for (size_t i = 0; i < slabs.size(); ++i) {
            if (n_rows[i] == 0) {
                continue;
            }
            // the rows of a head lie side by side
            ggml_tensor * k = ggml_new_tensor_3d(ctx.get(), type_k, n_embd_head, n_rows[i], n);
            k->data  = slabs[i].data + slabs[i].offset + head0*n_slab*row;
            k->nb[2] = n_slab*row;
            k->nb[3] = k->nb[2]*n;

            ggml_tensor * product = ggml_mul_mat(ctx.get(), k, q);
            product->data = out;
            logits.slabs.push_back({ out, slabs[i].blocks->data(), n_rows[i] });
            out += ggml_nelements(product);

            ggml_build_forward_expand(gf, product);
        }

        float unused = 0.0f;
        for (const auto fn : { compute_sums, compute_weights }) {
            ggml_tensor * node = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, &q, 1, fn, GGML_N_TASKS_MAX, &logits);
            node->data = &unused;
            ggml_build_forward_expand(gf, node);
        }

        if (ggml_backend_graph_compute(backend.get(), gf) != GGML_STATUS_SUCCESS) {
            return false;
        }
    }
    return true;
}

std::vector<llama_pos> llama_triattn_wanted(const float * weights, llama_pos p0, llama_pos p1, uint32_t n_max, uint32_t n_block) {
    struct block {
        float     weight;
        llama_pos pos;
    };
    std::vector<block> blocks;

    for (llama_pos b = p0/(llama_pos) n_block*(llama_pos) n_block; b < p1; b += n_block) {
        float best = -INFINITY;
        for (llama_pos p = std::max(b, p0); p < std::min(b + (llama_pos) n_block, p1); ++p) {
            best = std::max(best, weights[p]);
        }
        if (best > -INFINITY) {
            blocks.push_back({ best, b });
        }
    }

    const auto   before = [](const block & a, const block & b) { return a.weight != b.weight ? a.weight > b.weight : a.pos > b.pos; };
    const size_t n      = std::min<size_t>(blocks.size(), (n_max + n_block - 1)/n_block + 2);
    std::partial_sort(blocks.begin(), blocks.begin() + n, blocks.end(), before);

    std::vector<llama_pos> res;
    for (size_t i = 0; i < n; ++i) {
        std::vector<llama_pos> tokens;
        for (llama_pos p = std::max(blocks[i].pos, p0); p < std::min(blocks[i].pos + (llama_pos) n_block, p1); ++p) {
            if (weights[p] > -INFINITY) {
                tokens.push_back(p);
            }
        }
        if (res.size() + tokens.size() > n_max) {
            break;
        }
        res.insert(res.end(), tokens.begin(), tokens.end());
    }
    return res;
}
