"""LangChain's llama-cpp integration, with eviction through the environment, which the library reads itself.

pip install langchain-community
TRIATTN_BUDGET=1024 python langchain_llama.py MODEL.triattn.gguf "Tell me about the sea."
"""

from __future__ import annotations

import sys

from langchain_community.chat_models import ChatLlamaCpp

llm = ChatLlamaCpp(model_path=sys.argv[1], n_ctx=8192, max_tokens=100, verbose=False)
for chunk in llm.stream(sys.argv[2]):
    print(chunk.content, end="", flush=True)
print()
