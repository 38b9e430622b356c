"""Import the engine first: it sets the environment that Ray reads at its first import."""

import pipeline.engine.cluster  # noqa: F401 - sets the environment
