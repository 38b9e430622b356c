"""Tests of searches in a table."""
