#include "llama-triattn-cache.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <limits>
#include <map>

// When a recall comes: a hook of llama_decode.

// While text streams, a recall reads all stored keys once and multiplies them with some queries. It comes so often that this is
// at most such a part of what decoding reads meanwhile.
static const double PART_STREAM = 1.0/30;
static const double LEAST_MODEL = 64e6;   // bytes: a smaller model's decoding is not what it reads
static const double DEVICE      = 1.0/10; // a device reads its memory so much faster than the host reads the store

llama_pos llama_triattn::period_of(llama_seq_id seq_id) const {
    double read = 0.0; // bytes of keys, and as many again for every four query heads of each
    bool is_host = true;
    for (const auto & layer : layers) {
        read += layer.n_head_kv*llama_triattn_row_size_k(layer)*(1.0 + layer.ils.size()*layer.n_head/layer.n_head_kv/4.0);
        is_host = is_host && ggml_backend_buffer_is_host(layer.k->buffer);
    }
    read *= is_host ? 1.0 : 1.0/DEVICE;
    read *= store->size(seq_id);

    return std::max<llama_pos>(params.recall_period, (llama_pos) (read/(PART_STREAM*std::max<double>(kv.model.size(), LEAST_MODEL))));
}

bool llama_triattn::decode_in_parts(llama_context & lctx, const llama_batch_ext & batch, int & res) {
    auto * triattn = of(&lctx);
    if (!triattn || !triattn->store || triattn->is_in_parts) {
        return false;
    }
    triattn->is_in_parts = true;
    const bool is_done = triattn->decode_parts(lctx, batch, res);
    triattn->is_in_parts = false;
    return is_done;
}

// A batch with some of the tokens of another, and where they stand in it.
static llama_batch_ext part_of(const llama_batch_ext & batch, const std::vector<size_t> & idx) {
    llama_batch_ext res = batch;
    res.tokens.clear();
    for (const auto i : idx) {
        res.tokens.push_back(batch.tokens[i]);
    }
    return res;
}

bool llama_triattn::decode_parts(llama_context & lctx, const llama_batch_ext & batch, int & res) {
    struct share {
        uint32_t  n     = 0;
        uint32_t  n_out = 0;
        size_t    last  = 0; // index of its last token
        llama_pos first = std::numeric_limits<llama_pos>::max();
        bool      ends  = false; // a prompt: what comes out of its last token is the answer's first
    };
    std::map<llama_seq_id, share> shares;
    bool is_plain = true;
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
        const auto & token = batch.tokens[i];
        is_plain = is_plain && token.seq_ids.size() == 1;
        auto & s = shares[*token.seq_ids.begin()];
        s.n     += 1;
        s.n_out += token.output;
        s.last   = i;
        s.first  = std::min(s.first, token.pos[0]);
    }
    const auto & cparams = lctx.get_cparams();
    for (const bool enabled : cparams.embeddings_layer_inp) {
        is_plain = is_plain && !enabled; // who wants more than logits wants them of all tokens
    }
    is_plain = is_plain && !cparams.embeddings_nextn;

    bool is_split = false;
    for (auto & [s, share] : shares) {
        auto & reading = readings[s];

        const bool ends = share.n_out == 1 && batch.tokens[share.last].output && share.n + reading.n_prompt > 1;
        // tokens that are gone by then
        const bool will_miss = cells->whole(s) > 0 || n_used(s) >= params.budget + params.window ||
            kv.v_cells[cells->stream(s)].get_used() + share.n > kv.get_size();

        share.ends = ends && will_miss && is_plain && params.recall_prompt > 0.0f;
        is_split   = is_split || share.ends;
    }

    if (!is_split) {
        for (const auto & [s, share] : shares) {
            auto & reading = readings[s];
            // at the same positions whoever reads them: a draft model's recalls are its target's then
            const llama_pos period = period_of(s);
            if (params.recall > 0.0f && params.recall_period > 0 && share.n_out > 0 && share.first/period != reading.at/period) {
                recall(s, false);
                reading.at = share.first;
            }
            reading.n_prompt = share.n_out == 0 ? reading.n_prompt + share.n : 0;
        }
        return false;
    }

    std::vector<size_t> head, tail;
    for (size_t i = 0; i < batch.tokens.size(); ++i) {
        const auto & share = shares[*batch.tokens[i].seq_ids.begin()];
        const bool is_tail = share.ends ? i == share.last : share.n_out > 0;
        (is_tail ? tail : head).push_back(i);
    }

    res = head.empty() ? 0 : lctx.decode(part_of(batch, head));
    if (res != 0) {
        return true;
    }
    for (const auto & [s, share] : shares) {
        auto & reading = readings[s];
        if (share.ends) {
            recall(s, true);
            reading.at = batch.tokens[share.last].pos[0];
        }
        reading.n_prompt = share.n_out == 0 ? reading.n_prompt + share.n : 0;
    }
    res = lctx.decode(part_of(batch, tail));

    // The last token is the one that asks. Its own queries are known now: it is read once more with what they want.
    const bool can_cut = res == 0 && std::all_of(tail.begin(), tail.end(), [&](size_t i) {
        return lctx.get_memory()->seq_rm(*batch.tokens[i].seq_ids.begin(), batch.tokens[i].pos[0], -1);
    });
    if (can_cut) {
        for (const auto & [s, share] : shares) {
            if (share.ends) {
                recall(s, true, 1);
            }
        }
        res = lctx.decode(part_of(batch, tail));
    }
    if (res == 1) {
        // no room: the caller takes the whole batch for not there
        for (const auto & [s, share] : shares) {
            if (!lctx.get_memory()->seq_rm(s, share.first, -1)) {
                res = -2;
            }
        }
    }

    // logits are asked for by the place of their token in the batch
    const auto ids = lctx.output_ids;
    std::fill(lctx.output_ids.begin(), lctx.output_ids.end(), -1);
    for (size_t i = 0; i < tail.size(); ++i) {
        lctx.output_ids[tail[i]] = ids[i];
    }
    return true;
}

