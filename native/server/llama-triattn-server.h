#pragma once

// What llama-server does besides while the cache of its model evicts: it goes back to saved states, and tells what was evicted.
//
// An evicted sequence cannot be rewound beyond its last window, so that a prompt that leaves the path of the one before it
// would be read from its first token on. Therefore whole states of sequences are kept, for all slots together:
//
//   - at the end of system prompt and tools: of what the template makes of a conversation before the user has said a word
//   - one token before the end of each prompt; that one is decoded again, for its logits
//   - where a prompt left the path of a saved state far from the next one, so that the third of a kind finds one
//   - of a slot that another conversation takes, or that goes to sleep
//
// A prompt begins with the state that has most of its tokens. The memory is that of --cache-ram; what was not used for longest
// goes first. The batches of a prompt end where states are saved, whether anything is restored or not: an answer does not
// depend on what else the server was asked.
//
// A draft model's sequences go the same way: a state is that of both contexts, and both must be able to go back to it.
//
// Static functions may be called by any thread; all others belong to the one that owns the slots, between two batches.

#include "server-common.h"
#include "server-task.h"

#include "chat.h"

#include "llama-triattn.h"
#include "llama-triattn-threads.h"

#include <cstdint>
#include <list>
#include <string>
#include <vector>

class llama_triattn_server {
public:
    using loras = std::vector<common_adapter_lora_info>;

    // The context was made, or made anew after a sleep: the states outlive that. Returns true if states are kept here; then
    // upstream's prompt cache and context checkpoints, which take the same memory for less, are not to be made.
    // ctx_draft: of the draft model, may be null. No states are kept for drafts that need more than their own cache to go on.
    bool attach(llama_context * ctx, common_params & params, llama_context * ctx_draft);

    // Before a draft model is loaded, which inherits the target's settings of eviction: its statistics are its own (without any
    // it keeps first and last tokens), and it drafts no more tokens than its window can take back.
    static void fit_draft(const llama_context * ctx, common_params & params, common_params & params_draft);

    // The text that every conversation with this system prompt and these tools begins with goes into the parameters of a
    // completion; and how many tokens of a prompt that is, -1 if there is none.
    static void    add_prefix(json & params, const common_chat_templates * tmpls, const common_chat_templates_inputs & inputs);
    static int32_t n_prefix(const llama_vocab * vocab, const json & params, const server_tokens & tokens);

    // false while nothing evicts: then llama-server is upstream's
    static bool is_on();

    // The error of a prompt that a slot of n_ctx tokens would refuse, null for one that it takes: the same error, told before
    // the request waits for a slot.
    static json too_long(int32_t n_tokens, int32_t n_ctx);

    // How often the thread of a request looks whether its client is still there, whatever other requests do.
    static const int32_t POLL_MS = 200;

    // Put the slot's sequence into the best state that there is to read the task's prompt from. n_past: tokens of the prompt
    // that the slot could go on from by itself. Returns that number for the state that is there now; prompt tells of the same.
    int32_t resume(int32_t id_slot, server_prompt & prompt, const server_task & task, const loras & lora, int32_t n_past);

    // true if a batch of the slot's prompt must end with its token number n_tokens
    bool ends_batch(int32_t id_slot, int32_t n_tokens) const;

    // The slot's sequence holds the first n_tokens tokens of its prompt: save it if this is one of the places.
    void reach(int32_t id_slot, const server_prompt & prompt, int32_t n_tokens, const loras & lora);

    // Save all that the slot's sequence holds.
    void save(int32_t id_slot, const server_prompt & prompt, const loras & lora);

    // A batch is done: note the figures of this moment for the two below, which may be asked for while the next one is computed,
    // and how many threads are to compute it.
    void observe();

    void        describe(int32_t id_slot, json & slot) const; // for /slots: adds "triattention"
    void        look(int32_t id_slot, const server_prompt & prompt) const; // for /memory, while somebody looks at it
    std::string metrics() const;                              // for /metrics: Prometheus text, "" if nothing evicts

    // Figures of a model that leaves the memory: noted before it goes, told to those who ask while it is away, whom upstream
    // would load it again for (slots), or told less (metrics).
    void               doze(int32_t id_slot, json slot) const;
    static json        slots_asleep();
    static std::string metrics_asleep();

private:
    struct state {
        llama_tokens         tokens;
        loras                lora;
        llama_pos            pos_min; // it can be cut behind this one

        std::vector<std::vector<uint8_t>> data; // of each context

        size_t size() const;
    };

    struct slot_info {
        std::vector<int32_t> places;        // numbers of tokens at which the prompt is saved
        int32_t              n_pin     = -1; // tokens of the prompt to pin once its first batch begins; -1: that is done
        int32_t              n_prompt  = 0; // tokens of the last prompt
        int32_t              n_cells   = 0;
        llama_pos            pos_whole = 0;
    };

    llama_context * ctx       = nullptr; // null while nothing evicts
    llama_context * ctx_draft = nullptr; // null without a draft model

    std::vector<llama_context *> contexts; // those of the two that there are

    llama_triattn_threads threads;

    llama_triattn_params params = {};
    llama_triattn_stats  stats  = {};

    bool   is_keeping = false;
    bool   can_cut    = false; // states may be restored and then cut: no sliding window, whose cells are saved up to its end only
    size_t limit      = 0;     // bytes, 0: no limit

    std::list<state>       states; // the one used last at the end
    std::vector<slot_info> slots;

    uint64_t n_restored        = 0;
    uint64_t n_tokens_restored = 0;

    size_t size() const;

    // The first tokens of a prompt that are pinned: all while they fit, else system prompt and tools. No round comes before the end of
    // a prompt that fits, so that an answer does not depend on what its first tokens were pinned for before.
    int32_t n_to_pin(const server_task & task) const;
    void    pin(int32_t id_slot, int32_t n_tokens);

    // tokens of the prompt that are there once the state is restored, and cut if need be; 0: of no use
    int32_t n_usable(const state & s, int32_t n_shared) const;

    bool restore(int32_t id_slot, server_prompt & prompt, std::list<state>::iterator it, int32_t n_tokens);

    void save(int32_t id_slot, const server_prompt & prompt, int32_t n_tokens, const loras & lora);

    // true if there is a state of exactly these tokens; it counts as used now
    bool touch(const server_tokens & tokens, int32_t n_tokens, const loras & lora);
};
