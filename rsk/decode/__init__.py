"""Decoding with models: loading, the key-value cache, drafting, the loop, the study of a pair."""

from rsk.decode.custom_generate import generate

__all__ = ["generate"]
