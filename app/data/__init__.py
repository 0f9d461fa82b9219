"""Text -> documents (sources) -> tokens (tokenizers) -> memory-mapped
cache -> rows in a stateless order -> batches.
"""
