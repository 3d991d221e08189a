"""LlamaIndex's llama-cpp integration, with eviction through KV overrides.

pip install llama-index-llms-llama-cpp
python llamaindex_llama.py MODEL.triattn.gguf "Tell me about the sea."
"""

from __future__ import annotations

import sys

from llama_index.core.llms import ChatMessage
from llama_index.llms.llama_cpp import LlamaCPP

llm = LlamaCPP(
    model_path=sys.argv[1],
    context_window=8192,
    max_new_tokens=100,
    model_kwargs={"kv_overrides": {"triattention.budget": 1024}},
    verbose=False,
)
for part in llm.stream_chat([ChatMessage(role="user", content=sys.argv[2])]):
    print(part.delta, end="", flush=True)
print()
