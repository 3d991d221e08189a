#include "llama-triattn-model.h"

#include "llama-arch.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model-loader.h"
#include "llama-model.h"

#include "gguf.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

static const uint32_t LLAMA_TRIATTN_VERSION = 1;

static const char * const LLAMA_TRIATTN_PREFIX = "triattention.";

static thread_local std::string g_error;

void llama_triattn_set_error(const std::string & what) {
    g_error = what;
}

const char * llama_triattn_get_error() {
    return g_error.c_str();
}

void llama_triattn_refuse(const std::string & why) {
    llama_triattn_set_error("TriAttention: " + why);
    throw std::runtime_error("TriAttention: " + why);
}

//
// settings
//

struct triattn_setting {
    const char * key; // after "triattention."
    const char * env;

    void (*set)(llama_triattn_params & params, const std::string & value);
};

static uint32_t parse_u32(const std::string & value) {
    char * end = nullptr;
    const long long x = strtoll(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || x < 0 || x > INT32_MAX) {
        throw std::runtime_error("'" + value + "' is not a whole number from 0 to 2147483647");
    }
    return (uint32_t) x;
}

static float parse_f32(const std::string & value) {
    char * end = nullptr;
    const float x = strtof(value.c_str(), &end);
    if (value.empty() || *end != '\0' || !std::isfinite(x)) {
        throw std::runtime_error("'" + value + "' is not a number");
    }
    return x;
}

static int32_t parse_name(const std::string & value, const std::vector<const char *> & names) {
    std::string all;
    for (size_t i = 0; i < names.size(); ++i) {
        if (value == names[i]) {
            return (int32_t) i;
        }
        all += (i ? ", " : "") + std::string(names[i]);
    }
    throw std::runtime_error("'" + value + "' is not one of " + all);
}

// off, auto, or bytes -> KiB
static uint32_t parse_cold(const std::string & value) {
    if (value == "off")  { return LLAMA_TRIATTN_COLD_OFF; }
    if (value == "auto") { return LLAMA_TRIATTN_COLD_AUTO; }

    char * end = nullptr;
    const double x = strtod(value.c_str(), &end);

    static const std::pair<const char *, double> units[] = { { "", 1 }, { "KiB", 1024.0 }, { "MiB", 1048576.0 }, { "GiB", 1073741824.0 } };
    for (const auto & [unit, size] : units) {
        if (end != value.c_str() && std::string(end) == unit && x > 0.0 && x*size < 4e15) {
            return (uint32_t) std::min(std::ceil(x*size/1024.0), (double) UINT32_MAX - 1);
        }
    }
    throw std::runtime_error("'" + value + "' is not off, auto or a number of bytes (such as 8GiB)");
}

static int32_t parse_bool(const std::string & value) {
    if (value == "1" || value == "true")  { return 1; }
    if (value == "0" || value == "false") { return 0; }
    throw std::runtime_error("'" + value + "' is not true or false");
}

static const triattn_setting g_settings[] = {
    { "budget",     "TRIATTN_BUDGET",     [](llama_triattn_params & p, const std::string & v) {
        p.budget = v == "off" ? 0 : parse_u32(v);
        if (p.budget == 0 && v != "off") {
            throw std::runtime_error("a budget of 0 tokens keeps nothing; 'off' turns eviction off");
        }
    } },
    { "window",     "TRIATTN_WINDOW",     [](llama_triattn_params & p, const std::string & v) { p.window     = parse_u32(v); } },
    { "n_keep",     "TRIATTN_KEEP",       [](llama_triattn_params & p, const std::string & v) {
        if (v == "auto") {
            p.pin = LLAMA_TRIATTN_PIN_AUTO;
        } else {
            p.n_keep = parse_u32(v);
        }
    } },
    { "mode",       "TRIATTN_MODE",       [](llama_triattn_params & p, const std::string & v) { p.mode       = parse_name(v, { "shared", "per-head", "per-layer-head" }); } },
    { "policy",     "TRIATTN_POLICY",     [](llama_triattn_params & p, const std::string & v) { p.policy     = parse_name(v, { "triattention", "streaming", "knorm", "random", "snapkv", "h2o", "tova", "rkv" }); } },
    { "aggregate",  "TRIATTN_AGGREGATE",  [](llama_triattn_params & p, const std::string & v) { p.aggregate  = parse_name(v, { "mean", "max" }); } },
    { "terms",      "TRIATTN_TERMS",      [](llama_triattn_params & p, const std::string & v) { p.terms      = parse_name(v, { "both", "trig", "norm" }); } },
    { "weight_r",   "TRIATTN_WEIGHT_R",   [](llama_triattn_params & p, const std::string & v) { p.weight_r   = parse_bool(v); } },
    { "offsets",    "TRIATTN_OFFSETS",    [](llama_triattn_params & p, const std::string & v) { p.offsets    = parse_name(v, { "geometric", "linear" }); } },
    { "offset_max", "TRIATTN_OFFSET_MAX", [](llama_triattn_params & p, const std::string & v) { p.offset_max = parse_u32(v); } },
    { "weight_v",   "TRIATTN_WEIGHT_V",   [](llama_triattn_params & p, const std::string & v) { p.weight_v   = parse_f32(v); } },
    { "seed",       "TRIATTN_SEED",       [](llama_triattn_params & p, const std::string & v) { p.seed       = parse_u32(v); } },
    { "cold",       "TRIATTN_COLD",       [](llama_triattn_params & p, const std::string & v) { p.cold       = parse_cold(v); } },
    { "recall",         "TRIATTN_RECALL",         [](llama_triattn_params & p, const std::string & v) { p.recall         = parse_f32(v); } },
    { "recall_prompt",  "TRIATTN_RECALL_PROMPT",  [](llama_triattn_params & p, const std::string & v) { p.recall_prompt  = parse_f32(v); } },
    { "recall_block",   "TRIATTN_RECALL_BLOCK",   [](llama_triattn_params & p, const std::string & v) { p.recall_block   = parse_u32(v); } },
    { "recall_queries", "TRIATTN_RECALL_QUERIES", [](llama_triattn_params & p, const std::string & v) { p.recall_queries = parse_u32(v); } },
    { "recall_period",  "TRIATTN_RECALL_PERIOD",  [](llama_triattn_params & p, const std::string & v) { p.recall_period  = parse_u32(v); } },
    { "pin",            "TRIATTN_PIN",            [](llama_triattn_params & p, const std::string & v) { p.pin            = parse_f32(v); } },
    { "weight_q",       "TRIATTN_WEIGHT_Q",       [](llama_triattn_params & p, const std::string & v) { p.weight_q       = parse_f32(v); } },
};

void llama_triattn_model::check(const llama_triattn_params & p) {
    if (p.budget == 0) {
        return;
    }
    // positions are int32: a larger count is a negative value that was cast
    const uint32_t n_max = INT32_MAX / 4;
    if (p.budget > n_max || p.window > n_max || p.n_keep > n_max) {
        throw std::runtime_error(format("budget %u, window %u or n_keep %u is negative or absurdly large", p.budget, p.window, p.n_keep));
    }
    if (p.window == 0) {
        throw std::runtime_error("window must be at least 1 token");
    }
    if (p.budget <= p.n_keep + p.window) {
        throw std::runtime_error(format("budget %u must be larger than n_keep + window = %u + %u", p.budget, p.n_keep, p.window));
    }
    if (p.offset_max == 0 || p.offset_max > (1u << 24)) {
        throw std::runtime_error(format("offset_max %u is not from 1 to %u", p.offset_max, 1u << 24));
    }
    if (!(p.weight_v >= 0.0f && p.weight_v <= 100.0f)) {
        throw std::runtime_error(format("weight_v %g is not from 0 to 100", p.weight_v));
    }
    if (!(p.weight_q >= 0.0f && p.weight_q <= 100.0f)) {
        throw std::runtime_error(format("weight_q %g is not from 0 to 100", p.weight_q));
    }
    if (!(p.pin >= 0.0f && p.pin <= 0.9f)) {
        throw std::runtime_error(format("pin %g is not from 0 to 0.9", p.pin));
    }
    if (!(p.recall >= 0.0f && p.recall <= 0.9f)) {
        throw std::runtime_error(format("recall %g is not from 0 to 0.9", p.recall));
    }
    if (!(p.recall_prompt >= 0.0f && p.recall_prompt <= 0.9f)) {
        throw std::runtime_error(format("recall_prompt %g is not from 0 to 0.9", p.recall_prompt));
    }
    if (p.cold != LLAMA_TRIATTN_COLD_OFF && (p.recall_block == 0 || p.recall_block > 1024 || p.recall_queries > 1024 || p.recall_period > 1024 ||
            p.recall_queries + p.recall_period == 0)) {
        throw std::runtime_error(format("recall_block %u, recall_queries %u or recall_period %u is not from 1 to 1024 (0 queries, or a period of 0: "
                "no recall of that kind, not both)", p.recall_block, p.recall_queries, p.recall_period));
    }
    const bool ok =
        p.mode      >= 0 && p.mode      <= LLAMA_TRIATTN_MODE_PER_LAYER_HEAD &&
        p.policy    >= 0 && p.policy    <= LLAMA_TRIATTN_POLICY_RKV          &&
        p.aggregate >= 0 && p.aggregate <= LLAMA_TRIATTN_AGGREGATE_MAX       &&
        p.terms     >= 0 && p.terms     <= LLAMA_TRIATTN_TERMS_NORM          &&
        p.offsets   >= 0 && p.offsets   <= LLAMA_TRIATTN_OFFSETS_LINEAR;
    if (!ok) {
        throw std::runtime_error("mode, policy, aggregate, terms or offsets is not a value of its enum");
    }
}

llama_triattn_params llama_triattn_model::params() const {
    if (own) {
        return *own;
    }

    llama_triattn_params res = llama_triattn_default_params();

    for (const auto & s : g_settings) {
        const auto   it    = settings.find(s.key);
        const char * env   = getenv(s.env);
        const bool   told  = it != settings.end();
        const char * value = told ? it->second.c_str() : env;

        if (!value || (!told && !*value)) {
            continue;
        }
        try {
            s.set(res, value);
        } catch (const std::exception & err) {
            throw std::runtime_error(format("%s%s: %s", told ? LLAMA_TRIATTN_PREFIX : "", told ? s.key : s.env, err.what()));
        }
    }

    check(res);

    return res;
}

void llama_triattn_model::set_params(const llama_triattn_params & params) {
    check(params);
    own = std::make_unique<llama_triattn_params>(params);
}

//
// statistics
//

static uint32_t crc32_update(uint32_t crc, const void * data, size_t size) {
    static const auto table = [] {
        std::vector<uint32_t> t(256);
        for (uint32_t i = 0; i < 256; ++i) {
            uint32_t c = i;
            for (int k = 0; k < 8; ++k) {
                c = (c & 1) ? 0xEDB88320u ^ (c >> 1) : c >> 1;
            }
            t[i] = c;
        }
        return t;
    }();

    const uint8_t * p = (const uint8_t *) data;

    crc = ~crc;
    for (size_t i = 0; i < size; ++i) {
        crc = table[(crc ^ p[i]) & 0xFF] ^ (crc >> 8);
    }
    return ~crc;
}

// Shape, and a checksum of the F32 norm weights: quantisation leaves those alone and fine-tuning does not.
static std::string make_fingerprint(const llama_model & model, llama_model_loader & ml) {
    if (ml.files.empty()) {
        return "";
    }

    std::map<std::string, const llama_model_loader::llama_tensor_weight *> norms;
    for (const auto & [name, w] : ml.weights_map) {
        if (w.tensor->type == GGML_TYPE_F32 && name.find("norm") != std::string::npos) {
            norms[name] = &w;
        }
    }

    uint32_t crc = 0;
    std::vector<uint8_t> buf;
    for (const auto & [name, w] : norms) {
        buf.resize(ggml_nbytes(w->tensor));
        const auto & file = ml.files.at(w->idx);
        file->seek(w->offs, SEEK_SET);
        file->read_raw(buf.data(), buf.size());
        crc = crc32_update(crc, name.data(), name.size());
        crc = crc32_update(crc, buf.data(), buf.size());
    }

    const auto & hparams = model.hparams;

    return format("%s/L%u/E%u/H%u/K%u/D%u/crc32:%08x", llm_arch_name(model.arch),
            hparams.n_layer(), hparams.n_embd, hparams.n_head(), hparams.n_head_kv(), hparams.n_embd_head_k(), crc);
}

static int64_t find_key(const gguf_context * meta, const std::string & name, gguf_type type, gguf_type type_arr = GGUF_TYPE_COUNT) {
    const std::string key = LLAMA_TRIATTN_PREFIX + name;
    const int64_t     kid = gguf_find_key(meta, key.c_str());
    if (kid < 0) {
        throw std::runtime_error("key " + key + " is missing");
    }
    if (gguf_get_kv_type(meta, kid) != type || (type == GGUF_TYPE_ARRAY && gguf_get_arr_type(meta, kid) != type_arr)) {
        throw std::runtime_error("key " + key + " has the wrong type");
    }
    return kid;
}

static std::vector<float> get_floats(const gguf_context * meta, const std::string & name) {
    const int64_t kid = find_key(meta, name, GGUF_TYPE_ARRAY, GGUF_TYPE_FLOAT32);
    const float * x   = (const float *) gguf_get_arr_data(meta, kid);

    std::vector<float> res(x, x + gguf_get_arr_n(meta, kid));
    for (float v : res) {
        if (!std::isfinite(v)) {
            throw std::runtime_error(std::string("key ") + LLAMA_TRIATTN_PREFIX + name + " holds a value that is not finite");
        }
    }
    return res;
}

void llama_triattn_model::read_stats(const gguf_context * meta, const char * where) {
    stats.reset();
    stats_error.clear();

    if (gguf_find_key(meta, "triattention.version") < 0) {
        return;
    }

    try {
        const uint32_t version = gguf_get_val_u32(meta, find_key(meta, "version", GGUF_TYPE_UINT32));
        if (version != LLAMA_TRIATTN_VERSION) {
            throw std::runtime_error(format("version %u of the statistics is not known here (this build reads version %u)", version, LLAMA_TRIATTN_VERSION));
        }

        auto res = std::make_unique<llama_triattn_statistics>();

        res->fingerprint = gguf_get_val_str(meta, find_key(meta, "model", GGUF_TYPE_STRING));

        const int64_t   kid    = find_key(meta, "layers", GGUF_TYPE_ARRAY, GGUF_TYPE_INT32);
        const int32_t * layers = (const int32_t *) gguf_get_arr_data(meta, kid);

        for (size_t i = 0; i < gguf_get_arr_n(meta, kid); ++i) {
            const std::string il = std::to_string(layers[i]);
            auto & centres = res->layers[layers[i]];
            centres.q_mean = get_floats(meta, "q_mean." + il);
            centres.q_abs  = get_floats(meta, "q_abs."  + il);
        }

        stats = std::move(res);
    } catch (const std::exception & err) {
        stats_error = format("%s: %s; convert the model anew (triattn-local convert)", where, err.what());
        LLAMA_LOG_WARN("%s: %s\n", __func__, stats_error.c_str());
    }
}

void llama_triattn_model::load_sidecar(const char * path) {
    gguf_context * meta = gguf_init_from_file(path, { /*.no_alloc =*/ true, /*.ctx =*/ nullptr });
    if (!meta) {
        throw std::runtime_error(format("%s: cannot be read as a GGUF file", path));
    }
    read_stats(meta, path);
    gguf_free(meta);

    if (!stats) {
        throw std::runtime_error(!stats_error.empty() ? stats_error : format("%s: holds no TriAttention statistics", path));
    }
    stats_path = path;
}

llama_triattn_status llama_triattn_model::check_stats(const llama_hparams & hparams, std::string & why) const {
    if (!stats_error.empty()) {
        why = stats_error;
        return LLAMA_TRIATTN_BAD_STATS;
    }
    if (!stats) {
        why = "the model carries no TriAttention statistics; make them with: triattn-local convert MODEL.gguf";
        return LLAMA_TRIATTN_NO_STATS;
    }

    const std::string where = stats_path.empty() ? "the model's statistics" : stats_path;

    if (!fingerprint.empty() && stats->fingerprint != fingerprint) {
        why = format("%s: belong to another model (%s, this one is %s); convert this model (triattn-local convert)",
                where.c_str(), stats->fingerprint.c_str(), fingerprint.c_str());
        return LLAMA_TRIATTN_BAD_STATS;
    }

    for (const auto & [il, c] : stats->layers) {
        if (il < 0 || il >= (int32_t) hparams.n_layer_all) {
            why = format("%s: layer %d, the model has %u", where.c_str(), il, hparams.n_layer_all);
            return LLAMA_TRIATTN_BAD_STATS;
        }
        const size_t n_mean = (size_t) hparams.n_head(il)*hparams.n_embd_head_k(il);
        if (c.q_mean.size() != n_mean) {
            why = format("%s: layer %d has q_mean[%zu], the model needs %zu", where.c_str(), il, c.q_mean.size(), n_mean);
            return LLAMA_TRIATTN_BAD_STATS;
        }
        for (float a : c.q_abs) {
            if (a < 0.0f) {
                why = format("%s: layer %d has a negative mean magnitude in q_abs", where.c_str(), il);
                return LLAMA_TRIATTN_BAD_STATS;
            }
        }
    }

    return LLAMA_TRIATTN_OK;
}

void llama_triattn_model::load(llama_model & model, llama_model_loader & ml) {
    llama_triattn_set_error("");
    if (model.hparams.vocab_only) {
        return;
    }
    try {
        model.triattn = read(model, ml);
    } catch (const std::exception & err) {
        llama_triattn_set_error(std::string("TriAttention: ") + err.what());
        throw;
    }
}

std::shared_ptr<llama_triattn_model> llama_triattn_model::read(const llama_model & model, llama_model_loader & ml) {
    auto res = std::make_shared<llama_triattn_model>();

    for (const auto & [key, ovrd] : ml.kv_overrides) {
        if (key.rfind(LLAMA_TRIATTN_PREFIX, 0) != 0) {
            continue;
        }
        std::string value;
        switch (ovrd.tag) {
            case LLAMA_KV_OVERRIDE_TYPE_INT:   value = std::to_string(ovrd.val_i64);        break;
            case LLAMA_KV_OVERRIDE_TYPE_FLOAT: value = std::to_string(ovrd.val_f64);        break;
            case LLAMA_KV_OVERRIDE_TYPE_BOOL:  value = ovrd.val_bool ? "true" : "false";    break;
            case LLAMA_KV_OVERRIDE_TYPE_STR:   value = ovrd.val_str;                        break;
        }
        res->settings[key.substr(strlen(LLAMA_TRIATTN_PREFIX))] = value;
    }
    for (const auto & [key, value] : res->settings) {
        const bool known = key == "stats" || std::any_of(std::begin(g_settings), std::end(g_settings),
                [&k = key](const triattn_setting & s) { return k == s.key; });
        if (!known) {
            throw std::runtime_error("KV override " + std::string(LLAMA_TRIATTN_PREFIX) + key + " is not a setting of TriAttention");
        }
    }

    res->fingerprint = make_fingerprint(model, ml);

    const auto   it   = res->settings.find("stats");
    const char * path = it != res->settings.end() ? it->second.c_str() : getenv("TRIATTN_STATS");

    if (path && *path) {
        res->load_sidecar(path);
    } else {
        res->read_stats(ml.metadata, "the model file");
    }

    return res;
}
