"""Build the embedded demo models: plans, generator, cartoons, LPIPS weights."""
