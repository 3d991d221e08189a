#include "llama-triattn-server.h"

#include "llama-triattn-memory.h"

#include "common.h"
#include "gguf.h"
#include "log.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <sstream>

// fewer tokens than this are read as fast as a state is restored
static const int32_t N_WORTH_SAVING = 128;

// A state that ends where it is left is preferred to one that must be cut, unless that one has so many tokens more. What two
// conversations share by chance behind the same system prompt (the template's words, a first "Please") then plays no part,
// and each of them goes the way that it would go alone.
static const int32_t N_WORTH_CUTTING = 32;

// so many tokens that two prompts share, and that no state covers, are worth a state of their own
static const int32_t N_WORTH_LEARNING = 256;

static std::atomic<bool> is_evicting { false };

bool llama_triattn_server::is_on() {
    return is_evicting;
}

json llama_triattn_server::too_long(int32_t n_tokens, int32_t n_ctx) {
    if (!is_evicting || n_tokens < n_ctx) {
        return nullptr;
    }
    server_task_result_error error;
    error.err_type        = ERROR_TYPE_EXCEED_CONTEXT_SIZE;
    error.err_msg         = string_format("request (%d tokens) exceeds the available context size (%d tokens), try increasing it", n_tokens, n_ctx);
    error.n_prompt_tokens = n_tokens;
    error.n_ctx           = n_ctx;
    return error.to_json();
}

static bool has_window(const llama_context * ctx) {
    return llama_model_n_swa(llama_get_model(ctx)) > 0;
}

bool llama_triattn_server::attach(llama_context * lctx, common_params & cparams, llama_context * lctx_draft) {
    ctx       = llama_triattn_get_params(lctx, &params) == LLAMA_TRIATTN_OK ? lctx : nullptr;
    ctx_draft = lctx_draft;

    contexts.assign(1, lctx);
    if (ctx_draft) {
        contexts.push_back(ctx_draft);
    }
    const auto & types = cparams.speculative.types;
    const bool is_plain = !ctx_draft || std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_SIMPLE) != types.end();

    is_evicting = ctx != nullptr;
    is_keeping  = ctx && cparams.cache_ram_mib != 0 && is_plain;
    can_cut     = std::none_of(contexts.begin(), contexts.end(), has_window); // --swa-full has no effect beside eviction
    limit       = cparams.cache_ram_mib > 0 ? 1024ull*1024ull*cparams.cache_ram_mib : 0;

    threads.attach(contexts, cparams.cpuparams.n_threads, cparams.cpuparams_batch.n_threads);

    slots.assign(cparams.n_parallel, {});
    observe();

    if (is_keeping) {
        SRV_INF("states of evicted sequences are kept, limit: %d MiB\n", cparams.cache_ram_mib);
        cparams.cache_idle_slots  = false;
        cparams.n_ctx_checkpoints = 0;
    }
    return is_keeping;
}

static bool has_statistics(const std::string & path) {
    gguf_context * meta = path.empty() ? nullptr : gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr });
    const bool res = meta && gguf_find_key(meta, "triattention.version") >= 0;
    gguf_free(meta);
    return res;
}

void llama_triattn_server::fit_draft(const llama_context * ctx, common_params & params, common_params & params_draft) {
    llama_triattn_params settings;
    if (llama_triattn_get_params(ctx, &settings) != LLAMA_TRIATTN_OK) {
        return;
    }
    auto & overrides = params_draft.kv_overrides; // the last one has no key
    const auto add = [&](const char * key, const char * value) {
        overrides.erase(std::remove_if(overrides.begin(), overrides.end(), [&](const auto & o) { return strcmp(o.key, key) == 0; }), overrides.end());
        llama_model_kv_override own = {};
        own.tag = LLAMA_KV_OVERRIDE_TYPE_STR;
        snprintf(own.key,     sizeof(own.key),     "%s", key);
        snprintf(own.val_str, sizeof(own.val_str), "%s", value);
        overrides.insert(overrides.begin(), own);
    };
    add("triattention.stats", ""); // none: those inside the file, not the target's sidecar
    if (settings.policy == LLAMA_TRIATTN_POLICY_TRIATTENTION && !has_statistics(params_draft.model.path)) {
        SRV_WRN("%s has no TriAttention statistics: drafts keep their first and last tokens (policy streaming)\n", params_draft.model.path.c_str());
        add("triattention.policy", "streaming");
    }
    if (overrides.back().key[0] != 0) {
        overrides.emplace_back();
        overrides.back().key[0] = 0;
    }
    auto & n_max = params.speculative.draft.n_max;
    if (n_max > (int32_t) settings.window) {
        SRV_WRN("drafts have at most %u tokens, the window, instead of %d\n", settings.window, n_max);
        n_max = settings.window;
    }
}

//
// places
//

// the first n tokens, empty if one of them is not text
static llama_tokens first_tokens(const server_tokens & tokens, int32_t n) {
    llama_tokens res;
    res.reserve(n);
    for (int32_t i = 0; i < n; ++i) {
        if (tokens[i] == LLAMA_TOKEN_NULL) {
            return {};
        }
        res.push_back(tokens[i]);
    }
    return res;
}

static int32_t n_shared(const llama_tokens & a, const server_tokens & b) {
    const size_t n = std::min(a.size(), b.size());
    size_t i = 0;
    while (i < n && a[i] == b[i]) {
        ++i;
    }
    return i;
}

// Prefixes of the last requests, for most have the same one: the one used last at the front.
struct prefix {
    std::string  key;    // what it was rendered from
    std::string  text;
    llama_tokens tokens; // empty until somebody asks
};

static std::mutex        mutex_prefixes;
static std::list<prefix> prefixes;
static const size_t      N_PREFIXES = 16;

static size_t n_shared(const std::string & a, const std::string & b) {
    return std::mismatch(a.begin(), a.begin() + std::min(a.size(), b.size()), b.begin()).first - a.begin();
}

static std::vector<common_chat_msg>::const_iterator first_of_user(const std::vector<common_chat_msg> & messages) {
    return std::find_if(messages.begin(), messages.end(), [](const auto & m) { return m.role == "user"; });
}

// All that the template makes a prefix of, but the time of day. That a prompt begins with the text of another prefix says
// nothing: where the system prompt goes into the user's first message, all of them begin with that of no system prompt.
static std::string key_of(const common_chat_templates_inputs & inputs) {
    std::ostringstream key;
    const auto add = [&key](const auto & part) { key << part << '\0'; };

    for (auto it = inputs.messages.begin(); it != first_of_user(inputs.messages); ++it) {
        add(it->to_json_oaicompat().dump());
    }
    for (const auto & tool : inputs.tools) {
        add(tool.name);
        add(tool.description);
        add(tool.parameters);
    }
    for (const auto & [name, value] : inputs.chat_template_kwargs) {
        add(name);
        add(value);
    }
    for (const int setting : { (int) inputs.tool_choice, (int) inputs.parallel_tool_calls, (int) inputs.reasoning_format,
            (int) inputs.enable_thinking, (int) inputs.add_bos, (int) inputs.add_eos, (int) inputs.use_jinja }) {
        add(setting);
    }
    add(inputs.json_schema);
    add(inputs.grammar);
    return key.str();
}

// what two conversations have in common in which the user says different things
static std::string render_prefix(const common_chat_templates * tmpls, common_chat_templates_inputs inputs) {
    auto & messages = inputs.messages;
    messages.erase(first_of_user(messages), messages.cend());
    messages.emplace_back();
    messages.back().role = "user";

    inputs.add_generation_prompt  = true;
    inputs.continue_final_message = COMMON_CHAT_CONTINUATION_NONE;

    messages.back().content = "0";
    const std::string one = common_chat_templates_apply(tmpls, inputs).prompt;
    messages.back().content = "Z";
    const std::string other = common_chat_templates_apply(tmpls, inputs).prompt;

    return one.substr(0, n_shared(one, other));
}

void llama_triattn_server::add_prefix(json & params, const common_chat_templates * tmpls, const common_chat_templates_inputs & inputs) {
    if (!is_evicting) {
        return;
    }
    try {
        const std::string prompt = params.at("prompt");
        const std::string key    = key_of(inputs);
        {
            std::lock_guard<std::mutex> lock(mutex_prefixes);
            auto it = std::find_if(prefixes.begin(), prefixes.end(), [&](const prefix & p) { return p.key == key; });
            if (it != prefixes.end() && prompt.compare(0, it->text.size(), it->text) == 0) {
                prefixes.splice(prefixes.begin(), prefixes, it);
                params["triattn_prefix"] = it->text;
                return;
            }
        }
        const std::string text = render_prefix(tmpls, inputs);

        std::lock_guard<std::mutex> lock(mutex_prefixes);
        prefixes.remove_if([&](const prefix & p) { return p.key == key; }); // of another time of day
        prefixes.push_front({ key, text, {} });
        if (prefixes.size() > N_PREFIXES) {
            prefixes.pop_back();
        }
        params["triattn_prefix"] = text;
    } catch (const std::exception & e) {
        SRV_DBG("the template tells no prefix: %s\n", e.what()); // it may want what this conversation has not
    }
}

int32_t llama_triattn_server::n_prefix(const llama_vocab * vocab, const json & params, const server_tokens & tokens) {
    if (!is_evicting || !params.contains("triattn_prefix") || !params.at("triattn_prefix").is_string()) {
        return -1;
    }
    const std::string text = params.at("triattn_prefix");

    llama_tokens own;
    llama_tokens * known = &own;

    std::lock_guard<std::mutex> lock(mutex_prefixes);
    for (auto & p : prefixes) {
        if (p.text == text) {
            known = &p.tokens;
            break;
        }
    }
    if (known->empty()) {
        *known = common_tokenize(vocab, text, true, true);
    }
    // the last token may become another one with what follows
    return std::min(n_shared(*known, tokens), (int32_t) known->size() - 1);
}

bool llama_triattn_server::ends_batch(int32_t id_slot, int32_t n_tokens) const {
    if (!is_keeping) {
        return false;
    }
    const auto & places = slots[id_slot].places;
    return std::find(places.begin(), places.end(), n_tokens) != places.end();
}

int32_t llama_triattn_server::n_to_pin(const server_task & task) const {
    const int32_t n_room = (int32_t) params.budget - (int32_t) (params.window + params.n_keep) - 1;
    const int32_t n_max  = std::min((int32_t) (params.pin*params.budget), n_room);

    for (const int32_t n : { task.n_tokens(), task.params.n_prefix }) {
        if (n > 0 && n <= n_max && (size_t) n <= task.tokens.size()) {
            return n;
        }
    }
    return 0;
}

void llama_triattn_server::pin(int32_t id_slot, int32_t n_tokens) {
    for (auto * c : contexts) {
        llama_triattn_unpin(c, id_slot, n_tokens, -1);
        // a draft model that does not evict, or has less of a budget, drafts all the same
        if (n_tokens > 0 && llama_triattn_pin(c, id_slot, 0, n_tokens) < 0 && c == ctx) {
            SRV_WRN("slot %d: its first %d tokens are not pinned: %s\n", id_slot, n_tokens, llama_triattn_last_error());
        }
    }
}

void llama_triattn_server::reach(int32_t id_slot, const server_prompt & prompt, int32_t n_tokens, const loras & lora) {
    if (ctx && slots[id_slot].n_pin >= 0) {
        pin(id_slot, slots[id_slot].n_pin);
        slots[id_slot].n_pin = -1;
    }
    if (ends_batch(id_slot, n_tokens)) {
        save(id_slot, prompt, n_tokens, lora);
    }
}

//
// states
//

size_t llama_triattn_server::state::size() const {
    size_t res = tokens.size()*sizeof(llama_token);
    for (const auto & d : data) {
        res += d.size();
    }
    return res;
}

size_t llama_triattn_server::size() const {
    size_t res = 0;
    for (const auto & s : states) {
        res += s.size();
    }
    return res;
}

int32_t llama_triattn_server::n_usable(const state & s, int32_t n_shared) const {
    const bool is_whole = n_shared == (int32_t) s.tokens.size();

    return is_whole || (can_cut && s.pos_min < n_shared) ? n_shared : 0;
}

bool llama_triattn_server::touch(const server_tokens & tokens, int32_t n_tokens, const loras & lora) {
    for (auto it = states.begin(); it != states.end(); ++it) {
        if ((int32_t) it->tokens.size() == n_tokens && n_shared(it->tokens, tokens) == n_tokens && are_lora_equal(it->lora, lora)) {
            states.splice(states.end(), states, it);
            return true;
        }
    }
    return false;
}

int32_t llama_triattn_server::resume(
        int32_t id_slot, server_prompt & prompt, const server_task & task, const loras & lora, int32_t n_past) {
    const int32_t n_max = task.n_tokens() - 1; // one token is left to decode

    if (ctx_draft && std::min(n_past, n_max) < llama_triattn_seq_pos_whole(ctx_draft, id_slot)) {
        n_past = 0; // the draft model's sequence cannot be cut there
    }
    if (ctx) {
        slots[id_slot].n_pin = n_to_pin(task); // once what is not of this prompt is cut off, and its pins
    }
    if (!is_keeping) {
        return n_past;
    }
    auto & slot = slots[id_slot];
    slot.places.clear();

    const bool is_completion = task.type == SERVER_TASK_TYPE_COMPLETION || task.type == SERVER_TASK_TYPE_INFILL;
    if (!is_completion || !task.params.cache_prompt || lora_all_alora(lora)) {
        slot.n_prompt = 0;
        return n_past;
    }

    // another conversation takes the slot; what is left behind of an answer of the same one is not missed
    const int32_t n_common = prompt.tokens.get_common_prefix(task.tokens);
    if (n_common < prompt.n_tokens() && n_common < slot.n_prompt) {
        save(id_slot, prompt, lora);
    }

    // most tokens of the prompt; of equals the one that ends there, of these the one that is in the slot
    const auto rank = [](int32_t n, int32_t n_state) { return std::make_pair(n + (n == n_state ? N_WORTH_CUTTING : 0), -n_state); };

    auto    best      = states.end();
    int32_t n_best    = std::min(n_past, n_max);
    auto    rank_best = rank(n_best, prompt.n_tokens());
    int32_t n_longest = std::min(n_common, n_max);

    for (auto it = states.begin(); it != states.end(); ++it) {
        if (!are_lora_equal(it->lora, lora)) {
            continue;
        }
        const int32_t n_here = std::min(n_shared(it->tokens, task.tokens), n_max);
        const int32_t n      = n_usable(*it, n_here);
        n_longest = std::max(n_longest, n_here);
        if (n > 0 && (n_best == 0 || rank(n, it->tokens.size()) > rank_best)) {
            best      = it;
            n_best    = n;
            rank_best = rank(n, it->tokens.size());
        }
    }

    if (best != states.end()) {
        if (restore(id_slot, prompt, best, n_best)) {
            n_past = n_best;
        } else {
            n_past = std::min(n_past, prompt.n_tokens()); // what the slot held, if it still does
        }
    }

    slot.n_prompt = task.n_tokens();

    const int32_t n_prefix = task.params.n_prefix;
    touch(task.tokens, n_prefix, lora);

    for (const int32_t n : { n_prefix, n_max }) {
        if (n >= N_WORTH_SAVING) {
            slot.places.push_back(n);
        }
    }
    if (n_longest >= std::max(n_past, n_prefix) + N_WORTH_LEARNING) {
        slot.places.push_back(n_longest);
    }
    return n_past;
}

bool llama_triattn_server::restore(int32_t id_slot, server_prompt & prompt, std::list<state>::iterator it, int32_t n_tokens) {
    const int64_t t_start = ggml_time_us();

    const bool has_mtmd = prompt.tokens.has_mtmd;

    const auto last_pos = [&] {
        std::vector<llama_pos> res;
        for (auto * c : contexts) {
            res.push_back(llama_memory_seq_pos_max(llama_get_memory(c), id_slot));
        }
        return res;
    };
    const auto before = last_pos();

    bool is_back = true;
    for (size_t i = 0; i < contexts.size(); ++i) {
        const auto & data = it->data[i];
        is_back = is_back && llama_state_seq_set_data_ext(contexts[i], data.data(), data.size(), id_slot, 0) == data.size();
    }
    if (!is_back) {
        // the state is as good as it was: the next request may find room for it
        if (last_pos() == before) {
            SRV_WRN("slot %d: there is no room now for the state of %zu tokens\n", id_slot, it->tokens.size());
            return false;
        }
        SRV_WRN("slot %d: the state of %zu tokens cannot be restored, the prompt is read from its beginning\n", id_slot, it->tokens.size());
        for (auto * c : contexts) {
            llama_memory_seq_rm(llama_get_memory(c), id_slot, -1, -1);
        }
        prompt.clear();
        prompt.tokens = server_tokens(llama_tokens(), has_mtmd);
        return false;
    }
    prompt.clear();
    prompt.tokens = server_tokens(llama_tokens(it->tokens.begin(), it->tokens.begin() + n_tokens), has_mtmd);
    states.splice(states.end(), states, it);

    n_restored++;
    n_tokens_restored += n_tokens;
    SRV_INF("slot %d: restored a state of %zu tokens, %d of them in this prompt, %.2f MiB in %.2f ms\n", id_slot,
            it->tokens.size(), n_tokens, it->size()/1024.0/1024.0, (ggml_time_us() - t_start)/1000.0);
    return true;
}

void llama_triattn_server::save(int32_t id_slot, const server_prompt & prompt, const loras & lora) {
    if (is_keeping) {
        save(id_slot, prompt, prompt.n_tokens(), lora);
    }
}

void llama_triattn_server::save(int32_t id_slot, const server_prompt & prompt, int32_t n_tokens, const loras & lora) {
    const int64_t t_start = ggml_time_us();

    const bool is_there = std::all_of(contexts.begin(), contexts.end(), [&](llama_context * c) {
        return llama_memory_seq_pos_max(llama_get_memory(c), id_slot) == n_tokens - 1;
    });
    if (n_tokens < N_WORTH_SAVING || !is_there || touch(prompt.tokens, n_tokens, lora)) {
        return;
    }

    state s;
    s.tokens  = first_tokens(prompt.tokens, n_tokens);
    s.lora    = lora;
    s.pos_min = 0;
    if (s.tokens.empty()) {
        return; // pictures in it
    }

    size_t n_total = s.tokens.size()*sizeof(llama_token);
    for (auto * c : contexts) {
        s.pos_min = std::max(s.pos_min, llama_memory_seq_pos_min(llama_get_memory(c), id_slot));
        n_total  += llama_state_seq_get_size_ext(c, id_slot, 0);
    }
    if (limit > 0 && n_total > limit) {
        SRV_WRN("slot %d: a state of %.2f MiB does not fit --cache-ram, later prompts are read from their beginning\n", id_slot,
                n_total/1024.0/1024.0);
        return;
    }
    while (limit > 0 && !states.empty() && size() + n_total > limit) {
        states.pop_front();
    }
    try {
        for (auto * c : contexts) {
            s.data.emplace_back(llama_state_seq_get_size_ext(c, id_slot, 0));
        }
    } catch (const std::bad_alloc &) {
        SRV_WRN("slot %d: no memory for a state of %.2f MiB\n", id_slot, n_total/1024.0/1024.0);
        return;
    }
    for (size_t i = 0; i < contexts.size(); ++i) {
        auto & data = s.data[i];
        if (llama_state_seq_get_data_ext(contexts[i], data.data(), data.size(), id_slot, 0) != data.size()) {
            SRV_WRN("slot %d: its state of %d tokens cannot be saved\n", id_slot, n_tokens);
            return;
        }
    }
    states.push_back(std::move(s));
    SRV_INF("slot %d: saved its state of %d tokens, %.2f MiB in %.2f ms, %zu states, %.2f MiB\n", id_slot, n_tokens,
            n_total/1024.0/1024.0, (ggml_time_us() - t_start)/1000.0, states.size(), size()/1024.0/1024.0);
}

//
// figures
//

void llama_triattn_server::observe() {
    threads.follow();
    if (!ctx) {
        return;
    }
    llama_triattn_get_stats(ctx, &stats);
    for (size_t i = 0; i < slots.size(); ++i) {
        slots[i].n_cells   = llama_triattn_seq_n_cells  (ctx, i);
        slots[i].pos_whole = llama_triattn_seq_pos_whole(ctx, i);
    }
}

void llama_triattn_server::describe(int32_t id_slot, json & slot) const {
    if (!ctx) {
        return;
    }
    slot["triattention"] = {
        { "budget",           params.budget },
        { "window",           params.window },
        { "n_cells",          stats.n_cells/slots.size() },
        { "n_cells_used",     slots[id_slot].n_cells },
        { "pos_whole",        slots[id_slot].pos_whole },
        // of all slots
        { "n_rounds",         stats.n_rounds },
        { "n_tokens_evicted", stats.n_tokens_evicted },
        { "n_states",         states.size() },
        { "state_bytes",      size() },
        { "cold_bytes",         stats.cold_bytes },
        { "cold_bytes_max",     stats.cold_bytes_max },
        { "n_recalls",          stats.n_recalls },
        { "n_rows_recalled",    stats.n_rows_recalled },
        { "n_tokens_destroyed", stats.n_tokens_destroyed },
        { "n_pinned",           stats.n_pinned },
    };
}

void llama_triattn_server::look(int32_t id_slot, const server_prompt & prompt) const {
    if (llama_triattn_memory::is_looked_at()) {
        llama_triattn_memory::note(id_slot, contexts[0], ctx != nullptr, prompt);
    }
}

static struct {
    std::mutex          mutex;
    std::map<int, json> slots;
    std::string         metrics;
} asleep;

void llama_triattn_server::doze(int32_t id_slot, json slot) const {
    describe(id_slot, slot);

    std::lock_guard<std::mutex> lock(asleep.mutex);
    asleep.slots[id_slot] = std::move(slot);
    asleep.metrics        = metrics();
}

json llama_triattn_server::slots_asleep() {
    std::lock_guard<std::mutex> lock(asleep.mutex);
    json res = json::array();
    for (const auto & slot : asleep.slots) {
        res.push_back(slot.second);
    }
    return res;
}

std::string llama_triattn_server::metrics_asleep() {
    std::lock_guard<std::mutex> lock(asleep.mutex);
    return asleep.metrics;
}

std::string llama_triattn_server::metrics() const {
    if (!ctx) {
        return "";
    }
    std::ostringstream res;
    const auto add = [&res](const char * type, const char * name, const char * help, double value) {
        res << "# HELP llamacpp:triattn_" << name << " " << help << "\n# TYPE llamacpp:triattn_" << name << " " << type << "\n"
            << "llamacpp:triattn_" << name << " " << value << "\n";
    };
    res.precision(17);
    add("counter", "rounds_total",          "Eviction rounds",                                     stats.n_rounds);
    add("counter", "tokens_evicted_total",  "Tokens that left each head's set, summed over rounds", stats.n_tokens_evicted);
    add("counter", "round_seconds_total",   "Time spent in rounds",                                stats.t_total_us/1e6);
    add("counter", "restored_total",        "Saved states that were put back",                     n_restored);
    add("counter", "tokens_restored_total", "Prompt tokens that these states held",                n_tokens_restored);
    add("gauge",   "budget",                "Tokens that each head keeps of a sequence",           params.budget);
    add("gauge",   "cells",                 "Cells of the cache, all slots",                       stats.n_cells);
    add("gauge",   "cells_used",            "Cells in use, all slots",                             stats.n_cells_used);
    add("gauge",   "kv_bytes",              "Size of the KV cache",                                stats.kv_bytes + stats.kv_bytes_other);
    add("gauge",   "kv_bytes_full",         "Size that full attention would need",                 stats.kv_bytes_full + stats.kv_bytes_other);
    add("gauge",   "states",                "Saved states in memory",                              states.size());
    add("gauge",   "state_bytes",           "Memory of the saved states",                          size());
    add("gauge",   "cold_bytes",            "Host memory for rows that were evicted",              stats.cold_bytes);
    add("gauge",   "cold_bytes_max",        "What that memory may grow to, 0: none is kept",       stats.cold_bytes_max);
    add("counter", "recalls_total",         "Recalls from that memory",                            stats.n_recalls);
    add("counter", "rows_recalled_total",   "Rows that came back, summed over layers and heads",   stats.n_rows_recalled);
    add("counter", "recall_seconds_total",  "Time spent in recalls",                               stats.t_recall_us/1e6);
    add("counter", "tokens_destroyed_total", "Tokens that had to leave that memory for good",      stats.n_tokens_destroyed);
    add("gauge",   "pinned",                "Cells that hold pinned tokens, all slots",            stats.n_pinned);
    return res.str();
}
