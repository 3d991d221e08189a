"""The part of openclaw.json that makes a running server a provider of OpenClaw."""

from __future__ import annotations

import shutil
from typing import Any
from urllib.parse import urlsplit

from ..errors import UsageError
from .api import Api, Served

SMALLEST_CTX = 4000
"""tokens: OpenClaw 2026.9.6 refuses a model whose context is shorter"""

WARNED_CTX = 8000
"""tokens: it warns of a context that is shorter"""

INSTRUCTIONS = 18000
"""tokens of instructions and tools that it sends with every request"""

LONGEST_ANSWER = 8192
"""tokens that an answer may have, or a quarter of the context if that is less"""

TIMEOUT_S = 1800
"""a prompt of 40,000 tokens may take minutes the first time"""

NO_KEY = "none"
"""OpenClaw wants a key; a server without one takes any"""


_LONGER = "serve with --ctx 32768 or more, if the model was trained for that"


def remark(served: Served) -> str | None:
    """What there is to say about a context that OpenClaw takes and that is short all the same."""
    if served.n_ctx >= INSTRUCTIONS + LONGEST_ANSWER // 2:
        return None
    warns = f", and it warns below {WARNED_CTX:,}" if served.n_ctx < WARNED_CTX else ""
    return (
        f"OpenClaw's instructions and tools take about {INSTRUCTIONS:,} tokens, of a context of "
        f"{served.n_ctx:,}{warns}; {_LONGER}"
    )


def provider_block(
    api: Api, provider: str, *, launch: str | None = None, served: Served | None = None
) -> dict[str, Any]:
    """What to merge into openclaw.json.

    Parameters
    ----------
    provider : str
        What OpenClaw is to call the server.
    launch : str, optional
        Model with which OpenClaw may start the server itself when it needs it.
    served : Served, optional
        What the server says of itself, if that is known already.

    Raises
    ------
    UsageError
        The context is too short for OpenClaw.
    TriattnError
        The server does not answer.
    """
    if not provider or "/" in provider:
        raise UsageError("the name of a provider has no slash", where="--provider")
    served = served or api.model()
    if served.n_ctx < SMALLEST_CTX:
        raise UsageError(
            f"the server has a context of {served.n_ctx:,} tokens, OpenClaw refuses fewer than {SMALLEST_CTX:,}",
            where=api.root,
            fix=_LONGER,
        )
    block: dict[str, Any] = {
        "baseUrl": f"{api.root}/v1",
        "apiKey": api.api_key or NO_KEY,
        "api": "openai-completions",
        "timeoutSeconds": TIMEOUT_S,
        "models": [_model(served)],
    }
    if launch is not None:
        block["localService"] = _service(api, launch)
    return {
        "models": {"mode": "merge", "providers": {provider: block}},
        "agents": {"defaults": {"model": {"primary": f"{provider}/{served.name}"}}},
    }


def _model(served: Served) -> dict[str, Any]:
    return {
        "id": served.name,
        "name": served.name,
        "reasoning": served.thinks,
        "input": ["text"],
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
        "contextWindow": served.n_ctx,
        "maxTokens": min(LONGEST_ANSWER, served.n_ctx // 4),
        "compat": {
            "supportsStore": False,
            # chat templates know system, user, assistant and tool
            "supportsDeveloperRole": False,
            "supportsReasoningEffort": False,
            "supportsStrictMode": False,
            "supportsUsageInStreaming": True,
            "maxTokensField": "max_tokens",
        },
    }


def _service(api: Api, model: str) -> dict[str, Any]:
    where = urlsplit(api.root)
    arguments = ["serve", model, "--host", where.hostname or "127.0.0.1", "--port", str(where.port or 80)]
    service: dict[str, Any] = {
        "command": shutil.which("triattn-local") or "triattn-local",
        "args": arguments,
        "healthUrl": f"{api.root}/health",
        "readyTimeoutMs": 600_000,
        "idleStopMs": 1_800_000,
    }
    if api.api_key:
        service["env"] = {"TRIATTN_API_KEY": api.api_key}
    return service
