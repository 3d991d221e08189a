#include "llama-triattn-rope.h"

#include "llama-triattn-model.h"

#include "llama-cparams.h"
#include "llama-hparams.h"
#include "llama-impl.h"
#include "llama-model.h"

#include <cmath>

// These architectures decide in their graph which layers turn; all others have it in hparams.
static bool turns(const llama_model & model, int32_t il) {
    const auto & hparams = model.hparams;

    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE || hparams.n_rot(il) == 0 || !hparams.has_rope(il)) {
        return false;
    }

    const uint32_t step = hparams.n_no_rope_layer_step;

    switch (model.arch) {
        case LLM_ARCH_SMOLLM3:
            return (il + 1) % step != 0;
        case LLM_ARCH_LLAMA4:
        case LLM_ARCH_AFMOE:
            return step > 0 && (il + 1) % step != 0;
        case LLM_ARCH_SMALLTHINKER:
            return step == hparams.n_layer() || il % step != 0;
        case LLM_ARCH_COHERE2:
        case LLM_ARCH_EXAONE_MOE:
        case LLM_ARCH_MUSE_GLIMMER:
        case LLM_ARCH_MAPLE:
            return hparams.is_swa(il);
        case LLM_ARCH_COHERE2MOE:
            return hparams.is_swa(il) || (uint32_t) il < hparams.n_layer_dense_lead;
        case LLM_ARCH_EXAONE4:
            return hparams.is_swa(il) || hparams.swa_type == LLAMA_SWA_TYPE_NONE;
        default:
            return true;
    }
}

llama_triattn_rotation llama_triattn_rotation_of(const llama_model & model, int32_t il) {
    const auto & hparams = model.hparams;

    llama_triattn_rotation res;
    if (!turns(model, il)) {
        res.n_band = hparams.n_embd_head_k(il);
        return res;
    }
    // M-RoPE gives text tokens the same position in every section, which makes it plain NEOX (as in llama.cpp's K-shift)
    res.mode   = hparams.rope_type == LLAMA_ROPE_TYPE_NORM ? LLAMA_ROPE_TYPE_NORM : LLAMA_ROPE_TYPE_NEOX;
    res.n_rot  = hparams.n_rot(il);
    res.n_band = res.n_rot/2;

    switch (model.arch) {
        case LLM_ARCH_MINICPM3:
        case LLM_ARCH_PLM:
        case LLM_ARCH_DEEPSEEK2:
        case LLM_ARCH_DEEPSEEK2OCR:
            res.offset = hparams.n_embd_head_k(il) - res.n_rot;
            break;
        default:
            break;
    }
    return res;
}

float llama_triattn_rope_factor(const llama_model & model, const llama_cparams * cparams, int32_t il) {
    if (llama_triattn_rotation_of(model, il).mode < 0) {
        return 1.0f;
    }
    if (!cparams) {
        const auto & hparams = model.hparams;
        // a context takes YaRN's correction, which ggml makes anew for each position, out of its factor
        const bool is_yarn = hparams.rope_scaling_type_train == LLAMA_ROPE_SCALING_TYPE_YARN;
        return hparams.rope_attn_factor*(is_yarn ? 1.0f + 0.1f*logf(1.0f/hparams.rope_freq_scale_train) : 1.0f);
    }
    const float freq_scale = model.get_rope_freq_scale(*cparams, il);
    return cparams->yarn_attn_factor*(cparams->yarn_ext_factor != 0.0f ? 1.0f + 0.1f*logf(1.0f/freq_scale) : 1.0f);
}

llama_triattn_status llama_triattn_check_model_stats(const llama_model & model, std::string & why) {
    const llama_triattn_status status = model.triattn->check_stats(model.hparams, why);
    if (status != LLAMA_TRIATTN_OK) {
        return status;
    }
    for (uint32_t il = 0; il < model.hparams.n_layer_all; ++il) {
        if (!model.triattn->has_centres(il)) {
            continue;
        }
        const auto   rotation = llama_triattn_rotation_of(model, il);
        const size_t n_abs    = (size_t) model.hparams.n_head(il)*rotation.n_band;
        if (model.triattn->centres(il).q_abs.size() != n_abs) {
            why = format("the statistics of layer %d have q_abs[%zu], the model needs %zu: its keys are %s; convert this model (triattn-local convert)",
                    il, model.triattn->centres(il).q_abs.size(), n_abs,
                    rotation.mode < 0 ? "not turned by RoPE" : format("turned in %u dimensions", rotation.n_rot).c_str());
            return LLAMA_TRIATTN_BAD_STATS;
        }
    }
    return LLAMA_TRIATTN_OK;
}

std::string llama_triattn_why_kept(const llama_model & model, int32_t il) {
    const auto & hparams = model.hparams;

    if (il < 0 || il >= (int32_t) hparams.n_layer_all) {
        return "the model has no such layer";
    }
    if (il >= (int32_t) hparams.n_layer()) {
        return "it predicts further tokens (MTP), and its context does not evict";
    }
    if (hparams.n_head_kv(il) == 0) {
        return "it has no attention";
    }
    // some hybrids have both halves in each layer, and their attention has a cache all the same
    if (llama_model_is_hybrid(&model) && hparams.is_recr(il) && model.arch != LLM_ARCH_FALCON_H1) {
        return "it is recurrent";
    }
    if (hparams.is_swa(il)) {
        return "it attends to a sliding window, whose cache is small already";
    }
    return llama_triattn_why_unsupported(model);
}

std::string llama_triattn_why_unsupported(const llama_model & model) {
    const auto & hparams = model.hparams;

    if (llama_model_has_encoder(&model)) {
        return "an encoder model cannot evict";
    }
    if (llama_model_is_recurrent(&model)) {
        return "a recurrent model has no keys";
    }
    if (hparams.use_alibi || hparams.f_max_alibi_bias > 0.0f) {
        return "ALiBi needs the position of each cell, which heads of their own sets do not have";
    }
    if (hparams.is_mla()) {
        return "multi-head latent attention caches a latent vector instead of keys";
    }
    if (hparams.router_layer >= 0) {
        return "a layer of it caches a routing signal instead of keys";
    }
    if (hparams.rope_type == LLAMA_ROPE_TYPE_VISION) {
        return "it is no model of text";
    }
    if (hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        switch (model.arch) {
            case LLM_ARCH_JAMBA:
            case LLM_ARCH_NEMOTRON_H:
            case LLM_ARCH_NEMOTRON_H_MOE:
                break; // attention without any position
            default:
                return "where its keys have their positions from is not known here";
        }
    }
    for (uint32_t il = 0; il < hparams.n_layer(); ++il) {
        if (llama_triattn_rotation_of(model, il).offset != 0) {
            return "its keys are turned in their last dimensions, which scoring does not know";
        }
    }
    return "";
}
