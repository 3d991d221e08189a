"""The library, driven: devices, models, contexts, sampling, states, and ``Runtime`` over all of them."""
