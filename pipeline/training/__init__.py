"""Train an encoder for a frozen generator: data, losses, loop, checkpoints."""
