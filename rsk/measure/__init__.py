"""Measuring: clocks, the memory roof, workloads, implementations and peers, records."""
