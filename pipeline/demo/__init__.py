"""Build the embedded demo models: plans, generator, cartoon look, weights of LPIPS."""
