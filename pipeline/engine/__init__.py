"""Engine: plan, Ray Data pipeline, commits, progress. No other package imports Ray.

This module imports nothing: workers that read, align or write import their stage from this package,
and PyTorch would cost each of them seconds and hundreds of megabytes.
"""
