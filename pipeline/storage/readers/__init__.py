"""Readers of shards: one module per container format."""
