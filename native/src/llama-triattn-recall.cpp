#include "llama-triattn-recall.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

// A library for all processors has these loops more than once, and the loader takes what the processor can do.
#if defined(LLAMA_TRIATTN_PORTABLE)
#define TRIATTN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define TRIATTN_F16C   __attribute__((target("avx,f16c")))
#define TRIATTN_HAS_F16C __builtin_cpu_supports("f16c")
#else
#define TRIATTN_CLONES
#define TRIATTN_F16C
#define TRIATTN_HAS_F16C true
#endif

#if defined(__F16C__) || defined(LLAMA_TRIATTN_PORTABLE)
#include <immintrin.h>

TRIATTN_F16C static void read_f16(const uint8_t * src, size_t n, float * dst) {
    for (size_t i = 0; i < n; i += 8) {
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (src + 2*i))));
    }
}
#endif

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
    const float t = (x < -80.0f ? -80.0f : x)*1.44269504f;
    const int   i = (int) (t - 0.5f);
    const float f = t - (float) i;

    const float p = 1.0f + f*(0.693147f + f*(0.240227f + f*(0.0555041f + f*(0.0096181f + f*0.0013333f))));

    const int32_t bits = (i + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return p*scale;
}

static const int N_BLOCK = llama_triattn_store::N_BLOCK;

// Logits of a block of keys and some queries, for each of the heads: [n_query][N_BLOCK].
struct triattn_logits {
    struct block {
        const uint8_t * k;   // of the first KV head
        llama_pos       pos; // of its first token
    };
    std::vector<block> blocks;

    size_t    head_stride; // bytes from the keys of a KV head to those of the next
    ggml_type type;
    uint32_t  n_embd;

    struct head {
        uint32_t             i;
        const float *        q;    // [n_query][n_embd]
        const float *        sink; // [n_query], nullptr: none
        float *              data; // [block][n_query][N_BLOCK]
        std::vector<float>   lse;  // [n_query] logarithm of the sum of exponentials
        float *              weights; // [size]
    };
    std::vector<head> heads;

    const llama_triattn_wanting * wanting;

    llama_pos size; // of the sequence

    // tokens of a block that a query sees: they come first
    int n_seen(const block & b, llama_pos pos) const {
        return std::clamp<llama_pos>(std::min(pos + 1, size) - b.pos, 0, N_BLOCK);
    }
};

// A block of keys as numbers, [n_embd][N_BLOCK].
static void read_keys(const triattn_logits & l, const uint8_t * k, std::vector<float> & rows, std::vector<float> & res) {
    const size_t n = (size_t) l.n_embd*N_BLOCK;
    res.resize(n);

    if (ggml_blck_size(l.type) > 1) {
        const size_t size = ggml_row_size(l.type, l.n_embd);
        rows.resize(n);
        for (int i = 0; i < N_BLOCK; ++i) {
            ggml_get_type_traits(l.type)->to_float(k + i*size, rows.data() + (size_t) i*l.n_embd, l.n_embd);
        }
        for (size_t d = 0; d < l.n_embd; ++d) {
            for (int i = 0; i < N_BLOCK; ++i) {
                res[d*N_BLOCK + i] = rows[i*l.n_embd + d];
            }
        }
        return;
    }
    if (l.type == GGML_TYPE_F32) {
        memcpy(res.data(), k, n*sizeof(float));
        return;
    }
#if defined(__F16C__) || defined(LLAMA_TRIATTN_PORTABLE)
    if (l.type == GGML_TYPE_F16 && TRIATTN_HAS_F16C) {
        read_f16(k, n, res.data()); // n is a multiple of N_BLOCK
        return;
    }
#endif
    ggml_get_type_traits(l.type)->to_float(k, res.data(), n);
}

typedef float triattn_vec __attribute__((vector_size(llama_triattn_store::N_BLOCK*sizeof(float))));

// N queries with a block of keys, whose sums stay in registers.
template <int N>
static inline void multiply_some(const float * k, const float * q, uint32_t n_embd, float * out) {
    triattn_vec x, sums[N] = {};
    for (uint32_t d = 0; d < n_embd; ++d) {
        memcpy(&x, k + (size_t) d*N_BLOCK, sizeof(x));
        for (int i = 0; i < N; ++i) {
            sums[i] += q[d + (size_t) i*n_embd]*x;
        }
    }
    memcpy(out, sums, sizeof(sums));
}

#if defined(__AVX512F__)
static const int N_AT_ONCE = 8;
#else
static const int N_AT_ONCE = 4;
#endif

TRIATTN_CLONES static void multiply(const float * k, const float * q, uint32_t n_embd, uint32_t n, float * out) {
    uint32_t i = 0;
    for (; i + N_AT_ONCE <= n; i += N_AT_ONCE) {
        multiply_some<N_AT_ONCE>(k, q + (size_t) i*n_embd, n_embd, out + (size_t) i*N_BLOCK);
    }
    for (; i + 4 <= n; i += 4) {
        multiply_some<4>(k, q + (size_t) i*n_embd, n_embd, out + (size_t) i*N_BLOCK);
    }
    for (; i < n; ++i) {
        multiply_some<1>(k, q + (size_t) i*n_embd, n_embd, out + (size_t) i*N_BLOCK);
    }
}

// One block of one head after another.
static void compute_products(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;

    const uint32_t n_query = l.wanting->n_query;

    std::vector<float> rows, keys;
    for (size_t i = ith; i < l.heads.size()*l.blocks.size(); i += nth) {
        auto & head = l.heads[i/l.blocks.size()];
        const size_t b = i % l.blocks.size();

        read_keys(l, l.blocks[b].k + head.i*l.head_stride, rows, keys);

        multiply(keys.data(), head.q, l.n_embd, n_query, head.data + b*n_query*N_BLOCK);
    }
}

// One query after another: the sum that its softmax divides by.
TRIATTN_CLONES static void compute_sums(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;
    const auto & w = *l.wanting;

    for (size_t i = ith; i < l.heads.size()*w.n_query; i += nth) {
        auto & head = l.heads[i/w.n_query];
        const uint32_t query = i % w.n_query;

        float * x0 = head.data + query*N_BLOCK;
        const size_t stride = (size_t) w.n_query*N_BLOCK;

        // a lane for each token of a block: the compiler may not change the order of a sum, and makes no vectors of one number
        float largest_of[N_BLOCK];
        std::fill_n(largest_of, N_BLOCK, head.sink ? head.sink[query] : -INFINITY);
        for (size_t b = 0; b < l.blocks.size(); ++b) {
            const int n = l.n_seen(l.blocks[b], w.pos[query]);
            float * x = x0 + b*stride;
            for (int k = 0; w.soft_cap > 0.0f && k < n; ++k) {
                x[k] = w.soft_cap*tanhf(x[k]/w.soft_cap);
            }
            for (int k = n; k < N_BLOCK; ++k) {
                x[k] = -INFINITY; // not seen
            }
            for (int k = 0; k < N_BLOCK; ++k) {
                largest_of[k] = largest_of[k] < x[k] ? x[k] : largest_of[k];
            }
        }
        const float largest = *std::max_element(largest_of, largest_of + N_BLOCK);

        float sums[N_BLOCK] = {};
        for (size_t b = 0; b < l.blocks.size(); ++b) {
            const float * x = x0 + b*stride;
            for (int k = 0; k < N_BLOCK; ++k) {
                sums[k] += exp_of(x[k] - largest);
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
TRIATTN_CLONES static void compute_weights(ggml_tensor * /*dst*/, int ith, int nth, void * userdata) {
    auto & l = *(triattn_logits *) userdata;

    const uint32_t n_query = l.wanting->n_query;

    for (size_t b = ith; b < l.blocks.size(); b += nth) {
        const llama_pos p0 = l.blocks[b].pos;
        for (const auto & head : l.heads) {
            float best[N_BLOCK];
            std::fill_n(best, N_BLOCK, -INFINITY);
            for (uint32_t query = 0; query < n_query; ++query) {
                const float * x   = head.data + (b*n_query + query)*N_BLOCK;
                const float   lse = head.lse[query];
                for (int k = 0; k < N_BLOCK; ++k) {
                    best[k] = best[k] < x[k] - lse ? x[k] - lse : best[k];
                }
            }
            std::copy_n(best, std::clamp<llama_pos>(l.size - p0, 0, N_BLOCK), head.weights + p0);
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
    const llama_pos size = store.size(seq_id);
    const size_t    row  = ggml_row_size(type_k, n_embd_head);

    weights.assign(heads.size()*size, -INFINITY);

    triattn_logits logits;
    logits.wanting     = &wanting;
    logits.size        = size;
    logits.type        = type_k;
    logits.n_embd      = n_embd_head;
    logits.head_stride = store.n_slab()*row;
    for (const auto & s : store.slabs(seq_id, i_layer)) {
        for (size_t i = 0; i < s.blocks->size(); ++i) {
            if ((*s.blocks)[i] >= 0) {
                logits.blocks.push_back({ s.data + s.offset + i*N_BLOCK*row, (*s.blocks)[i]*(llama_pos) N_BLOCK });
            }
        }
    }
    const size_t n_logits = logits.blocks.size()*N_BLOCK*wanting.n_query;
    if (n_logits == 0) {
        return true;
    }
    const size_t n_at_once = std::clamp<size_t>(N_LOGITS_MAX/n_logits, 1, heads.size());

    scratch.resize(n_logits*n_at_once);

    for (size_t i0 = 0; i0 < heads.size(); i0 += n_at_once) {
        logits.heads.clear();
        for (size_t i = i0; i < std::min(i0 + n_at_once, heads.size()); ++i) {
            const size_t first = (size_t) heads[i]*wanting.n_query;

            triattn_logits::head head;
            head.i       = heads[i];
            head.q       = wanting.q.data() + first*n_embd_head;
            head.sink    = wanting.sink.empty() ? nullptr : wanting.sink.data() + first;
            head.data    = scratch.data() + (i - i0)*n_logits;
            head.weights = weights.data() + i*size;
            head.lse.resize(wanting.n_query);
            logits.heads.push_back(std::move(head));
        }

        // the backend's threads compute one step after the other
        ggml_init_params init = {
            /*.mem_size   =*/ 8*ggml_tensor_overhead() + ggml_graph_overhead_custom(8, false),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        ggml_context_ptr ctx { ggml_init(init) };
        ggml_cgraph * gf = ggml_new_graph_custom(ctx.get(), 8, false);

        float unused = 0.0f;
        ggml_tensor * cur = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_F32, 1);
        cur->data = &unused;
        for (const auto step : { compute_products, compute_sums, compute_weights }) {
            cur = ggml_custom_4d(ctx.get(), GGML_TYPE_F32, 1, 1, 1, 1, &cur, 1, step, GGML_N_TASKS_MAX, &logits);
            cur->data = &unused;
        }
        ggml_build_forward_expand(gf, cur);

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
    if (n < blocks.size()) {
        std::nth_element(blocks.begin(), blocks.begin() + n, blocks.end(), before);
    }
    std::sort(blocks.begin(), blocks.begin() + n, before);

    std::vector<llama_pos> res;
    for (size_t i = 0; i < n; ++i) {
        const size_t n_before = res.size();
        for (llama_pos p = std::max(blocks[i].pos, p0); p < std::min(blocks[i].pos + (llama_pos) n_block, p1); ++p) {
            if (weights[p] > -INFINITY) {
                res.push_back(p);
            }
        }
        if (res.size() > n_max) {
            res.resize(n_before);
            break;
        }
    }
    return res;
}
