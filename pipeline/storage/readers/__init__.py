"""Readers of shards, one module per container format; `dispatch` chooses the reader."""
