"""What is handed on to llama-server: the flags behind ` -- ` and its environment, less what ``serve`` sets itself.

llama-server takes the last flag of a name. One that moves it elsewhere would leave ``serve`` waiting where it is not,
and one that changes its memory would make the plan untrue. Knows llama-server's names, and nothing of processes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError


@dataclass(frozen=True)
class _Ours:
    flags: str
    """names of llama-server's, a space between them"""
    variable: str | None
    """what it looks for in the environment"""
    instead: str


_MODEL = "the model is the one in front: triattn-local serve MODEL"
_PLAN = "the memory was planned, as triattn-local plan shows"
_LOG = "serve reads the log, and -v shows all of it"
_TOLD = "ask it yourself: llama-server --help"

_OURS = (
    _Ours("-m --model", "LLAMA_ARG_MODEL", _MODEL),
    _Ours("-mu --model-url", "LLAMA_ARG_MODEL_URL", _MODEL),
    _Ours("-dr --docker-repo", "LLAMA_ARG_DOCKER_REPO", _MODEL),
    _Ours("-hf -hfr --hf-repo", "LLAMA_ARG_HF_REPO", _MODEL),
    _Ours("-hff --hf-file", "LLAMA_ARG_HF_FILE", _MODEL),
    _Ours("--models-dir", "LLAMA_ARG_MODELS_DIR", _MODEL),
    _Ours("--models-preset", "LLAMA_ARG_MODELS_PRESET", _MODEL),
    _Ours("-a --alias", "LLAMA_ARG_ALIAS", "give --alias"),
    _Ours("--host", "LLAMA_ARG_HOST", "give --host"),
    _Ours("--port", "LLAMA_ARG_PORT", "give --port"),
    _Ours("--api-key", None, "give --api-key, or set TRIATTN_API_KEY"),
    _Ours("--api-prefix", "LLAMA_ARG_API_PREFIX", "clients find it at /v1; a proxy in front can add a path"),
    _Ours("--ssl-key-file", "LLAMA_ARG_SSL_KEY_FILE", "it is HTTP; a proxy in front can encrypt"),
    _Ours("--ssl-cert-file", "LLAMA_ARG_SSL_CERT_FILE", "it is HTTP; a proxy in front can encrypt"),
    _Ours("-c --ctx-size", "LLAMA_ARG_CTX_SIZE", "give --ctx"),
    _Ours("-np --parallel", "LLAMA_ARG_N_PARALLEL", "give --slots"),
    _Ours("-kvu --kv-unified -no-kvu --no-kv-unified", "LLAMA_ARG_KV_UNIFIED", "each slot has a budget of its own"),
    _Ours("--kv-unified-per-slot", "LLAMA_ARG_KV_UNIFIED_PER_SLOT", "give --ctx, which is that of each slot"),
    _Ours("-b --batch-size", "LLAMA_ARG_BATCH", "give --batch"),
    _Ours("-ub --ubatch-size", "LLAMA_ARG_UBATCH", "give --batch"),
    _Ours("-ctk --cache-type-k", "LLAMA_ARG_CACHE_TYPE_K", "give --cache-type-k"),
    _Ours("-ctv --cache-type-v", "LLAMA_ARG_CACHE_TYPE_V", "give --cache-type-v"),
    _Ours("-fa --flash-attn", "LLAMA_ARG_FLASH_ATTN", "give --flash-attn or --no-flash-attn"),
    _Ours("-ngl --gpu-layers --n-gpu-layers", "LLAMA_ARG_N_GPU_LAYERS", "give --gpu-layers"),
    _Ours("-cram --cache-ram", "LLAMA_ARG_CACHE_RAM", "give --cache-ram"),
    _Ours("-t --threads", "LLAMA_ARG_THREADS", "give --threads"),
    _Ours("--sleep-idle-seconds", None, "give --idle-unload"),
    _Ours("-fit --fit", "LLAMA_ARG_FIT", _PLAN),
    _Ours("--log-jsonl --no-log-jsonl", "LLAMA_ARG_LOG_JSONL", _LOG),
    _Ours("--log-disable", None, _LOG),
    _Ours("-h --help --usage --version -cl --cache-list --list-devices --completion-bash", None, _TOLD),
)

_INSTEAD = {flag: ours.instead for ours in _OURS for flag in ours.flags.split()}

_PRESET = re.compile(r"--(embd|fim|gpt-oss|vision)-.*-(default|spec)")
"""flags of llama-server that choose a model, and a port with it"""

_OVERRIDE = "--override-kv"


def flags_of(words: Sequence[str]) -> list[str]:
    """The flags among these words as llama-server reads them: it takes ``--api_prefix`` for ``--api-prefix``."""
    return [word.replace("_", "-") if word.startswith("--") else word for word in words if word.startswith("-")]


def check_flags(words: Sequence[str]) -> None:
    """Refuse flags that set what ``serve`` sets.

    Raises
    ------
    UsageError
        Names the flag, and what to give in its place.
    """
    for word, flag in zip((word for word in words if word.startswith("-")), flags_of(words), strict=True):
        flag = flag.partition("=")[0]
        instead = _MODEL if _PRESET.fullmatch(flag) else _INSTEAD.get(flag)
        if instead is not None:
            raise UsageError(f"{word!r} sets what serve sets itself", where="behind --", fix=instead)
    for override in overrides_in(words)[0]:
        if override.strip().startswith("triattention."):
            raise UsageError(
                f"{override!r} sets what serve sets itself",
                where="behind --",
                fix="give --budget, --window, --mode ...",
            )


def overrides_in(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The KV overrides among the words, and the words without them: llama-server wants them all in one flag."""
    overrides: list[str] = []
    rest: list[str] = []
    words = list(words)
    while words:
        word = words.pop(0)
        if flags_of([word]) == [_OVERRIDE] and words:
            overrides += words.pop(0).split(",")
        else:
            rest.append(word)
    return overrides, rest


def unheeded(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that llama-server would heed and that are ours to set -> what to give in their place."""
    found = {}
    for ours in _OURS:
        if ours.variable is not None:
            for name in (ours.variable, ours.variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")):
                if name in environment:
                    found[name] = ours.instead
    return found


NEUTRAL = {
    f"--{name}": ""
    for name in (
        "api-prefix",
        "ssl-key-file",
        "ssl-cert-file",
        "model-url",
        "docker-repo",
        "hf-repo",
        "models-dir",
        "models-preset",
    )
}
"""said on the command line, what llama-server's own config.ini has of these does not count"""
