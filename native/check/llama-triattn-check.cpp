// The self-test of a build: does this processor run the libraries that were just made, and do they compute what they should?
//
// Products of every common type of weights with a vector and with a batch, in plain memory and in every kind of buffer that the
// CPU backend has of its own (AMX tiles, repacked weights), against the same product in double precision; then a normalised
// softmax, RoPE and flash attention, which only have to end. Exit code 0, or 1 with what is wrong. A process of its own, for a
// library that was built wrongly may end it by a signal.

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include "llama.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

static const ggml_type TYPES[] = {
    GGML_TYPE_F32,  GGML_TYPE_F16,  GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,
    GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
};

static const int64_t N_IN = 512, N_OUT = 128;

static int n_products = 0;

static std::vector<float> random_values(int64_t n) {
    static std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> res(n);
    for (auto & x : res) {
        x = normal(rng);
    }
    return res;
}

struct context {
    ggml_context_ptr ctx { ggml_init({ 256*ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }) };

    ggml_context * get() { return ctx.get(); }
};

static bool compute(ggml_backend_t backend, ggml_context * ctx, ggml_tensor * out) {
    auto * gf = ggml_new_graph(ctx);
    ggml_build_forward_expand(gf, out);
    return ggml_backend_graph_compute(backend, gf) == GGML_STATUS_SUCCESS;
}

// the largest error of a product, as a part of the length of what was multiplied; negative: this buffer does not take it
static double error_of_product(ggml_backend_t backend, ggml_backend_buffer_type_t buft, ggml_type type, int64_t n_batch) {
    context ctx_w, ctx;

    auto * w = ggml_new_tensor_2d(ctx_w.get(), type, N_IN, N_OUT);
    ggml_backend_buffer_ptr buf_w { ggml_backend_alloc_ctx_tensors_from_buft(ctx_w.get(), buft) };
    auto * x = ggml_new_tensor_2d(ctx.get(), GGML_TYPE_F32, N_IN, n_batch);
    auto * y = ggml_mul_mat(ctx.get(), w, x);
    if (!buf_w || !ggml_backend_supports_op(backend, y)) {
        return -1;
    }
    ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors(ctx.get(), backend) };
    ggml_backend_buffer_set_usage(buf_w.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);

    const auto wf = random_values(N_IN*N_OUT);
    const auto xf = random_values(N_IN*n_batch);

    std::vector<uint8_t> wq(ggml_nbytes(w));
    std::vector<float>   wd(wf);
    if (type == GGML_TYPE_F32) {
        memcpy(wq.data(), wf.data(), wq.size());
    } else {
        ggml_quantize_chunk(type, wf.data(), wq.data(), 0, N_OUT, N_IN, nullptr);
        ggml_get_type_traits(type)->to_float(wq.data(), wd.data(), N_IN*N_OUT);
    }
    ggml_backend_tensor_set(w, wq.data(), 0, wq.size());
    ggml_backend_tensor_set(x, xf.data(), 0, ggml_nbytes(x));
    if (!compute(backend, ctx.get(), y)) {
        return INFINITY;
    }
    std::vector<float> got(N_OUT*n_batch);
    ggml_backend_tensor_get(y, got.data(), 0, ggml_nbytes(y));
    n_products += 1;

    double res = 0;
    for (int64_t b = 0; b < n_batch; ++b) {
        for (int64_t o = 0; o < N_OUT; ++o) {
            double sum = 0, size = 0;
            for (int64_t i = 0; i < N_IN; ++i) {
                const double p = (double) wd[o*N_IN + i]*xf[b*N_IN + i];
                sum  += p;
                size += p*p;
            }
            const double e = std::abs(got[b*N_OUT + o] - sum)/std::sqrt(size);
            res = std::isnan(e) ? INFINITY : std::max(res, e);
        }
    }
    return res;
}

// what a layer does besides: it has to end, with numbers
static bool attention_is_finite(ggml_backend_t backend) {
    const int64_t n_embd = 64, n_head = 4, n_kv = 256, n_tokens = 7;

    context ctx;
    auto * q    = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F32, n_embd, n_head, n_tokens, 1);
    auto * k    = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, n_embd, n_kv, n_head, 1);
    auto * v    = ggml_new_tensor_4d(ctx.get(), GGML_TYPE_F16, n_embd, n_kv, n_head, 1);
    auto * pos  = ggml_new_tensor_1d(ctx.get(), GGML_TYPE_I32, n_tokens);
    auto * rope = ggml_rope_ext(ctx.get(), q, pos, nullptr, n_embd, GGML_ROPE_TYPE_NEOX, 4096, 10000.0f, 1.0f, 0.0f, 1.0f, 32.0f, 1.0f);
    auto * att  = ggml_flash_attn_ext(ctx.get(), ggml_permute(ctx.get(), rope, 0, 2, 1, 3), k, v, nullptr, 0.125f, 0.0f, 0.0f);
    auto * out  = ggml_soft_max(ctx.get(), ggml_rms_norm(ctx.get(), att, 1e-6f));

    ggml_backend_buffer_ptr buf { ggml_backend_alloc_ctx_tensors(ctx.get(), backend) };

    const std::vector<int32_t> positions(n_tokens, 1000);
    ggml_backend_tensor_set(pos, positions.data(), 0, ggml_nbytes(pos));
    const auto qf = random_values(ggml_nelements(q));
    ggml_backend_tensor_set(q, qf.data(), 0, ggml_nbytes(q));
    for (auto * t : { k, v }) {
        const auto f = random_values(ggml_nelements(t));
        std::vector<ggml_fp16_t> h(f.size());
        ggml_fp32_to_fp16_row(f.data(), h.data(), f.size());
        ggml_backend_tensor_set(t, h.data(), 0, ggml_nbytes(t));
    }
    if (!compute(backend, ctx.get(), out)) {
        return false;
    }
    std::vector<float> got(ggml_nelements(out));
    ggml_backend_tensor_get(out, got.data(), 0, ggml_nbytes(out));
    for (const float x : got) {
        if (!std::isfinite(x)) {
            return false;
        }
    }
    return true;
}

int main() {
    llama_backend_init();

    auto * dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_ptr backend { ggml_backend_dev_init(dev, nullptr) };

    std::vector<ggml_backend_buffer_type_t> bufts { ggml_backend_dev_buffer_type(dev) };
    auto * reg   = ggml_backend_dev_backend_reg(dev);
    auto * extra = (ggml_backend_dev_get_extra_bufts_t) ggml_backend_reg_get_proc_address(reg, "ggml_backend_dev_get_extra_bufts");
    for (auto * b = extra ? extra(dev) : nullptr; b && *b; ++b) {
        bufts.push_back(*b);
    }

    double worst = 0;
    for (auto * buft : bufts) {
        for (const auto type : TYPES) {
            for (const int64_t n_batch : { 1, 33 }) {
                const double e = error_of_product(backend.get(), buft, type, n_batch);
                // weights and inputs are rounded for most types; a wrong kernel is off by 1 and more
                if (e > 0.2) {
                    printf("the product of %s with %d columns in %s memory is wrong by %.2g\n", ggml_type_name(type), (int) n_batch,
                            ggml_backend_buft_name(buft), e);
                    return 1;
                }
                worst = std::max(worst, e);
            }
        }
    }
    if (!attention_is_finite(backend.get())) {
        printf("attention gives values that are not finite\n");
        return 1;
    }
    printf("%d products in %zu kinds of memory, largest error %.1e\n", n_products, bufts.size(), worst);
    return 0;
}
