#pragma once

// A call that a request insists on: tool_choice "required", or one function by its name.
//
// Upstream's grammar for "required" lets any text come before the call, which a small model never ends, and a function that is
// named counts as "auto". Here the call comes first (behind the thinking, where there is any), and it is one of that function. A
// template that knows no tools has the model told of them in the system prompt, as Runtime.chat of triattn_local does, and calls
// have Hermes' form then.
//
// As all hooks it does nothing while eviction is off.

#include "server-common.h"

#include "chat.h"

class llama_triattn_calls {
public:
    // params were made of inputs, which were made of body. Throws std::invalid_argument if no such function is among the tools.
    static void enforce(const common_chat_templates * tmpls, const json & body, common_chat_templates_inputs & inputs, common_chat_params & params);
};
