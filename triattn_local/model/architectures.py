"""What llama.cpp knows about a model by the name of its architecture alone, and no file says.

Mirrors ``llama_model_rope_type`` and the sliding-window lines of each model's ``load_arch_hparams``, so that a file can
be described without loading it. To be checked again with every upgrade of llama.cpp; for an architecture that is
missing here the loaded library is asked, and `convert` refuses it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeType = Literal["norm", "neox"]


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NORM = _names("""
    arcee arctic baichuan bailingmoe bailingmoe3 chameleon chatglm cohere2 cohere2moe command-r deci deepseek deepseek2
    deepseek2-ocr deepseek32 deepseek4 dots3note eagle3 ernie4_5 ernie4_5-moe glm-dsa glm4 granite granite_swa
    granitehybrid granitemoe graniteswitch hy_v4 internlm2 llada llama llama-embed llama4 maincoder minicpm mistral3
    mistral4 muse-glimmer nanbeige neo-bert olmo plm pockettts smollm3 starcoder xverse
""")
_NEOX = _names("""
    afmoe apertus bailingmoe2 bert bitnet codeshell cogvlm dbrx dflash dots1 dream eurobert exaone exaone-moe exaone4
    falcon falcon-h1 gemma gemma-embedding gemma2 gemma3 gemma3n gemma4 gemma4-assistant glm4moe gpt-oss gptneox grok
    grovemoe hrm_text hunyuan-dense hunyuan-moe hunyuan_vl hy_v3 jais2 jina-bert-v3 laguna lfm2 lfm2moe llada-moe maple
    mellum mimo2 minicpm3 minimax-01 minimax-m2 minimax-m3 modern-bert nemotron nomic-bert nomic-bert-moe olmo2 olmoe
    openelm orion pangu-embedded phi2 phi3 phimoe plamo plamo2 plamo3 qwen qwen2 qwen2moe qwen3 qwen3moe qwen3next rnd1
    seed_oss smallthinker spark2_5 stablelm starcoder2 step35 talkie
""")
# M-RoPE gives a text token the same position in every section, and pairs like NEOX
_MROPE = _names("paddleocr qwen2vl qwen35 qwen35moe qwen3tts qwen3vl qwen3vlmoe qwen4exp")
_NONE = _names("""
    arwkv7 bloom clip glm5-next gpt2 gptj jais jamba jina-bert-v2 kimi-k3 kimi-linear mamba mamba2 mpt nemotron_h
    nemotron_h_moe refact rwkv6 rwkv6qwen2 rwkv7 t5 t5encoder wavtokenizer-dec
""")

ROPE_TYPES: dict[str, RopeType | None] = {
    **dict.fromkeys(_NORM, "norm"),
    **dict.fromkeys(_NEOX | _MROPE, "neox"),
    **dict.fromkeys(_NONE, None),
}
"""architecture -> how RoPE pairs dimensions: neighbours ("norm") or halves ("neox"); None is no RoPE at all"""

NEOX_WITH_SECTIONS = _names("bailingmoe3 glm4")
"""NORM architectures whose files turn into M-RoPE, and so into NEOX pairs, when they name RoPE sections"""

HALF_N_ROT = _names("step35")
"""full-attention layers rotate half of the dimensions that the file says"""

RECURRENT = _names("arwkv7 mamba mamba2 rwkv6 rwkv6qwen2 rwkv7")
"""no attention at all"""

ENCODERS = _names("""
    bert clip eurobert gemma-embedding jina-bert-v2 jina-bert-v3 llama-embed modern-bert neo-bert nomic-bert
    nomic-bert-moe t5 t5encoder wavtokenizer-dec
""")
"""no causal decoding with a KV cache alone"""


@dataclass(frozen=True)
class SwaRule:
    """How llama.cpp finds the sliding-window layers of an architecture."""

    period: int | None
    """one of so many layers has full attention, 0: none; None: the file has to say which"""
    full_first: bool = False
    """the first layer of a period is the full one, else the last"""
    optional: bool = False
    """all layers are full when the file names no window"""


SWA_RULES: dict[str, SwaRule] = {
    "afmoe": SwaRule(4, optional=True),
    "cohere2": SwaRule(4),
    "cohere2moe": SwaRule(4, full_first=True),
    "dots3note": SwaRule(None),
    "exaone-moe": SwaRule(4),
    "gemma2": SwaRule(2),
    "gemma3": SwaRule(6, optional=True),
    "gpt-oss": SwaRule(2),
    "granite_swa": SwaRule(None),
    "laguna": SwaRule(4, full_first=True, optional=True),
    "lfm2": SwaRule(0, optional=True),
    "maple": SwaRule(None),
    "mellum": SwaRule(4, optional=True),
    "mimo2": SwaRule(None),
    "muse-glimmer": SwaRule(4),
    "olmo2": SwaRule(4, optional=True),
    "plamo3": SwaRule(8, optional=True),
    "smallthinker": SwaRule(4, full_first=True, optional=True),
    "spark2_5": SwaRule(None),
    "step35": SwaRule(None),
}
"""all other architectures have full attention in every layer, but for these:"""

LAYERS_UNKNOWN = _names("""
    bailingmoe3 deepseek4 dflash eagle3 exaone4 gemma3n gemma4 gemma4-assistant graniteswitch hrm_text hy_v4 llama4
    pockettts qwen3tts qwen4exp
""")
"""layers that share a cache, or rules that depend on more than the file's keys"""

ATTENTION_INTERVALS = {"qwen35": 4, "qwen35moe": 4, "qwen3next": 4, "minimax-01": 8}
"""hybrids: one of so many layers has attention, the last, where the file does not say; all others are recurrent"""

RopeRule = Literal["windows", "all but every fourth", "as the file says", "none"]
"""which layers RoPE turns: those with a sliding window; all but the fourth of each four; by a switch in the file; none,
where recurrent layers know the order of tokens"""

ROPE_RULES: dict[str, RopeRule] = {
    **dict.fromkeys(("cohere2", "cohere2moe", "exaone-moe", "muse-glimmer", "maple", "smallthinker"), "windows"),
    **dict.fromkeys(("smollm3", "afmoe"), "all but every fourth"),
    **dict.fromkeys(("granite", "granitehybrid", "granitemoe", "granite_swa"), "as the file says"),
    **dict.fromkeys(("jamba", "nemotron_h", "nemotron_h_moe"), "none"),
}
"""all other architectures whose layers are known turn every key, or none"""
