#include "llama-triattn-ollama.h"

#include "server-common.h"

#include "gguf.h"

#include <sys/stat.h>

#include <chrono>
#include <cmath>
#include <ctime>

// the release of Ollama whose routes these follow: some clients refuse an old one
static const char VERSION[] = "0.12.6";

static std::string iso(std::time_t t, int32_t us = 0) {
    std::tm tm = {};
    gmtime_r(&t, &tm);
    char text[32];
    std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &tm);
    return string_format("%s.%06dZ", text, us);
}

static std::string now() {
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::system_clock::now().time_since_epoch()).count();
    return iso(us/1000000, us % 1000000);
}

static server_http_res_ptr answer(const json & body, int status = 200) {
    auto res = std::make_unique<server_http_res>();
    res->status = status;
    res->data   = safe_json_to_str(body);
    return res;
}

// llama-server's errors are objects, Ollama's are texts
static std::string message_of(const json & error) {
    if (error.is_object() && error.contains("message") && error.at("message").is_string()) {
        return error.at("message");
    }
    return error.is_string() ? error.get<std::string>() : error.dump_safe();
}

static server_http_context::handler_t guarded(server_http_context::handler_t handler) {
    return [handler = std::move(handler)](const server_http_req & req) -> server_http_res_ptr {
        try {
            return handler(req);
        } catch (const std::exception & e) { // what is thrown here is about what the client sent
            return answer({ { "error", e.what() } }, 400);
        }
    };
}

// what a handler of llama-server's that does not stream says
static json asked(const server_http_context::handler_t & handler, const server_http_req & req) {
    return json::parse(handler(req)->data);
}

static json object_of(const std::string & text) {
    json body = json::parse(text);
    if (!body.is_object()) {
        throw std::invalid_argument("the request must be a JSON object");
    }
    return body;
}

//
// requests
//

static void refuse_pictures(const json & with) {
    if (with.contains("images") && !with.at("images").empty()) {
        throw std::invalid_argument("images cannot be taken on Ollama's routes: send them to /v1/chat/completions, to a model that sees");
    }
}

static void take_options(const json & body, int32_t n_ctx, json & out) {
    const json options = json_value(body, "options", json::object());
    if (!options.is_object()) {
        throw std::invalid_argument("options must be an object");
    }
    for (const char * name : { "temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop", "repeat_penalty", "repeat_last_n",
                               "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta" }) {
        if (options.contains(name) && !options.at(name).is_null()) {
            out[name] = options.at(name);
        }
    }
    if (options.contains("num_predict") && !options.at("num_predict").is_null()) {
        out["n_predict"] = std::max(-1, options.at("num_predict").get<int>()); // -2, as much as the context takes, is -1 here
    }
    const int32_t asked_ctx = json_value(options, "num_ctx", 0);
    if (asked_ctx > n_ctx) {
        SRV_WRN("a client asks for num_ctx %d, and the context is of %d tokens: serve with --ctx %d for that many\n", asked_ctx, n_ctx, asked_ctx);
    }
}

static void take_format(const json & body, json & out) {
    const json format = json_value(body, "format", json());
    if (format.is_object()) {
        out["response_format"] = { { "type", "json_schema" }, { "json_schema", { { "schema", format } } } };
    } else if (format.is_string() && format == "json") {
        out["response_format"] = { { "type", "json_object" } };
    } else if (!format.is_null() && format != "") {
        throw std::invalid_argument("format must be \"json\" or a JSON schema");
    }
}

static void take_think(const json & body, json & out) {
    const json think = json_value(body, "think", json());
    if (think.is_boolean() && think.get<bool>()) {
        out["chat_template_kwargs"] = { { "enable_thinking", true } };
    } else if (think.is_boolean()) {
        out["reasoning_effort"] = "none";
    } else if (think.is_string()) {
        out["reasoning_effort"] = think;
    } else if (!think.is_null()) {
        throw std::invalid_argument("think must be true, false, or an effort such as \"low\"");
    }
}

// Ollama's calls have no ids: the results that follow an answer belong to its calls in their order
static json messages_of(const json & given) {
    if (!given.is_array()) {
        throw std::invalid_argument("messages must be an array");
    }
    json messages = json::array();
    int32_t n_calls = 0, n_results = 0;
    for (const json & from : given) {
        if (!from.is_object()) {
            throw std::invalid_argument("each message must be an object");
        }
        refuse_pictures(from);
        json to = { { "role", json_value(from, "role", std::string()) }, { "content", json_value(from, "content", std::string()) } };
        if (const std::string thinking = json_value(from, "thinking", std::string()); !thinking.empty()) {
            to["reasoning_content"] = thinking;
        }
        if (const json calls = json_value(from, "tool_calls", json()); calls.is_array() && !calls.empty()) {
            n_results = n_calls;
            json told = json::array();
            for (const json & call : calls) {
                const json & function = call.at("function");
                const json arguments  = json_value(function, "arguments", json::object());
                told.push_back({
                    { "id", "call_" + std::to_string(n_calls++) },
                    { "type", "function" },
                    { "function", { { "name", function.at("name") }, { "arguments", arguments.is_string() ? arguments : json(arguments.dump()) } } },
                });
            }
            to["tool_calls"] = told;
        }
        if (to.at("role") == "tool") {
            to["tool_call_id"] = "call_" + std::to_string(n_results++);
            if (const std::string name = json_value(from, "tool_name", std::string()); !name.empty()) {
                to["name"] = name;
            }
        }
        messages.push_back(to);
    }
    return messages;
}

//
// answers
//

namespace {

// an answer of llama-server's that comes as events, told again as Ollama's
struct retold : server_http_res {
    server_http_req     req; // what the handler was asked: it looks at it until the end
    server_http_res_ptr inner;

    const bool    is_chat;
    std::string   model;
    const int64_t t_start_us = ggml_time_us();

    std::map<int, json> calls; // by their index, as their parts come
    std::string reason = "stop";
    json usage   = json::object();
    json timings = json::object();
    std::string error;
    int  error_status = 500;
    bool is_over = false;

    retold(const server_http_req & from, const json & body, bool is_chat, const std::string & model) :
        req { from.params, {}, from.path, from.query_string, body.dump_safe(), {}, from.should_stop }, is_chat(is_chat), model(model) {
        content_type = "application/x-ndjson";
    }

    void on_complete() override {
        inner->on_complete();
    }

    json part(const std::string & text, const std::string & thinking) const {
        json line = { { "model", model }, { "created_at", now() } };
        if (is_chat) {
            line["message"] = { { "role", "assistant" }, { "content", text } };
        } else {
            line["response"] = text;
        }
        if (!thinking.empty()) {
            (is_chat ? line["message"] : line)["thinking"] = thinking;
        }
        line["done"] = false;
        return line;
    }

    // all calls that came whole: one that the limit cut off has no arguments that could be read
    json whole_calls() const {
        json whole = json::array();
        for (const auto & [index, call] : calls) {
            const json arguments = json::parse_no_throw(call.at("arguments"));
            if (!arguments.is_discarded() && arguments.is_object()) {
                whole.push_back({ { "id", call.at("id") }, { "function", { { "index", index }, { "name", call.at("name") }, { "arguments", arguments } } } });
            }
        }
        return whole;
    }

    static int64_t ns(const json & timings, const char * name) {
        return (int64_t) (json_value(timings, name, 0.0)*1e6);
    }

    void end(json & line) const {
        line["done"]                 = true;
        line["done_reason"]          = reason;
        line["total_duration"]       = (ggml_time_us() - t_start_us)*1000;
        line["load_duration"]        = 0;
        line["prompt_eval_count"]    = json_value(usage, "prompt_tokens", 0);
        line["prompt_eval_duration"] = ns(timings, "prompt_ms");
        line["eval_count"]           = json_value(usage, "completion_tokens", 0);
        line["eval_duration"]        = ns(timings, "predicted_ms");
    }

    // one event; true if it has text, which is added
    bool take(const json & event, std::string & text, std::string & thinking) {
        if (event.contains("error")) {
            error        = message_of(event.at("error"));
            error_status = json_value(event.at("error"), "code", 500);
            return false;
        }
        usage   = json_value(event, "usage",   usage);
        timings = json_value(event, "timings", timings);
        if (event.contains("content") && event.at("content").is_string()) { // of /infill, which has words of its own
            text  += event.at("content").get<std::string>();
            usage  = { { "prompt_tokens", json_value(event, "tokens_evaluated", 0) }, { "completion_tokens", json_value(event, "tokens_predicted", 0) } };
            reason = json_value(event, "stop_type", std::string()) == "limit" ? "length" : "stop";
        }
        for (const json & choice : json_value(event, "choices", json::array())) {
            const json delta = json_value(choice, "delta", json::object());
            text     += json_value(choice, "text", std::string()) + json_value(delta, "content", std::string());
            thinking += json_value(delta, "reasoning_content", std::string());
            for (const json & call : json_value(delta, "tool_calls", json::array())) {
                json & known = calls.try_emplace(json_value(call, "index", 0), json { { "id", "" }, { "name", "" }, { "arguments", "" } }).first->second;
                const json function = json_value(call, "function", json::object());
                if (call.contains("id")) {
                    known["id"] = json_value(call, "id", std::string());
                }
                for (const char * name : { "name", "arguments" }) {
                    known[name] = known.at(name).get<std::string>() + json_value(function, name, std::string());
                }
            }
            if (json_value(choice, "finish_reason", std::string()) == "length") {
                reason = "length";
            }
        }
        return !text.empty() || !thinking.empty();
    }

    // what the handler has next: true if there is something to tell. A comment, sent for the client's sake, is told as no text.
    bool step(std::string & text, std::string & thinking) {
        std::string chunk;
        is_over = !inner->next(chunk);
        bool tells = !chunk.empty() && chunk[0] == ':';
        for (const auto & line : string_split<std::string>(chunk, '\n')) {
            if (string_starts_with(line, "data: ") && line != "data: [DONE]") {
                tells |= take(json::parse(line.substr(6)), text, thinking);
            }
        }
        is_over |= !error.empty();
        return tells;
    }

    bool tell(std::string & output) {
        std::string text, thinking;
        if (step(text, thinking)) {
            output += part(text, thinking).dump_safe() + "\n";
        }
        if (is_over && !error.empty()) {
            output += json { { "error", error } }.dump_safe() + "\n";
        } else if (is_over) {
            if (const json whole = whole_calls(); !whole.empty()) {
                json line = part("", "");
                line["message"]["tool_calls"] = whole;
                output += line.dump_safe() + "\n";
            }
            json line = part("", "");
            end(line);
            output += line.dump_safe() + "\n";
        }
        return !is_over;
    }

    server_http_res_ptr whole() {
        std::string text, thinking;
        while (!is_over) {
            step(text, thinking);
        }
        if (!error.empty()) {
            return answer({ { "error", error } }, error_status);
        }
        json line = part(text, thinking);
        if (const json found = whole_calls(); !found.empty()) {
            line["message"]["tool_calls"] = found;
        }
        end(line);
        return answer(line);
    }
};

} // namespace

// Asks a handler, which is to stream, and tells what it says in Ollama's words: as it comes, unless the client wants it whole.
static server_http_res_ptr retell(const server_http_req & req, const server_http_context::handler_t & handler, const json & given, json body, bool is_chat, const std::string & model) {
    body["stream"]         = true;
    body["stream_options"] = { { "include_usage", true } };

    auto res = std::make_unique<retold>(req, body, is_chat, model);
    res->inner = handler(res->req);
    if (!res->inner->is_stream()) {
        const json said = json::parse_no_throw(res->inner->data);
        const bool is_told = !said.is_discarded() && said.is_object() && said.contains("error");
        return answer({ { "error", is_told ? message_of(said.at("error")) : "the client left" } }, res->inner->status == 200 ? 500 : res->inner->status);
    }
    if (!json_value(given, "stream", true)) {
        return res->whole();
    }
    res->headers["Connection"] = "close"; // so it is after each stream: clients must not ask on it again
    res->next = [res = res.get()](std::string & output) { return res->tell(output); };
    return res;
}

// of a request without a question, by which Ollama's clients have a model loaded
static server_http_res_ptr loaded(bool is_chat, const std::string & model) {
    json line = { { "model", model }, { "created_at", now() }, { "done", true }, { "done_reason", "load" } };
    if (is_chat) {
        line["message"] = { { "role", "assistant" }, { "content", "" } };
    } else {
        line["response"] = "";
    }
    return answer(line);
}

//
// what is served
//

namespace {

struct served {
    json model; // of /v1/models
    json props;

    served(const server_routes & routes, const server_http_req & req) : model(asked(routes.get_models, req).at("data").at(0)), props(asked(routes.get_props, req)) {}

    std::string name()  const { return model.at("id"); }
    int32_t     n_ctx() const { return model.at("meta").at("n_ctx").get<int>(); }
    std::string path()  const { return props.at("model_path"); }

    std::string modified_at() const {
        struct stat st = {};
        return iso(stat(path().c_str(), &st) == 0 ? st.st_mtime : 0);
    }

    // 64 digits, of which clients show the first; those of name, size and date, for nobody reads gigabytes to name them
    std::string digest() const {
        std::string digits;
        for (uint64_t part = 0; part < 4; ++part) {
            uint64_t hash = 1469598103934665603ull + part;
            for (const unsigned char c : name() + model.at("meta").dump() + modified_at()) {
                hash = (hash ^ c)*1099511628211ull;
            }
            digits += string_format("%016llx", (unsigned long long) hash);
        }
        return digits;
    }

    json details(const json & info) const {
        const double n = model.at("meta").at("n_params").get<double>();
        const std::string family = json_value(info, "general.architecture", std::string());
        return {
            { "parent_model",       "" },
            { "format",             "gguf" },
            { "family",             family },
            { "families",           json::array({ family }) },
            { "parameter_size",     n < 1e9 ? string_format("%.2fM", n/1e6) : string_format("%.1fB", n/1e9) },
            { "quantization_level", json_value(props, "model_ftype", std::string()) },
        };
    }

    // numbers and words of the file's header, where a context is the one that is served
    json info() const {
        json found = json::object();
        gguf_init_params params = { /*.no_alloc =*/ true, /*.ctx =*/ nullptr };
        gguf_context * file = gguf_init_from_file(path().c_str(), params);
        for (int64_t i = 0; file && i < gguf_get_n_kv(file); ++i) {
            const std::string key = gguf_get_key(file, i);
            switch (gguf_get_kv_type(file, i)) {
                case GGUF_TYPE_STRING:  if (!string_starts_with(key, "tokenizer.")) { found[key] = gguf_get_val_str(file, i); } break;
                case GGUF_TYPE_BOOL:    found[key] = gguf_get_val_bool(file, i); break;
                case GGUF_TYPE_UINT32:  found[key] = gguf_get_val_u32 (file, i); break;
                case GGUF_TYPE_INT32:   found[key] = gguf_get_val_i32 (file, i); break;
                case GGUF_TYPE_UINT64:  found[key] = gguf_get_val_u64 (file, i); break;
                case GGUF_TYPE_FLOAT32: found[key] = gguf_get_val_f32 (file, i); break;
                default: break;
            }
        }
        gguf_free(file);
        found["general.parameter_count"] = model.at("meta").at("n_params");
        if (const std::string arch = json_value(found, "general.architecture", std::string()); !arch.empty()) {
            found[arch + ".context_length"] = n_ctx();
        }
        return found;
    }

    json capabilities() const {
        const std::string tmpl = json_value(props, "chat_template", std::string());
        json res = json::array({ "completion" });
        if (json_value(json_value(props, "chat_template_caps", json::object()), "supports_tool_calls", false)) {
            res.push_back("tools");
        }
        if (tmpl.find("<think") != std::string::npos || tmpl.find("reasoning") != std::string::npos) {
            res.push_back("thinking");
        }
        return res;
    }
};

} // namespace

static server_http_res_ptr chat(const server_routes & routes, const server_http_req & req) {
    const json given = object_of(req.body);
    const served model(routes, req);
    if (!given.contains("messages") || given.at("messages").empty()) {
        return loaded(true, model.name());
    }
    json body = { { "model", model.name() }, { "messages", messages_of(given.at("messages")) } };
    if (const json tools = json_value(given, "tools", json()); tools.is_array() && !tools.empty()) {
        body["tools"] = tools;
    }
    take_options(given, model.n_ctx(), body);
    take_format (given, body);
    take_think  (given, body);
    return retell(req, routes.post_chat_completions, given, body, true, model.name());
}

static server_http_res_ptr generate(const server_routes & routes, const server_http_req & req) {
    const json given = object_of(req.body);
    const served model(routes, req);
    refuse_pictures(given);
    if (!json_value(given, "template", std::string()).empty()) {
        throw std::invalid_argument("template cannot be taken: the model has its own; raw takes a prompt as it is");
    }
    const std::string prompt = json_value(given, "prompt", std::string());
    const std::string suffix = json_value(given, "suffix", std::string());
    if (prompt.empty() && suffix.empty()) {
        return loaded(false, model.name());
    }
    json body = { { "model", model.name() } };
    take_options(given, model.n_ctx(), body);
    if (!suffix.empty()) {
        body["input_prefix"] = prompt;
        body["input_suffix"] = suffix;
        return retell(req, routes.post_infill, given, body, false, model.name());
    }
    if (json_value(given, "raw", false)) {
        body["prompt"] = prompt;
        return retell(req, routes.post_completions_oai, given, body, false, model.name());
    }
    body["messages"] = json::array();
    if (const std::string system = json_value(given, "system", std::string()); !system.empty()) {
        body["messages"].push_back({ { "role", "system" }, { "content", system } });
    }
    body["messages"].push_back({ { "role", "user" }, { "content", prompt } });
    take_format(given, body);
    take_think (given, body);
    return retell(req, routes.post_chat_completions, given, body, false, model.name());
}

static server_http_res_ptr show(const server_routes & routes, const server_http_req & req) {
    object_of(req.body);
    const served model(routes, req);
    const json info = model.info();
    return answer({
        { "modelfile",    "FROM " + model.name() + "\n" },
        { "parameters",   "num_ctx " + std::to_string(model.n_ctx()) },
        { "template",     json_value(model.props, "chat_template", std::string()) },
        { "details",      model.details(info) },
        { "model_info",   info },
        { "capabilities", model.capabilities() },
        { "modified_at",  model.modified_at() },
    });
}

static server_http_res_ptr tags(const server_routes & routes, const server_http_req & req) {
    const served model(routes, req);
    return answer({ { "models", json::array({ json {
        { "name",        model.name() },
        { "model",       model.name() },
        { "modified_at", model.modified_at() },
        { "size",        model.model.at("meta").at("size") },
        { "digest",      model.digest() },
        { "details",     model.details(model.info()) },
    } }) } });
}

void llama_triattn_ollama::add(const server_http_context & http, const server_routes & routes) {
    const auto of = [&routes](server_http_res_ptr (*handler)(const server_routes &, const server_http_req &)) {
        return guarded([&routes, handler](const server_http_req & req) { return handler(routes, req); });
    };
    http.post("/api/chat",     of(chat));
    http.post("/api/generate", of(generate));
    http.post("/api/show",     of(show));
    http.get ("/api/tags",     of(tags));
    http.get ("/api/version",  guarded([](const server_http_req &) { return answer({ { "version", VERSION } }); }));
}
