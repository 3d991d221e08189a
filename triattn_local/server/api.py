"""Questions to a running server over HTTP: is it well, what does it serve, does a tool call come through.

Uses nothing but the standard library, so that ``doctor`` can ask with what every installation has.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ..errors import TriattnError, UsageError
from .command import is_loopback

DEFAULT_URL = "http://127.0.0.1:8080/v1"


@dataclass(frozen=True)
class Served:
    """The model behind a server, as it describes itself."""

    name: str
    n_ctx: int
    """logical context of a slot, in tokens"""
    n_slots: int
    thinks: bool
    """whether its template has a place for reasoning"""
    calls_tools: bool
    """whether its template knows tools; the others' models are told of them only where a call is required"""


@dataclass(frozen=True)
class Api:
    """A server, by the base URL that ``serve`` prints."""

    base_url: str = DEFAULT_URL
    api_key: str | None = None
    is_near: bool = False
    """it is on this machine, whatever its address; a proxy is not asked for it, nor for a loopback address"""

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise UsageError(f"{self.base_url!r} is no URL", where="URL", fix=f"give such as {DEFAULT_URL}")

    @property
    def root(self) -> str:
        """llama-server's own routes are above /v1."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    def is_healthy(self) -> bool:
        """Whether it answers requests: not while it loads."""
        try:
            with self._opener().open(self._request("/health"), timeout=5):
                return True
        except (OSError, http.client.HTTPException):
            return False

    def get(self, path: str) -> Any:
        """The JSON at a path of the root.

        Raises
        ------
        TriattnError
            It does not answer, or refuses.
        """
        with self._open(self._request(path), timeout_s=30) as answer:
            return json.load(answer)

    def model(self) -> Served:
        """What is served."""
        props = self.get("/props")
        models = self.get("/v1/models")
        try:
            capabilities = props.get("chat_template_caps", {})
            return Served(
                name=str(models["data"][0]["id"]),
                n_ctx=int(props["default_generation_settings"]["n_ctx"]),
                n_slots=int(props["total_slots"]),
                thinks="<think" in props.get("chat_template", "") or "reasoning" in props.get("chat_template", ""),
                calls_tools=bool(capabilities.get("supports_tools") or capabilities.get("supports_tool_calls")),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TriattnError(f"is no llama-server: {error!r} in /props or /v1/models", where=self.root) from None

    def stream_chat(self, body: Mapping[str, object], *, timeout_s: float = 300) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed chat completion, up to [DONE].

        Raises
        ------
        TriattnError
            It does not answer, refuses, sends an error in between, or ends without [DONE].
        """
        data = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        with self._open(self._request("/v1/chat/completions", data), timeout_s) as answer:
            for raw in answer:
                name, _, value = raw.decode("utf-8", "replace").partition(":")
                if name == "error":
                    raise TriattnError(f"sent an error: {value.strip()}", where=self.root)
                if name != "data":
                    continue
                if value.strip() == "[DONE]":
                    return
                chunk = json.loads(value)
                if "error" in chunk:
                    raise TriattnError(f"sent an error: {chunk['error'].get('message')}", where=self.root)
                yield chunk
        raise TriattnError("ended a stream without [DONE]", where=self.root)

    def _request(self, path: str, data: bytes | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        return urllib.request.Request(self.root + path, data, headers)

    def _opener(self) -> urllib.request.OpenerDirector:
        if self.is_near or is_loopback(urlsplit(self.base_url).hostname or ""):
            return urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return urllib.request.build_opener()

    def _open(self, request: urllib.request.Request, timeout_s: float) -> Any:
        try:
            return self._opener().open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            if error.code == 401:
                raise UsageError("the server wants another API key", where=self.root, fix="give --api-key") from None
            if error.code == 503:
                raise TriattnError("is still loading its model", where=self.root) from None
            raise TriattnError(f"answers {error.code}: {_message(error.read())}", where=self.root) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TriattnError(
                f"no server answers there ({reason})", where=self.root, fix="start one with: triattn-local serve MODEL"
            ) from None


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")[:200]
