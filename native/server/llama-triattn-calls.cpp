#include "llama-triattn-calls.h"

#include "chat-peg-parser.h"
#include "json-schema-to-grammar.h"
#include "llama-triattn-server.h"

#include <algorithm>
#include <set>

static const char BEGIN[] = "<tool_call>";
static const char END[]   = "</tool_call>";

// the function that tool_choice names, "" if it names none
static std::string named(const json & body) {
    if (!body.contains("tool_choice") || !body.at("tool_choice").is_object()) {
        return "";
    }
    const json & choice   = body.at("tool_choice");
    const json & function = choice.contains("function") ? choice.at("function") : choice;
    if (json_value(choice, "type", std::string()) != "function" || !function.is_object() || !function.contains("name") || !function.at("name").is_string()) {
        throw std::invalid_argument("tool_choice must be \"auto\", \"none\", \"required\" or {\"type\": \"function\", \"function\": {\"name\": NAME}}");
    }
    return function.at("name");
}

// the parsers below one of a parser that was saved, by which text goes up to a mark
static void add_untils(const json & parsers, size_t id, std::set<size_t> & seen, std::set<size_t> & untils) {
    if (!seen.insert(id).second) {
        return;
    }
    const json & parser = parsers.at(id);
    if (parser.at("type") == "until") {
        untils.insert(id);
    }
    if (parser.contains("child")) {
        add_untils(parsers, parser.at("child").get<size_t>(), seen, untils);
    }
    if (parser.contains("children")) {
        for (const json & child : parser.at("children")) {
            add_untils(parsers, child.get<size_t>(), seen, untils);
        }
    }
}

// the grammar of a call, without the text that may come before it: its rules have the numbers of the parsers they are made of
static std::string at_once(const common_chat_params & params) {
    const json parsers = json::parse(params.parser).at("parsers");

    std::set<size_t> seen, untils;
    for (size_t id = 0; id < parsers.size(); ++id) {
        if (parsers.at(id).at("type") == "tag" && parsers.at(id).at("tag") == common_chat_peg_builder::CONTENT) {
            add_untils(parsers, id, seen, untils);
        }
    }
    std::string grammar;
    for (const auto & line : string_split<std::string>(params.grammar, '\n')) {
        const bool is_text = std::any_of(untils.begin(), untils.end(), [&](size_t id) {
            return string_starts_with(line, "until-" + std::to_string(id) + " ::=");
        });
        grammar += (is_text ? line.substr(0, line.find("::=")) + "::= \"\"" : line) + "\n";
    }
    return grammar;
}

static std::string text_of(const common_chat_msg & message) {
    std::string text = message.render_content();
    for (const auto & call : message.tool_calls) {
        const json arguments = json::parse_no_throw(call.arguments);
        const json told = { { "name", call.name }, { "arguments", arguments.is_discarded() ? json(call.arguments) : arguments } };
        text += (text.empty() ? "" : "\n") + std::string(BEGIN) + "\n" + told.dump() + "\n" + END;
    }
    return text;
}

// tools, calls and their results as text, for a template that knows none of them
static void tell(common_chat_templates_inputs & inputs) {
    std::vector<common_chat_msg> messages;
    for (const auto & message : inputs.messages) {
        common_chat_msg plain;
        plain.role              = message.role == "tool" ? "user" : message.role;
        plain.reasoning_content = message.reasoning_content;
        plain.content           = message.role == "tool" ? "<tool_response>\n" + text_of(message) + "\n</tool_response>" : text_of(message);
        messages.push_back(plain);
    }
    std::string tools = "# Tools\n\nYou may call functions. Their signatures:\n<tools>\n";
    for (const json & tool : common_chat_tools_to_json_oaicompat(inputs.tools)) {
        tools += tool.dump() + "\n";
    }
    tools += "</tools>\n\nTo call one, write a JSON object with its name and arguments between these tags, and nothing else:\n";
    tools += std::string(BEGIN) + "\n{\"name\": <name>, \"arguments\": <object>}\n" + END;

    if (!messages.empty() && messages[0].role == "system") {
        messages[0].content += "\n\n" + tools;
    } else {
        common_chat_msg system;
        system.role    = "system";
        system.content = tools;
        messages.insert(messages.begin(), system);
    }
    inputs.messages    = messages;
    inputs.tools       = {};
    inputs.tool_choice = COMMON_CHAT_TOOL_CHOICE_NONE;
}

void llama_triattn_calls::enforce(const common_chat_templates * tmpls, const json & body, common_chat_templates_inputs & inputs, common_chat_params & params) {
    if (!llama_triattn_server::is_on()) {
        return;
    }
    const std::string name = named(body);
    if (name.empty() && (inputs.tools.empty() || inputs.tool_choice != COMMON_CHAT_TOOL_CHOICE_REQUIRED)) {
        return;
    }

    // the prompt tells of all tools, which it has in common with other requests; the grammar knows the one
    common_chat_templates_inputs only = inputs;
    if (!name.empty()) {
        only.tool_choice = COMMON_CHAT_TOOL_CHOICE_REQUIRED;
        only.tools.erase(std::remove_if(only.tools.begin(), only.tools.end(), [&](const common_chat_tool & t) { return t.name != name; }), only.tools.end());
        if (only.tools.empty()) {
            throw std::invalid_argument("tool_choice names the function \"" + name + "\", which is not among the tools");
        }
    }
    const common_chat_params forced = name.empty() ? params : common_chat_templates_apply(tmpls, only);

    if (!forced.grammar.empty() && !forced.grammar_lazy) {
        params.grammar = at_once(forced);
    } else {
        const json tools = common_chat_tools_to_json_oaicompat(only.tools);
        tell(inputs);
        params = common_chat_templates_apply(tmpls, inputs);
        const std::string begin = string_strip(params.thinking_start_tag);
        const auto parser = build_chat_peg_parser([&](common_chat_peg_builder & p) {
            auto calls = p.space() + p.standard_json_tools(BEGIN, END, tools, false, true);
            if (!begin.empty() && !params.thinking_end_tags.empty()) {
                const std::string end = string_strip(params.thinking_end_tags[0]);
                calls = p.optional(p.optspace(params.thinking_start_tag) + p.reasoning(p.until(end)) + p.literal(end)) + calls;
            }
            return p.prefix(params.generation_prompt, begin) + calls + p.end();
        });
        params.format           = COMMON_CHAT_FORMAT_PEG_NATIVE;
        params.parser           = parser.save();
        params.grammar          = build_grammar([&](const common_grammar_builder & builder) { parser.build_grammar(builder, false); });
        params.preserved_tokens = { BEGIN, END };
    }
    params.grammar_lazy     = false;
    params.grammar_triggers = {};
}
