#include "llama-triattn-bytes.h"
#include "llama-triattn-cache.h"

#include "llama-triattn-slabs.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <numeric>
#include <string>

// The cold tier: what a head has forgotten comes back.
//
// Rows of a sequence are copied to the store before a round may drop them, so that the cache holds nothing that is not also there:
// dropping writes nothing, and recall copies rows back into cells. A recall compares the last queries with every row of the store
// and gives a share of the budget to what they want most, in place of what was recalled before and then of what the centres want
// least. It comes before the last token of a prompt is read, and while text streams every few tokens.

// How much less a token is wanted than the one before it, in nats of weight: what follows a token that a query finds is what the
// query is about. At the end of a prompt, and while text streams.
static const float DECAY_PROMPT = 0.3f;
static const float DECAY_STREAM = 0.5f;

// While text streams: neighbours of so many queries are one, and a weight below this is nobody's wish.
static const size_t N_MEAN       = 4;
static const float  LEAST_STREAM = -7.0f;

// While text streams, a recall is made for the queries since the last one, but no more than these or the period.
static const uint32_t N_QUERY_STREAM = 16;

static uint64_t free_host_memory() {
    std::ifstream file("/proc/meminfo");
    std::string key, unit;
    uint64_t    kib = 0;
    while (file >> key >> kib >> unit) {
        if (key == "MemAvailable:") {
            return kib << 10;
        }
    }
    size_t free = 0, total = 0;
    if (auto * dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU)) {
        ggml_backend_dev_memory(dev, &free, &total);
    }
    return free;
}

void llama_triattn::init_cold(const llama_cparams & cparams) {
    if (params.cold == LLAMA_TRIATTN_COLD_OFF) {
        return;
    }
    const std::string why = llama_triattn_rows_why_not(layers, kv.v_trans);
    if (!why.empty()) {
        LLAMA_LOG_WARN("%s: the cold tier is off: %s\n", __func__, why.c_str());
        return;
    }

    std::vector<llama_triattn_row_sizes> sizes;
    uint64_t token_bytes = 0;
    for (const auto & layer : layers) {
        const auto type = layer.k->type;
        sizes.push_back({ layer.n_head_kv, llama_triattn_row_size_k(layer), llama_triattn_row_size_v(layer),
                ggml_blck_size(type) == 1 ? ggml_type_size(type) : 0 });
        token_bytes += layer.n_head_kv*(sizes.back().k + sizes.back().v);
    }

    const uint64_t n_slab   = llama_triattn_store::N_SLAB;
    const uint64_t n_all    = (cparams.n_ctx_seq + n_slab - 1)/n_slab*n_slab*cparams.n_seq_max*token_bytes;
    const uint64_t n_wanted = params.cold == LLAMA_TRIATTN_COLD_AUTO ? free_host_memory()/4*3 : (uint64_t) params.cold << 10;

    store    = std::make_unique<llama_triattn_store>(sizes, kv.seq_to_stream.size(), params.n_keep, std::min(n_all, n_wanted));
    recaller = std::make_unique<llama_triattn_recaller>(kv.type_k(), cparams.n_threads);

    readings.resize(kv.seq_to_stream.size());

    LLAMA_LOG_INFO("%s: cold tier of %.1f MiB at most, %zu bytes a token\n", __func__,
            store->n_bytes_max()/1048576.0, store->token_bytes());
}

void llama_triattn::set_recall(float share, float share_prompt, uint32_t block, uint32_t n_query, uint32_t period) {
    auto changed = params;
    changed.recall         = share;
    changed.recall_prompt  = share_prompt;
    changed.recall_block   = block;
    changed.recall_queries = n_query;
    changed.recall_period  = period;
    llama_triattn_model::check(changed);
    if (std::max(n_query, period) > n_ring) {
        throw std::runtime_error(format("only the last %u queries are recorded", n_ring));
    }
    params = changed;
}

void llama_triattn::record(
        const llm_graph_context & graph, const llama_kv_cache_context * mctx, ggml_tensor * q, float kq_scale, ggml_tensor * sinks, int32_t il) {
    const auto & triattn = mctx->kv->triattn;
    if (triattn && triattn->queries) {
        triattn->queries->record(graph, q, kq_scale, sinks, il);
    }
}

//
// rows out
//

void llama_triattn::give_up_store(llama_seq_id seq_id, const char * why) {
    if (!readings[seq_id].is_warned) {
        LLAMA_LOG_WARN("%s: sequence %d: %s; what its heads forget from position %d on is gone for good\n", __func__, seq_id, why,
                store->size(seq_id));
    }
    readings[seq_id].is_warned = true;
}

bool llama_triattn::store_rows(llama_seq_id seq_id) {
    const uint32_t strm   = cells->stream(seq_id);
    const auto &   tokens = cells->of(seq_id);

    // what lies before T is not in one cell in all heads any more
    const llama_pos first = store->skip_to(seq_id, std::max(store->size(seq_id), cells->whole(seq_id)));

    std::vector<int32_t> idxs;
    for (auto it = tokens.lower_bound({ first, 0 }); it != tokens.end(); ++it) {
        if (it->first != first + (llama_pos) idxs.size()) {
            give_up_store(seq_id, "positions that stand still or leap (pictures) have no place in the cold tier");
            break;
        }
        idxs.push_back(it->second);
    }
    if (idxs.empty()) {
        return store->size(seq_id) == kv.seq_pos_max(seq_id) + 1;
    }

    const int64_t t_start_us = ggml_time_us();

    const uint64_t n_destroyed = store->n_destroyed();
    if (!store->append(seq_id, idxs.size(), params.window)) {
        give_up_store(seq_id, "the cold tier has no memory left");
        return false;
    }
    if (store->n_destroyed() > n_destroyed && !readings[seq_id].is_warned) {
        readings[seq_id].is_warned = true;
        LLAMA_LOG_WARN("%s: the cold tier is full (%.1f MiB): of sequence %d the blocks that are wanted least are gone for good from now on, "
                "and it cannot go back to before what its heads hold\n", __func__, store->n_bytes()/1048576.0, seq_id);
    }

    std::vector<llama_triattn_rows> rows(layers.size());
    for (size_t i = 0; i < layers.size(); ++i) {
        rows[i].n = idxs.size();
        for (uint32_t h = 0; h < layers[i].n_head_kv; ++h) {
            rows[i].cells.insert(rows[i].cells.end(), idxs.begin(), idxs.end());
        }
    }
    if (!llama_triattn_rows_read(*lctx, layers, strm, kv.v_trans, rows)) {
        store->cut(seq_id, first);
        give_up_store(seq_id, "the device failed while rows left it");
        return false;
    }

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & r = rows[i];
        for (const bool is_v : { false, true }) {
            const size_t size = is_v ? llama_triattn_row_size_v(layers[i]) : llama_triattn_row_size_k(layers[i]);
            const auto & data = is_v ? r.v : r.k;
            for (uint32_t j = 0; size > 0 && j < r.n; ++j) {
                if (!store->has(seq_id, first + j)) {
                    continue;
                }
                for (uint32_t h = 0; h < layers[i].n_head_kv; ++h) {
                    store->put(seq_id, i, h, is_v, first + j, data.data() + ((size_t) h*r.n + j)*size);
                }
            }
        }
    }

    counters.n_tokens_stored += idxs.size();
    counters.t_store_us      += ggml_time_us() - t_start_us;
    return true;
}

void llama_triattn::note_worth(llama_seq_id seq_id) {
    // only a store that will be full needs to know
    if (store->n_bytes() < store->n_bytes_max()/2) {
        return;
    }
    const uint32_t strm = cells->stream(seq_id);

    std::vector<float> worth((store->size(seq_id) + llama_triattn_store::N_BLOCK - 1)/llama_triattn_store::N_BLOCK, 0.0f);
    for (const auto & [p, cell] : cells->of(seq_id)) {
        for (uint32_t set = 0; set < n_set; ++set) {
            const size_t b = cells->token(strm, cell, set)/llama_triattn_store::N_BLOCK;
            if (b < worth.size()) {
                worth[b] += 1.0f;
            }
        }
    }
    store->set_worth(seq_id, worth);
}

//
// recall
//

llama_triattn_wanting llama_triattn::wanting_of(llama_seq_id seq_id, size_t i_layer, const std::vector<llama_pos> & qpos, size_t n_mean) const {
    const auto & layer = layers[i_layer];

    const uint32_t n_gqa = layer.n_head/layer.n_head_kv;
    const size_t   n     = layer.n_embd_head_k;

    llama_triattn_wanting res;
    res.soft_cap = kv.hparams.attn_soft_cap ? kv.hparams.f_attn_logit_softcapping : 0.0f;

    std::vector<llama_triattn_queries::layer> of_layer;
    bool with_sinks = false;
    for (const auto il : layer.ils) {
        of_layer.push_back(queries->get(seq_id, il, qpos));
        with_sinks = with_sinks || !of_layer.back().sinks.empty();
    }

    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (const auto & l : of_layer) {
            for (size_t i = 0; i < qpos.size(); i += n_mean) {
                const size_t end = std::min(i + n_mean, qpos.size());
                for (uint32_t head = h*n_gqa; head < (h + 1)*n_gqa; ++head) {
                    const size_t first = res.q.size();
                    res.q.resize(first + n, 0.0f);
                    for (size_t j = i; j < end; ++j) {
                        const float * q = l.q.data() + (j*layer.n_head + head)*n;
                        for (size_t k = 0; k < n; ++k) {
                            res.q[first + k] += q[k]*l.kq_scale/(end - i);
                        }
                    }
                    if (h == 0) {
                        res.pos.push_back(qpos[end - 1]);
                    }
                    if (with_sinks) {
                        res.sink.push_back(l.sinks.empty() ? -INFINITY : l.sinks[head]);
                    }
                }
            }
        }
    }
    res.n_query = res.pos.size();
    return res;
}

void llama_triattn::choose_recall(
        llama_seq_id seq_id, uint32_t set, const float * weights, const recall_bounds & b, recalled_tokens & res) {
    const uint32_t strm   = cells->stream(seq_id);
    const auto &   labels = cells->labels(strm);

    const auto wanted = llama_triattn_wanted(weights, b.p0, b.p1, b.n_max, b.n_block, b.least);
    if (wanted.empty()) {
        return;
    }

    std::vector<uint8_t> is_wanted(b.p1, 0), is_hot(b.p1, 0);
    for (const auto p : wanted) {
        is_wanted[p] = 1;
    }

    struct victim {
        bool    is_centre;
        float   rank;
        int32_t cell;
    };
    std::vector<victim> victims;
    for (const auto & [label, cell] : cells->of(seq_id)) {
        const llama_pos p = cells->token(strm, cell, set);
        if (p < b.p0 || p >= b.p1) {
            continue;
        }
        is_hot[p] = 1;
        auto & mark = cells->marks_of(strm, cell)[set];
        if (is_wanted[p] && mark != CHOSEN) {
            mark = RECALLED_NOW;
        }
        if (is_wanted[p] || labels.n_seq(cell) > 1 || !store->has(seq_id, p) || pins.has(seq_id, label)) {
            continue; // wanted, or not only its own, or it could not come back, or it must not go
        }
        const bool was_recalled = mark != CHOSEN;
        victims.push_back({ !was_recalled, was_recalled ? weights[p] : cells->rank(strm, cell, set), (int32_t) cell });
    }

    std::vector<llama_pos> missing;
    for (const auto p : wanted) {
        if (!is_hot[p]) {
            missing.push_back(p);
        }
    }
    const size_t n = std::min(missing.size(), victims.size());

    std::partial_sort(victims.begin(), victims.begin() + n, victims.end(), [](const victim & x, const victim & y) {
        return x.is_centre != y.is_centre ? x.is_centre < y.is_centre : x.rank != y.rank ? x.rank < y.rank : x.cell < y.cell;
    });
    for (size_t i = 0; i < n; ++i) {
        const int32_t cell = victims[i].cell;
        if (b.must_earn && weights[missing[i]] <= weights[cells->token(strm, cell, set)]) {
            continue; // what lies there is wanted more
        }
        res.emplace_back(missing[i], cell);
    }
}

bool llama_triattn::bring_back(llama_seq_id seq_id, const std::vector<recalled_tokens> & of_set) {
    const uint32_t strm = cells->stream(seq_id);

    std::vector<llama_triattn_rows> rows(layers.size());

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];
        auto & r = rows[i];

        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            r.n = std::max<uint32_t>(r.n, of_set[set_of(i, h)].size());
        }
        if (r.n == 0) {
            continue;
        }
        const size_t size_k = llama_triattn_row_size_k(layer);
        const size_t size_v = llama_triattn_row_size_v(layer);
        r.cells.reserve((size_t) layer.n_head_kv*r.n);
        r.k.resize((size_t) layer.n_head_kv*r.n*size_k);
        r.v.resize((size_t) layer.n_head_kv*r.n*size_v);

        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto & tokens = of_set[set_of(i, h)];

            // fewer than another head has: a row that is written twice
            std::pair<llama_pos, int32_t> filler { -1, -1 };
            if (!tokens.empty()) {
                filler = tokens[0];
            }
            for (auto it = cells->of(seq_id).begin(); filler.first < 0 && it != cells->of(seq_id).end(); ++it) {
                const llama_pos p = cells->token(strm, it->second, set_of(i, h));
                if (store->has(seq_id, p)) {
                    filler = { p, (int32_t) it->second };
                }
            }
            if (filler.first < 0) {
                return false;
            }
            for (uint32_t j = 0; j < r.n; ++j) {
                const auto [p, cell] = j < tokens.size() ? tokens[j] : filler;
                r.cells.push_back(cell);
                store->get(seq_id, i, h, false, p, r.k.data() + ((size_t) h*r.n + j)*size_k);
                if (size_v > 0) {
                    store->get(seq_id, i, h, true, p, r.v.data() + ((size_t) h*r.n + j)*size_v);
                }
            }
            counters.n_rows_recalled += tokens.size();
        }
    }
    return llama_triattn_rows_write(*lctx, layers, strm, kv.v_trans, rows);
}

int32_t llama_triattn::recall(llama_seq_id seq_id, bool is_prompt, uint32_t n_ahead) {
    if (!store || !lctx || cells->whole(seq_id) == 0 || !kv.sc_info.empty() || seq_id >= (llama_seq_id) n_recorded) {
        return 0;
    }
    const int64_t t_start_us = ggml_time_us();

    ggml_backend_sched_synchronize(lctx->get_sched());

    const llama_pos end     = kv.seq_pos_max(seq_id) + 1;
    const uint32_t  n_since = std::max(end - readings[seq_id].at, 0);
    const uint32_t  n_query = is_prompt ? params.recall_queries :
        std::max(params.recall_period, std::min({ n_since, N_QUERY_STREAM, n_ring }));
    const llama_pos q_end   = end + (llama_pos) n_ahead;
    const auto      qpos    = queries->positions(seq_id, q_end - (llama_pos) n_query, q_end);
    if (qpos.empty() || n_query == 0) {
        return 0;
    }
    store_rows(seq_id);

    const uint32_t strm = cells->stream(seq_id);
    const size_t   size = store->size(seq_id);

    const bool is_per_layer = params.mode == LLAMA_TRIATTN_MODE_PER_LAYER_HEAD;

    recall_bounds b;
    b.p0        = params.n_keep;
    b.p1        = std::min(cells->whole(seq_id), (llama_pos) size); // from T on every head has every token
    b.n_max     = (uint32_t) std::lround((is_prompt ? params.recall_prompt : params.recall)*
            (params.budget - std::min(n_pinned(seq_id), params.budget)));
    b.n_block   = is_prompt ? params.recall_block : 1;
    b.must_earn = !is_prompt;
    b.least     = is_prompt ? -INFINITY : is_per_layer ? LEAST_STREAM : expf(LEAST_STREAM);
    if (b.p1 <= b.p0 || b.n_max == 0) {
        return 0;
    }

    std::vector<recalled_tokens> of_set(n_set);
    std::vector<float> weights;
    std::vector<float> sums; // [n_set][size] where sets are of several layers

    const uint64_t n_before = counters.n_rows_recalled;

    for (size_t i = 0; i < layers.size(); ++i) {
        const auto & layer = layers[i];

        std::vector<uint32_t> heads(layer.n_head_kv);
        std::iota(heads.begin(), heads.end(), 0);

        if (!recaller->score(*store, seq_id, i, heads, layer.n_embd_head_k, wanting_of(seq_id, i, qpos, is_prompt ? 1 : N_MEAN), weights)) {
            return fail("queries cannot be compared with the stored keys: the CPU backend failed");
        }
        if (!is_per_layer) {
            sums.resize((size_t) n_set*size, 0.0f);
        }
        for (size_t j = 0; j < heads.size(); ++j) {
            const uint32_t set = set_of(i, heads[j]);
            float * w = weights.data() + j*size;
            for (size_t p = 1; p < size; ++p) {
                const float before = w[p - 1] - (is_prompt ? DECAY_PROMPT : DECAY_STREAM);
                if (w[p] > -INFINITY && w[p] < before) {
                    w[p] = before;
                }
            }
            for (const auto & [p0, p1] : pins.ranges(seq_id)) { // they are there, and take no place of what comes back
                std::fill(w + std::min<size_t>(p0, size), w + std::min<size_t>(p1, size), -INFINITY);
            }
            if (is_per_layer) {
                choose_recall(seq_id, set, w, b, of_set[set]);
            } else {
                std::transform(w, w + size, sums.begin() + (size_t) set*size, sums.begin() + (size_t) set*size,
                        [](float x, float sum) { return x > -INFINITY ? sum + expf(x) : -INFINITY; });
            }
        }
    }
    for (uint32_t set = 0; !is_per_layer && set < n_set; ++set) {
        choose_recall(seq_id, set, sums.data() + (size_t) set*size, b, of_set[set]);
    }

    if (!replace(seq_id, of_set, RECALLED_NOW)) {
        return fail("the device failed while rows came back; the sequences in it are lost and must be read again");
    }

    counters.n_recalls   += 1;
    counters.t_recall_us += ggml_time_us() - t_start_us;

    return (int32_t) (counters.n_rows_recalled - n_before);
}

bool llama_triattn::replace(llama_seq_id seq_id, const std::vector<recalled_tokens> & of_set, uint8_t mark) {
    const uint32_t strm = cells->stream(seq_id);

    if (!bring_back(seq_id, of_set)) {
        lose(strm);
        return false;
    }
    auto & aside = readings[seq_id].aside;
    aside.resize(n_set);
    for (uint32_t set = 0; set < n_set && mark != CHOSEN; ++set) {
        for (const auto & [p, cell] : of_set[set]) {
            if (cells->mark(strm, cell, set) == CHOSEN) {
                aside[set].push_back(cells->token(strm, cell, set));
            }
        }
    }
    cells->bring_back(seq_id, of_set, mark);
    return true;
}

bool llama_triattn::put_back(llama_seq_id seq_id, std::vector<std::vector<llama_pos>> & wanted) {
    auto & reading = readings[seq_id];
    wanted.assign(n_set, {});
    if (reading.aside.empty()) {
        return true;
    }
    const uint32_t strm   = cells->stream(seq_id);
    const auto &   labels = cells->labels(strm);

    std::vector<recalled_tokens> of_set(n_set);
    std::vector<int32_t> there; // cells of recalled tokens
    for (uint32_t set = 0; set < n_set; ++set) {
        auto & aside = reading.aside[set];
        std::sort(aside.begin(), aside.end());

        std::vector<uint8_t> is_there(aside.size(), 0);
        there.clear();
        for (const auto & [label, cell] : cells->of(seq_id)) {
            auto & mark = cells->marks_of(strm, cell)[set];

            // also where another sequence, which the cell is shared with, has taken the mark away
            const llama_pos p  = cells->token(strm, cell, set);
            const auto      it = std::lower_bound(aside.begin(), aside.end(), p);
            const bool is_back = it != aside.end() && *it == p;
            if (is_back) {
                is_there[it - aside.begin()] = 1;
            }
            if (mark == CHOSEN) {
                continue;
            }
            if (mark == RECALLED_NOW) {
                wanted[set].push_back(p);
            }
            mark = CHOSEN;
            if (!is_back && labels.n_seq(cell) == 1 && store->has(seq_id, p)) {
                there.push_back(cell);
            }
        }
        for (size_t i = 0; i < aside.size() && of_set[set].size() < there.size(); ++i) {
            if (!is_there[i] && store->has(seq_id, aside[i])) {
                of_set[set].emplace_back(aside[i], there[of_set[set].size()]);
            }
        }
    }
    reading.aside.clear();

    const auto n_recalled = counters.n_rows_recalled;
    const bool ok = replace(seq_id, of_set, CHOSEN);
    counters.n_rows_recalled = n_recalled; // no query asked for them
    return ok;
}

bool llama_triattn::call_again(llama_seq_id seq_id, const std::vector<std::vector<llama_pos>> & wanted) {
    const uint32_t strm   = cells->stream(seq_id);
    const auto &   labels = cells->labels(strm);

    const llama_pos end = std::min(cells->whole(seq_id), store->size(seq_id));

    std::vector<recalled_tokens> of_set(n_set);
    std::vector<std::pair<float, int32_t>> victims; // rank, cell
    std::vector<uint8_t> is_hot;
    for (uint32_t set = 0; set < n_set; ++set) {
        is_hot.assign(end, 0);
        victims.clear();
        for (const auto & [label, cell] : cells->of(seq_id)) {
            const llama_pos p = cells->token(strm, cell, set);
            if (p >= end) {
                continue;
            }
            is_hot[p] = 1;
            if (p >= (llama_pos) params.n_keep && labels.n_seq(cell) == 1 && store->has(seq_id, p) && !pins.has(seq_id, label)) {
                victims.emplace_back(cells->rank(strm, cell, set), (int32_t) cell);
            }
        }
        std::sort(victims.begin(), victims.end());
        for (const auto p : wanted[set]) {
            if (of_set[set].size() < victims.size() && p < end && !is_hot[p] && store->has(seq_id, p)) {
                of_set[set].emplace_back(p, victims[of_set[set].size()].second);
            }
        }
    }
    const auto n_recalled = counters.n_rows_recalled;
    const bool ok = replace(seq_id, of_set, RECALLED);
    counters.n_rows_recalled = n_recalled;
    return ok;
}

void llama_triattn::lose(uint32_t strm) {
    for (const auto s : cells->seqs()) {
        if (cells->stream(s) == strm) {
            kv.seq_rm(s, -1, -1);
        }
    }
}

//
// states
//

void llama_triattn::write_cold(llama_io_write_i & io, llama_seq_id seq_id, const std::vector<uint32_t> & idxs) const {
    const auto & reading = readings[seq_id];
    const uint64_t retained = store->retain(seq_id);
    const auto     where    = store->where(seq_id);

    io.write(&retained,         sizeof(retained));
    llama_triattn_write_bytes(io, where);
    io.write(&reading.at,       sizeof(reading.at));
    io.write(&reading.n_prompt, sizeof(reading.n_prompt));
    io.write(&n_ring,           sizeof(n_ring));
    const uint32_t n_aside = reading.aside.size();
    io.write(&n_aside, sizeof(n_aside));
    for (const auto & of_set : reading.aside) {
        const auto * data = (const uint8_t *) of_set.data();
        llama_triattn_write_bytes(io, { data, data + of_set.size()*sizeof(of_set[0]) });
    }
    for (const auto i : idxs) {
        io.write(cells->ranks_of   (cells->stream(seq_id), i), n_set*sizeof(float));
        io.write(cells->marks_of   (cells->stream(seq_id), i), n_set*sizeof(uint8_t));
    }
    const auto data = seq_id < (llama_seq_id) n_recorded ? queries->save(seq_id) : std::vector<uint8_t>();
    llama_triattn_write_bytes(io, data);
}

llama_triattn::cold_state llama_triattn::read_cold(llama_io_read_i & io, uint32_t n_cells, uint32_t version) const {
    cold_state res;
    io.read(&res.retained,         sizeof(res.retained));
    if (version > 3) {
        res.where = llama_triattn_read_bytes(io);
    }
    io.read(&res.reading.at,       sizeof(res.reading.at));
    io.read(&res.reading.n_prompt, sizeof(res.reading.n_prompt));
    io.read(&res.n_ring,           sizeof(res.n_ring));
    uint32_t n_aside = 0;
    if (version > 3) {
        io.read(&n_aside, sizeof(n_aside));
    }
    if (n_aside > 0 && n_aside != n_set) {
        throw std::runtime_error("the saved state cannot be restored: it is damaged");
    }
    for (uint32_t i = 0; i < n_aside; ++i) {
        const auto data = llama_triattn_read_bytes(io);
        res.reading.aside.emplace_back(data.size()/sizeof(llama_pos));
        std::copy_n(data.begin(), res.reading.aside.back().size()*sizeof(llama_pos), (uint8_t *) res.reading.aside.back().data());
    }
    res.ranks   .resize((size_t) n_cells*n_set);
    res.recalled.resize((size_t) n_cells*n_set);
    for (uint32_t i = 0; i < n_cells; ++i) {
        io.read(&res.ranks   [(size_t) i*n_set], n_set*sizeof(float));
        io.read(&res.recalled[(size_t) i*n_set], n_set*sizeof(uint8_t));
    }
    res.queries = llama_triattn_read_bytes(io);
    return res;
}

void llama_triattn::take_cold(llama_seq_id seq_id, const cold_state & state, const std::vector<uint32_t> & idxs) {
    if (!store->resume(state.retained, seq_id) && !state.where.empty()) {
        const auto it = std::find_if(cold_files.begin(), cold_files.end(), [&](const auto & file) {
            return file.second->id() == llama_triattn_store::file_of(state.where);
        });
        if (it == cold_files.end() || !store->load(seq_id, it->second, state.where)) {
            LLAMA_LOG_WARN("%s: sequence %d: rows that were evicted before it was saved are not here: %s\n", __func__, seq_id,
                    it == cold_files.end() ? "the file that holds them is not open" : "the file has lost them, or there is no memory");
        }
    }
    readings[seq_id] = state.reading;
    for (size_t i = 0; i < idxs.size() && !state.ranks.empty(); ++i) {
        std::copy_n(&state.ranks   [i*n_set], n_set, cells->ranks_of   (cells->stream(seq_id), idxs[i]));
        std::copy_n(&state.recalled[i*n_set], n_set, cells->marks_of   (cells->stream(seq_id), idxs[i]));
    }
    if (seq_id < (llama_seq_id) n_recorded) {
        queries->clear(seq_id);
        if (state.n_ring == n_ring) {
            queries->restore(seq_id, state.queries);
        }
    }
}

std::string llama_triattn::cold_layout() const {
    std::string res = kv.model.triattn->get_fingerprint() + format(" %u %u", store->n_slab(), row_layout());
    for (const auto & layer : layers) {
        res += format(" %d:%u:%s:%zu:%s:%zu", layer.ils[0], layer.n_head_kv,
                ggml_type_name(layer.k->type), llama_triattn_row_size_k(layer),
                layer.v ? ggml_type_name(layer.v->type) : "", llama_triattn_row_size_v(layer));
    }
    return res;
}

std::shared_ptr<llama_triattn_slab_file> llama_triattn::cold_file(const std::string & path, bool make) {
    if (!store) {
        throw std::runtime_error("the cold tier is off");
    }
    const auto it = cold_files.find(path);
    if (it != cold_files.end() && it->second->is_at(path)) {
        return it->second;
    }
    for (auto other = cold_files.begin(); other != cold_files.end();) {
        other = other->second.use_count() == 1 || other == it ? cold_files.erase(other) : std::next(other);
    }
    return cold_files[path] = std::make_shared<llama_triattn_slab_file>(
            path, cold_layout(), store->slab_size(), store->n_slab()/llama_triattn_store::N_BLOCK, make);
}

int64_t llama_triattn::save_cold(llama_seq_id seq_id, const std::string & path) {
    const auto file = cold_file(path, true);
    const int64_t res = store->save(seq_id, file);
    if (res < 0) {
        throw std::runtime_error(path + ": the rows of the cold tier cannot be written; the disk may be full");
    }
    return res;
}

//
// going back
//

bool llama_triattn::can_rebuild(llama_seq_id seq_id, llama_pos p0) const {
    if (!store || !lctx || p0 <= 0 || !store->is_whole(seq_id) || store->size(seq_id) < p0 || !kv.sc_info.empty()) {
        return false;
    }
    const uint32_t n = std::min<uint32_t>(p0, params.budget);
    return cells->available(seq_id, n).size() == n;
}

bool llama_triattn::rebuild(llama_seq_id seq_id, llama_pos p0) {
    ggml_backend_sched_synchronize(lctx->get_sched());

    // what a head holds of the text before the window stays, the best first; the rest of its places goes to the last tokens before it
    const auto plan = cells->plan_cut(seq_id, p0, params.budget, [&](llama_pos p) { return pins.has(seq_id, p); });

    std::vector<recalled_tokens> of_set(n_set);
    for (uint32_t set = 0; set < n_set; ++set) {
        for (size_t i = 0; i < plan.cells.size(); ++i) {
            of_set[set].emplace_back(plan.tokens[set][i], plan.cells[i]);
        }
    }
    const auto n_recalled = counters.n_rows_recalled;
    const bool ok = bring_back(seq_id, of_set);
    counters.n_rows_recalled = n_recalled; // nobody asked for them

    if (!ok) {
        cells->drop(seq_id);
        store->clear(seq_id);
        LLAMA_LOG_ERROR("%s: the device failed while rows came back; sequence %d is lost and must be read again\n", __func__, seq_id);
        return false;
    }
    cells->replace(seq_id, plan);
    kv.v_heads[cells->stream(seq_id)] = 0;
    readings[seq_id].aside.clear();

    store->cut(seq_id, p0);
    return true;
}
