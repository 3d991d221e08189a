"""OpenAI's own client, streaming from `triattn-local serve MODEL`.

pip install openai
python openai_client.py http://127.0.0.1:8080/v1 "Tell me about the sea."
"""

from __future__ import annotations

import sys

from openai import OpenAI

client = OpenAI(base_url=sys.argv[1], api_key="none")
model = client.models.list().data[0].id
stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": sys.argv[2]}],
    max_tokens=100,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.delta.content or "", end="", flush=True)
    if chunk.usage and chunk.usage.prompt_tokens_details:
        print(
            f"\n{chunk.usage.prompt_tokens_details.cached_tokens} of {chunk.usage.prompt_tokens} tokens not read again"
        )
