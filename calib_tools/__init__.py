"""Calibration: the centres of a model's queries, measured on text, into its GGUF.

torch is used in this package and nowhere else; the engine and the runtime need only what ``convert`` writes.
"""
