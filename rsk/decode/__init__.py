"""Decoding with models: loading, the key-value cache, drafting, the loop, studies of a pair."""
