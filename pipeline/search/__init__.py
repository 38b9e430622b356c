"""Search in a table of latents: nearest faces, duplicates, clusters. Modules import PyTorch."""
