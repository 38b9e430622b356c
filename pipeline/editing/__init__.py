"""Edit and render codes of a table: directions, fits, interpolation, mixing, animations.

Imports nothing, so that jobs can check a request before they import PyTorch.
"""
