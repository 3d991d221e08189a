"""llama-cpp-python as it is, with eviction through KV overrides.

python llama_cpp_llama.py MODEL.triattn.gguf "Tell me about the sea."
"""

from __future__ import annotations

import sys

from llama_cpp import Llama

llm = Llama(
    model_path=sys.argv[1],
    n_ctx=32768,
    flash_attn=True,
    kv_overrides={"triattention.budget": 1024},
    verbose=False,
)
reply = llm.create_chat_completion([{"role": "user", "content": sys.argv[2]}], max_tokens=100)
print(reply["choices"][0]["message"]["content"])
