"""Ray reads its environment when it is first imported: the engine's comes before these tests."""

import pipeline.engine.cluster  # noqa: F401 - sets the environment
