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

// What the nodes behind the products need. Logits lie as the products leave them: for each head and slab [n_query][n_rows].
struct triattn_logits {
    struct slab {
        const int32_t * blocks; // [n_rows/N_BLOCK]
        int64_t         n_rows;
    };
    std::vector<slab> slabs;

    struct head {
        const float *        sink; // [n_query], nullptr: none
        std::vector<float *> data; // [slab]
        std::vector<float>   lse;  // [n_query] logarithm of the sum of exponentials
        float *              weights; // [size]
    };
    std::vector<head> heads;

    const llama_triattn_wanting * wanting;

    llama_pos size; // of the sequence

    // tokens of a block that a query sees: they come first
    int n_seen(int32_t block, llama_pos pos) const {
        const llama_pos p0 = block*(llama_pos) llama_triattn_store::N_BLOCK;
        return block < 0 ? 0 : std::clamp<llama_pos>(std::min(pos + 1, size) - p0, 0, llama_triattn_store::N_BLOCK);
    }
};

static const int N_BLOCK = llama_triattn_store::N_BLOCK;

// One query after another: the sum that its softmax divides by.
static void compute_sums(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;
    const auto & w = *l.wanting;

    for (size_t i = ith; i < l.heads.size()*w.n_query; i += nth) {
        auto & head = l.heads[i/w.n_query];
        const uint32_t query = i % w.n_query;

        float largest = head.sink ? head.sink[query] : -INFINITY;
        for (size_t j = 0; j < l.slabs.size(); ++j) {
            const auto & s = l.slabs[j];
            float * row = head.data[j] + query*s.n_rows;
            for (int64_t b = 0; b < s.n_rows/N_BLOCK; ++b) {
                const int n = l.n_seen(s.blocks[b], w.pos[query]);
                float * x = row + b*N_BLOCK;
                for (int k = 0; w.soft_cap > 0.0f && k < n; ++k) {
                    x[k] = w.soft_cap*tanhf(x[k]/w.soft_cap);
                }
                for (int k = 0; k < n; ++k) {
                    largest = std::max(largest, x[k]);
                }
            }
        }

        float sums[N_BLOCK] = {};
        for (size_t j = 0; j < l.slabs.size(); ++j) {
            const auto & s = l.slabs[j];
            const float * row = head.data[j] + query*s.n_rows;
            for (int64_t b = 0; b < s.n_rows/N_BLOCK; ++b) {
                const int n = l.n_seen(s.blocks[b], w.pos[query]);
                const float * x = row + b*N_BLOCK;
                if (n == N_BLOCK) {
                    for (int k = 0; k < N_BLOCK; ++k) {
                        sums[k] += exp_of(x[k] - largest);
                    }
                } else {
                    for (int k = 0; k < n; ++k) {
                        sums[k] += exp_of(x[k] - largest);
                    }
                }
            }
        }
        float sum = head.sink ? exp_of(head.sink[query] - largest) : 0.0f;
        for (const float x : sums) {
            sum += x;
        }
        head.lse[query] = largest + logf(sum);
    }
}

// One block after another: the largest weight that its tokens get.
static void compute_weights(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;
    const auto & w = *l.wanting;

    for (size_t j = 0; j < l.slabs.size(); ++j) {
        const auto & s = l.slabs[j];
        for (int64_t b = ith; b < s.n_rows/N_BLOCK; b += nth) {
            if (s.blocks[b] < 0) {
                continue;
            }
            const llama_pos p0 = s.blocks[b]*(llama_pos) N_BLOCK;
            const int n_here = std::clamp<llama_pos>(l.size - p0, 0, N_BLOCK);
            for (const auto & head : l.heads) {
                float best[N_BLOCK];
                std::fill_n(best, N_BLOCK, -INFINITY);
                for (uint32_t query = 0; query < w.n_query; ++query) {
                    const int     n   = l.n_seen(s.blocks[b], w.pos[query]);
                    const float * x   = head.data[j] + query*s.n_rows + b*N_BLOCK;
                    const float   lse = head.lse[query];
                    if (n == N_BLOCK) {
                        for (int k = 0; k < N_BLOCK; ++k) {
                            best[k] = std::max(best[k], x[k] - lse);
                        }
                    } else {
                        for (int k = 0; k < n; ++k) {
                            best[k] = std::max(best[k], x[k] - lse);
                        }
                    }
                }
                std::copy_n(best, n_here, head.weights + p0);
            }
        }
    }
}

bool llama_triattn_recaller::score(
        const llama_triattn_store & store,
        llama_seq_id seq_id,
        uint32_t i_layer,
        const std::vector<uint32_t> & heads,
        uint32_t n_embd_head,
        const llama_triattn_wanting & wanting,
        std::vector<float> & weights) {
    const llama_pos size   = store.size(seq_id);
    const auto      slabs  = store.slabs(seq_id, i_layer);
    const size_t    n_slab = store.n_slab();
    const size_t    row    = ggml_row_size(type_k, n_embd_head);

    weights.assign(heads.size()*size, -INFINITY);

    // of a slab the rows behind its last block are not there
    std::vector<int64_t> n_rows;
    size_t n_row = 0;
    for (const auto & s : slabs) {
        const auto & b = *s.blocks;
        const auto last = std::find_if(b.rbegin(), b.rend(), [](int32_t x) { return x >= 0; });
        n_rows.push_back((b.rend() - last)*N_BLOCK);
        n_row += n_rows.back();
    }
    if (n_row == 0 || wanting.n_query == 0) {
        return true;
    }

    const size_t n_logits = n_row*wanting.n_query;
    const size_t n_at_once = std::clamp<size_t>(N_LOGITS_MAX/n_logits, 1, heads.size());

    scratch.resize(n_logits*n_at_once);

    for (size_t i0 = 0; i0 < heads.size(); i0 += n_at_once) {
        const size_t n = std::min(n_at_once, heads.size() - i0);

        const size_t n_nodes = slabs.size()*n + 4;
        ggml_init_params init = {
            /*.mem_size   =*/ 3*n_nodes*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes, false),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx { ggml_init(init) };
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), n_nodes, false);

        triattn_logits logits;
        logits.wanting = &wanting;
        logits.size    = size;
        for (size_t j = 0; j < slabs.size(); ++j) {
            logits.slabs.push_back({ slabs[j].blocks->data(), n_rows[j] });
        }

        float * out = scratch.data();
        ggml_tensor * q = nullptr;
        for (size_t i = i0; i < i0 + n; ++i) {
            const size_t first = (size_t) heads[i]*wanting.n_query;

            triattn_logits::head head;
            head.sink    = wanting.sink.empty() ? nullptr : wanting.sink.data() + first;
            head.weights = weights.data() + i*size;
            head.lse.resize(wanting.n_query);

            q = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, n_embd_head, wanting.n_query);
            q->data = const_cast<float *>(wanting.q.data()) + first*n_embd_head;

            for (size_t j = 0; j < slabs.size(); ++j) {
                head.data.push_back(out);
                if (n_rows[j] == 0) {
                    continue;
                }
                // the rows of a head lie side by side
                ggml_tensor * k = ggml_new_tensor_2d(ctx.get(), type_k, n_embd_head, n_rows[j]);
                k->data = slabs[j].data + slabs[j].offset + heads[i]*n_slab*row;

                ggml_tensor * product = ggml_mul_mat(ctx.get(), k, q);
                product->data = out;
                out += ggml_nelements(product);

                ggml_build_forward_expand(gf, product);
            }
            logits.heads.push_back(std::move(head));
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

std::vector<llama_pos> llama_triattn_wanted(
        const float * weights, llama_pos p0, llama_pos p1, uint32_t n_max, uint32_t n_block, float least) {
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
        if (best > least) {
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
