"""llama-server of the same build, started and watched: ``serve``, and what its clients are told about it.

``command`` says how it is started, ``child`` keeps it alive, ``api`` asks it, ``openclaw`` describes it to an agent.
The HTTP routes are llama-server's own; nothing of ours stands between them and a client.
"""
