#include "llama-triattn-attention.h"

#include "llama-triattn-bytes.h"
#include "llama-triattn-cache.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

static const uint32_t N_POOL_SNAPKV = 5;
static const uint32_t N_POOL_RKV    = 7;

static const float RKV_LAMBDA = 0.1f;
static const float RKV_LIKE   = 0.5f; // cosine

static const uint32_t N_H2O_MAX = 512; // queries that are recorded of a micro-batch
static const uint32_t N_CHUNK   = 128; // queries of one graph

bool llama_triattn_attention::is_policy(int32_t policy) {
    return policy == LLAMA_TRIATTN_POLICY_SNAPKV || policy == LLAMA_TRIATTN_POLICY_H2O ||
           policy == LLAMA_TRIATTN_POLICY_TOVA   || policy == LLAMA_TRIATTN_POLICY_RKV;
}

uint32_t llama_triattn_attention::n_queries(const llama_triattn_params & params, uint32_t n_batch) {
    switch (params.policy) {
        case LLAMA_TRIATTN_POLICY_SNAPKV: return N_SNAPKV;
        case LLAMA_TRIATTN_POLICY_H2O:    return std::max(params.window, std::min(n_batch, N_H2O_MAX));
        case LLAMA_TRIATTN_POLICY_TOVA:   return 1;
        case LLAMA_TRIATTN_POLICY_RKV:    return N_RKV;
        default:                          return params.weight_q > 0.0f ? std::max(params.recall_queries, 1u) : 0;
    }
}

//
// softmax weights
//

static size_t download(ggml_backend_sched_t sched, ggml_tensor * t, std::vector<float> & data) {
    data.resize(ggml_nelements(t));
    ggml_backend_tensor_get_async(ggml_backend_sched_get_tensor_backend(sched, t), t, data.data(), 0, ggml_nbytes(t));
    return ggml_nbytes(t);
}

bool llama_triattn_attention::compute(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const llama_triattn_queries & queries,
        const sequence & seq,
        const std::vector<llama_pos> & qpos,
        bool with_logits,
        std::vector<weights> & res,
        llama_triattn_stats & counters) const {
    auto * sched = lctx.get_sched();

    const auto [ctx, gf] = llama_triattn_begin(lctx);

    const int64_t n_cells = seq.cells.size();
    const int64_t n_query = qpos.size();

    ggml_tensor * inp_cells = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_cells);
    ggml_tensor * inp_rows  = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_query);
    ggml_tensor * inp_mask  = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n_cells, n_query);
    for (auto * t : { inp_cells, inp_rows, inp_mask }) {
        ggml_set_input(t);
    }

    struct part {
        ggml_tensor * out;
        int64_t       n_head;
    };
    std::vector<std::vector<part>> parts(layers.size());
    std::vector<ggml_tensor *>     keys (layers.size(), nullptr);

    int64_t n_head_max = 0;

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];

        const int n_nodes = ggml_graph_n_nodes(gf);

        const int64_t n_embd = layer.n_embd_head_k;

        ggml_tensor * k = ggml_view_2d(ctx, layer.k, n_embd*layer.n_head_kv, layer.k->ne[1], layer.k->nb[1], seq.strm*layer.k->nb[2]);
        k = ggml_get_rows(ctx, k, inp_cells);
        if (with_logits) {
            keys[i] = k;
            ggml_set_output(k);
        }
        k = ggml_reshape_3d(ctx, k, n_embd, layer.n_head_kv, n_cells);
        k = ggml_permute(ctx, k, 0, 2, 1, 3); // [n_embd, n_cells, n_head_kv]

        for (const int32_t il : layer.ils) {
            const auto & ring = queries.of_layer(il);

            ggml_tensor * q = ggml_reshape_3d(ctx, ggml_get_rows(ctx, ring.q, inp_rows), n_embd, layer.n_head, n_query);

            ggml_tensor * cur = ggml_mul_mat(ctx, k, ggml_permute(ctx, q, 0, 2, 1, 3)); // [n_cells, n_query, n_head]

            float scale = ring.kq_scale;
            if (soft_cap > 0.0f) {
                cur   = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, cur, scale/soft_cap)), soft_cap);
                scale = 1.0f;
            }
            if (with_logits) {
                cur = ggml_add(ctx, ggml_scale(ctx, cur, scale), inp_mask);
            } else {
                cur = ggml_soft_max_ext(ctx, cur, inp_mask, scale, 0.0f);
                ggml_soft_max_add_sinks(cur, ring.sinks);
                // the sum over the queries
                cur = ggml_sum_rows(ctx, ggml_cont(ctx, ggml_permute(ctx, cur, 1, 0, 2, 3))); // [1, n_cells, n_head]
            }
            ggml_set_output(cur);
            ggml_build_forward_expand(gf, cur);
            parts[i].push_back({ cur, layer.n_head });
            n_head_max = std::max<int64_t>(n_head_max, layer.n_head);
        }
        llama_triattn_pin(lctx, gf, n_nodes, layer.k);
    }

    if (!ggml_backend_sched_alloc_graph(sched, gf)) {
        LLAMA_LOG_ERROR("%s: failed to allocate the graph of the attention of recorded queries\n", __func__);
        return false;
    }

    std::vector<int32_t> rows(n_query);
    std::vector<float>   mask(n_cells*n_query);
    for (int64_t j = 0; j < n_query; ++j) {
        rows[j] = queries.row_of(seq.seq_id, qpos[j]);
        for (int64_t c = 0; c < n_cells; ++c) {
            mask[j*n_cells + c] = seq.names[c] <= qpos[j] ? 0.0f : -INFINITY;
        }
    }
    ggml_backend_tensor_set(inp_cells, seq.cells.data(), 0, ggml_nbytes(inp_cells));
    ggml_backend_tensor_set(inp_rows,  rows.data(),      0, ggml_nbytes(inp_rows));
    ggml_backend_tensor_set(inp_mask,  mask.data(),      0, ggml_nbytes(inp_mask));
    counters.n_bytes_copied += ggml_nbytes(inp_cells) + ggml_nbytes(inp_rows) + ggml_nbytes(inp_mask);

    if (!llama_triattn_compute(lctx, gf, n_cells*n_query*n_head_max, counters)) {
        LLAMA_LOG_ERROR("%s: failed to compute the attention of recorded queries\n", __func__);
        return false;
    }

    std::vector<std::vector<std::vector<float>>> data(layers.size()); // [layer][il]
    res.resize(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        data[i].resize(parts[i].size());
        for (size_t j = 0; j < parts[i].size(); ++j) {
            counters.n_bytes_copied += download(sched, parts[i][j].out, data[i][j]);
        }
        if (keys[i]) {
            counters.n_bytes_copied += download(sched, keys[i], res[i].keys);
        }
    }
    ggml_backend_sched_synchronize(sched);

    // query heads of layers that share a K lie together under each KV head
    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];

        const uint32_t n_gqa   = layer.n_head/layer.n_head_kv;
        const size_t   n_group = n_gqa*(with_logits ? n_cells*n_query : n_cells);

        res[i].n_query_heads = n_gqa*layer.ils.size();

        auto & out = with_logits ? res[i].logits : res[i].sums;
        out.clear();
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            for (const auto & d : data[i]) {
                out.insert(out.end(), d.begin() + h*n_group, d.begin() + (h + 1)*n_group);
            }
        }
    }
    return true;
}

//
// scores
//

// indices of a head's tokens in the order of their positions
static std::vector<uint32_t> order_of(const std::vector<llama_pos> & tokens) {
    std::vector<uint32_t> res(tokens.size());
    std::iota(res.begin(), res.end(), 0);
    std::stable_sort(res.begin(), res.end(), [&](uint32_t a, uint32_t b) { return tokens[a] < tokens[b]; });
    return res;
}

// over n neighbours of the first `size` of the order; beyond the ends there is nothing (mean: zeros, as the papers' programs have it)
static void pool(std::vector<float> & x, const std::vector<uint32_t> & order, size_t size, uint32_t n, bool use_max) {
    std::vector<float> res(size);
    const int64_t half = n/2;
    for (int64_t i = 0; i < (int64_t) size; ++i) {
        float y = use_max ? -INFINITY : 0.0f;
        for (int64_t j = std::max<int64_t>(i - half, 0); j <= std::min<int64_t>(i + half, size - 1); ++j) {
            y = use_max ? std::max(y, x[order[j]]) : y + x[order[j]]/n;
        }
        res[i] = y;
    }
    for (size_t i = 0; i < size; ++i) {
        x[order[i]] = res[i];
    }
}

static void soft_max(std::vector<float> & x) {
    const float largest = *std::max_element(x.begin(), x.end());
    double sum = 0.0;
    for (auto & y : x) {
        y = expf(y - largest);
        sum += y;
    }
    for (auto & y : x) {
        y /= sum;
    }
}

// R of R-KV for the tokens in their order.  keys: [cells][n_head_kv][n_embd]
static std::vector<float> redundancy(
        const float * keys, const std::vector<uint32_t> & order, size_t stride, uint32_t n_embd) {
    const size_t n = order.size();

    std::vector<float> k(n_embd*n); // dimension by dimension, of length 1
    for (size_t i = 0; i < n; ++i) {
        const float * x = keys + order[i]*stride;
        double sum = 0.0;
        for (uint32_t d = 0; d < n_embd; ++d) {
            sum += (double) x[d]*x[d];
        }
        for (uint32_t d = 0; d < n_embd; ++d) {
            k[d*n + i] = x[d]/(sqrt(sum) + 1e-8);
        }
    }

    std::vector<float> res(n, 0.0f), row(n);
    for (size_t i = 0; i < n; ++i) {
        std::fill(row.begin(), row.end(), 0.0f);
        for (uint32_t d = 0; d < n_embd; ++d) {
            const float   x = k[d*n + i];
            const float * y = k.data() + d*n;
            for (size_t j = 0; j < n; ++j) {
                row[j] += x*y[j];
            }
        }
        row[i] = 0.0f;
        for (size_t j = n; j-- > 0;) {
            if (row[j] > RKV_LIKE) {
                row[j] = 0.0f; // the last of its like
                break;
            }
        }
        for (size_t j = 0; j < n; ++j) {
            res[j] += row[j]/n;
        }
    }
    soft_max(res);
    return res;
}

std::vector<float> llama_triattn_attention::score_head(
        const llama_triattn_layer & layer, const weights & w, uint32_t head_kv, uint32_t i_head,
        const std::vector<llama_pos> & tokens, const std::vector<llama_pos> & qpos, accumulated & acc) const {
    const size_t   n       = tokens.size();
    const size_t   n_query = qpos.size();
    const uint32_t n_heads = w.n_query_heads;

    std::vector<float> res(n, 0.0f);

    const auto add_mean = [&](uint32_t first, uint32_t end) { // over query heads, counted through in the layer
        for (uint32_t j = first; j < end; ++j) {
            for (size_t i = 0; i < n; ++i) {
                res[i] += w.sums[j*n + i]/(end - first);
            }
        }
    };

    if (params.policy == LLAMA_TRIATTN_POLICY_TOVA) {
        add_mean(0, n_heads*layer.n_head_kv);
        return res;
    }

    const auto order = order_of(tokens);

    // h2o has no queries where a round follows another at once
    const llama_pos first    = qpos.empty() ? 0 : qpos[0];
    const size_t    n_before = std::find_if(order.begin(), order.end(), [&](uint32_t i) { return tokens[i] >= first; }) - order.begin();

    if (params.policy == LLAMA_TRIATTN_POLICY_SNAPKV) {
        add_mean(head_kv*n_heads, (head_kv + 1)*n_heads);
        pool(res, order, n_before, N_POOL_SNAPKV, false);
        return res;
    }

    if (params.policy == LLAMA_TRIATTN_POLICY_H2O) {
        add_mean(head_kv*n_heads, (head_kv + 1)*n_heads);

        auto & of_head = acc.heads[i_head];

        std::vector<sum> next(n);
        auto it = of_head.begin();
        for (size_t i = 0; i < n; ++i) {
            const llama_pos token = tokens[order[i]];
            while (it != of_head.end() && it->token < token) {
                ++it;
            }
            const float before = it != of_head.end() && it->token == token ? it->value : 0.0f;
            res[order[i]] += before;
            next[i] = { token, res[order[i]] };
        }
        of_head = std::move(next);
        return res;
    }

    // R-KV
    std::vector<float> logits(n_before);
    for (size_t q = 0; q < n_query; ++q) {
        for (size_t i = 0; i < n_before; ++i) {
            float x = -INFINITY;
            for (uint32_t j = head_kv*n_heads; j < (head_kv + 1)*n_heads; ++j) {
                x = std::max(x, w.logits[(j*n_query + q)*n + order[i]]);
            }
            logits[i] = x;
        }
        if (n_before > 0) {
            soft_max(logits);
        }
        for (size_t i = 0; i < n_before; ++i) {
            res[order[i]] += logits[i]/n_query;
        }
    }
    pool(res, order, n_before, N_POOL_RKV, true);

    const auto r = redundancy(w.keys.data() + head_kv*layer.n_embd_head_k, order, (size_t) layer.n_head_kv*layer.n_embd_head_k, layer.n_embd_head_k);
    for (size_t i = 0; i < n; ++i) {
        res[order[i]] = RKV_LAMBDA*res[order[i]] - (1.0f - RKV_LAMBDA)*r[i];
    }
    return res;
}

// in place; all the same: zeros
static void z_score(float * x, size_t n) {
    double mean = 0.0, var = 0.0;
    for (size_t i = 0; i < n; ++i) {
        mean += x[i]/n;
    }
    for (size_t i = 0; i < n; ++i) {
        var += (x[i] - mean)*(x[i] - mean)/n;
    }
    const double scale = var > 1e-30 ? 1.0/sqrt(var) : 0.0;
    for (size_t i = 0; i < n; ++i) {
        x[i] = (x[i] - mean)*scale;
    }
}

bool llama_triattn_attention::score(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const llama_triattn_queries & queries,
        const sequence & seq,
        std::vector<llama_triattn_layer_scores> & scores,
        llama_triattn_stats & counters) {
    const bool is_rkv = params.policy == LLAMA_TRIATTN_POLICY_RKV;
    const bool is_h2o = params.policy == LLAMA_TRIATTN_POLICY_H2O;

    accumulated none;
    auto & acc = is_h2o ? sums[seq.seq_id] : none;

    const llama_pos n_last = is_rkv ? N_RKV : params.policy == LLAMA_TRIATTN_POLICY_TOVA ? 1 : N_SNAPKV;
    const llama_pos first  = is_h2o ? acc.end : seq.end - n_last;

    const auto qpos = queries.positions(seq.seq_id, std::max(first, seq.whole), seq.end);
    if (qpos.empty() && !is_h2o) {
        // a state was restored that was saved without queries, and nothing was read since
        LLAMA_LOG_WARN("%s: sequence %d: no query is recorded, so that the most recent tokens are kept\n", __func__, seq.seq_id);
    }

    std::vector<weights> all(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        all[i].n_query_heads = layers[i].ils.size()*layers[i].n_head/layers[i].n_head_kv;
        all[i].sums.resize(seq.cells.size()*layers[i].ils.size()*layers[i].n_head, 0.0f);
    }
    for (size_t i = 0; i < qpos.size(); i += N_CHUNK) {
        const std::vector<llama_pos> chunk(qpos.begin() + i, qpos.begin() + std::min(i + N_CHUNK, qpos.size()));

        std::vector<weights> part;
        if (!compute(lctx, layers, queries, seq, chunk, is_rkv, part, counters)) {
            return false;
        }
        if (is_rkv) {
            all = std::move(part); // fewer queries than a chunk
            continue;
        }
        for (size_t j = 0; j < layers.size(); ++j) {
            std::transform(part[j].sums.begin(), part[j].sums.end(), all[j].sums.begin(), all[j].sums.begin(), std::plus<float>());
        }
    }

    const size_t n_cand = seq.cand.size();

    scores.resize(layers.size());
    uint32_t i_head = 0;
    for (size_t i = 0; i < layers.size(); ++i) {
        scores[i].n_head_kv = layers[i].n_head_kv;
        scores[i].data .resize(layers[i].n_head_kv*n_cand);
        for (uint32_t h = 0; h < layers[i].n_head_kv; ++h, ++i_head) {
            std::vector<llama_pos> tokens(seq.cells.size());
            for (size_t c = 0; c < tokens.size(); ++c) {
                tokens[c] = seq.token(i, h, seq.cells[c]);
            }
            const auto of_head = qpos.empty() && !is_h2o ?
                std::vector<float>(tokens.begin(), tokens.end()) : score_head(layers[i], all[i], h, i_head, tokens, qpos, acc);
            for (size_t c = 0; c < n_cand; ++c) {
                scores[i].data[h*n_cand + c] = of_head[seq.cand[c]];
            }
        }
        scores[i].heads = scores[i].data;
        for (uint32_t h = 0; h < layers[i].n_head_kv; ++h) {
            z_score(scores[i].data.data() + h*n_cand, n_cand);
        }
    }
    acc.end = seq.end;
    return true;
}

bool llama_triattn_attention::add(
        llama_context & lctx,
        const std::vector<llama_triattn_layer> & layers,
        const llama_triattn_queries & queries,
        const sequence & seq,
        std::vector<llama_triattn_layer_scores> & scores,
        llama_triattn_stats & counters) {
    const auto n_last = (llama_pos) n_queries(params, 0);
    const auto qpos   = queries.positions(seq.seq_id, std::max(seq.end - n_last, seq.whole), seq.end);
    if (qpos.empty()) {
        return true; // a state without queries was restored: the centres decide
    }

    std::vector<float> sum; // [n_head_kv][query heads][cells]
    std::vector<std::vector<float>> all(layers.size());
    for (size_t i = 0; i < qpos.size(); i += N_CHUNK) {
        const std::vector<llama_pos> chunk(qpos.begin() + i, qpos.begin() + std::min(i + N_CHUNK, qpos.size()));

        std::vector<weights> part;
        if (!compute(lctx, layers, queries, seq, chunk, false, part, counters)) {
            return false;
        }
        for (size_t j = 0; j < layers.size(); ++j) {
            all[j].resize(part[j].sums.size(), 0.0f);
            std::transform(part[j].sums.begin(), part[j].sums.end(), all[j].begin(), all[j].begin(), std::plus<float>());
        }
    }

    const size_t n      = seq.cells.size();
    const size_t n_cand = seq.cand.size();

    std::vector<float> x(n_cand);
    for (size_t i = 0; i < layers.size(); ++i) {
        const uint32_t n_heads = layers[i].ils.size()*layers[i].n_head/layers[i].n_head_kv;
        for (uint32_t h = 0; h < layers[i].n_head_kv; ++h) {
            for (size_t c = 0; c < n_cand; ++c) {
                float mean = 0.0f;
                for (uint32_t j = h*n_heads; j < (h + 1)*n_heads; ++j) {
                    mean += all[i][j*n + seq.cand[c]]/(n_heads*qpos.size());
                }
                x[c] = logf(std::max(mean, 1e-10f));
            }
            z_score(x.data(), n_cand);
            for (size_t c = 0; c < n_cand; ++c) {
                scores[i].data[h*n_cand + c] += params.weight_q*x[c];
            }
        }
    }
    return true;
}

//
// what h2o has added up
//

void llama_triattn_attention::cut(llama_seq_id seq_id, llama_pos pos) {
    const auto it = sums.find(seq_id);
    if (it == sums.end()) {
        return;
    }
    // what the queries behind pos gave to the tokens before it cannot be told from the rest, and stays
    it->second.end = std::min(it->second.end, pos);
    for (auto & [i, of_head] : it->second.heads) {
        while (!of_head.empty() && of_head.back().token >= pos) {
            of_head.pop_back();
        }
    }
}

void llama_triattn_attention::copy(llama_seq_id seq_id_src, llama_seq_id seq_id_dst) {
    const auto it = sums.find(seq_id_src);
    if (it == sums.end()) {
        sums.erase(seq_id_dst);
    } else {
        const auto copied = it->second;
        sums[seq_id_dst] = copied;
    }
}

std::vector<uint8_t> llama_triattn_attention::save(llama_seq_id seq_id) const {
    std::vector<uint8_t> res;
    const auto it = sums.find(seq_id);
    if (it == sums.end()) {
        return res;
    }
    const auto write = [&](const void * data, size_t size) { res.insert(res.end(), (const uint8_t *) data, (const uint8_t *) data + size); };

    write(&it->second.end, sizeof(llama_pos));
    for (const auto & [i, of_head] : it->second.heads) {
        const uint32_t head[2] = { i, (uint32_t) of_head.size() };
        write(head, sizeof(head));
        write(of_head.data(), of_head.size()*sizeof(sum));
    }
    return res;
}

void llama_triattn_attention::restore(llama_seq_id seq_id, const std::vector<uint8_t> & data) {
    sums.erase(seq_id);
    if (data.size() < sizeof(llama_pos)) {
        return;
    }
    accumulated res;
    memcpy(&res.end, data.data(), sizeof(llama_pos));
    for (size_t at = sizeof(llama_pos); at < data.size();) {
        uint32_t head[2] = {};
        if (data.size() - at < sizeof(head)) {
            return;
        }
        memcpy(head, data.data() + at, sizeof(head));
        at += sizeof(head);
        if ((data.size() - at)/sizeof(sum) < head[1]) {
            return;
        }
        auto & of_head = res.heads[head[0]];
        of_head.resize(head[1]);
        memcpy(of_head.data(), data.data() + at, head[1]*sizeof(sum));
        at += head[1]*sizeof(sum);
    }
    sums[seq_id] = std::move(res);
}

//
// in a cache
//

void llama_triattn::init_queries(const llama_cparams & cparams) {
    if (store) {
        n_ring = std::max(params.recall_queries, params.recall_period);
    }
    const uint32_t n = llama_triattn_attention::n_queries(params, cparams.n_batch);
    if (n > 0) {
        const float soft_cap = kv.hparams.attn_soft_cap ? kv.hparams.f_attn_logit_softcapping : 0.0f;

        attention = std::make_unique<llama_triattn_attention>(params, soft_cap);
        n_ring    = std::max(n_ring, n);
    }
    if (n_ring > 0) {
        n_recorded = cparams.n_seq_max;
        queries    = std::make_unique<llama_triattn_queries>(layers, n_recorded, n_ring);
        LLAMA_LOG_INFO("%s: the last %u queries of %u sequences take %.1f MiB\n", __func__, n_ring, n_recorded, queries->n_bytes()/1048576.0);
    }
}

llama_triattn_attention::sequence llama_triattn::sequence_of(llama_seq_id seq_id, const std::vector<int32_t> & cand) const {
    const uint32_t strm = cells->stream(seq_id);

    llama_triattn_attention::sequence res;
    res.seq_id = seq_id;
    res.strm   = strm;
    res.whole  = cells->whole(seq_id);
    res.end    = kv.seq_pos_max(seq_id) + 1;
    res.token  = [this, strm](size_t i_layer, uint32_t head_kv, int32_t cell) { return cells->token(strm, cell, set_of(i_layer, head_kv)); };

    std::vector<int32_t> index(kv.get_size(), -1);
    for (const auto & [p, cell] : cells->of(seq_id)) {
        index[cell] = res.cells.size();
        res.cells.push_back(cell);
        res.names.push_back(p);
    }
    for (const auto cell : cand) {
        res.cand.push_back(index[cell]);
    }
    return res;
}

// With a cold tier the queries are in its part.
void llama_triattn::write_attention(llama_io_write_i & io, llama_seq_id seq_id) const {
    const bool is_one = seq_id >= 0 && seq_id < (llama_seq_id) n_recorded;

    llama_triattn_write_bytes(io, is_one && queries && !store ? queries->save(seq_id) : std::vector<uint8_t>());
    llama_triattn_write_bytes(io, is_one && attention         ? attention->save(seq_id) : std::vector<uint8_t>());
}

llama_triattn::attention_state llama_triattn::read_attention(llama_io_read_i & io) const {
    attention_state res;
    res.queries = llama_triattn_read_bytes(io);
    res.sums    = llama_triattn_read_bytes(io);
    return res;
}

void llama_triattn::take_attention(llama_seq_id seq_id, const attention_state & state) {
    for (llama_seq_id s = std::max(seq_id, 0); s < (llama_seq_id) (seq_id < 0 ? n_recorded : std::min<uint32_t>(seq_id + 1, n_recorded)); ++s) {
        if (queries && !store) {
            queries->clear(s);
            queries->restore(s, state.queries);
        }
        if (attention) {
            attention->restore(s, state.sums);
        }
    }
}

void llama_triattn::get_queries(llama_seq_id seq_id, int32_t il, std::vector<llama_pos> & res_pos, std::vector<float> & rows) const {
    if (!queries || seq_id >= (llama_seq_id) n_recorded || find_layer(il) < 0) {
        throw std::runtime_error("no such layer, or its queries are not recorded");
    }
    res_pos = queries->positions(seq_id, 0, kv.seq_pos_max(seq_id) + 1);

    auto layer = queries->get(seq_id, il, res_pos);
    for (auto & x : layer.q) {
        x *= layer.kq_scale;
    }
    rows = std::move(layer.q);
}
