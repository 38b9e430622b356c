"""Search in a table of latents: nearest faces, duplicates, clusters.

Only `requests` and `row_files` load without PyTorch.
"""
