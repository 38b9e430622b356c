"""How good an inversion is: pixel distances, LPIPS, identity, editability; per face and step."""

from pipeline.metrics.meter import Measures, Meter

__all__ = ["Measures", "Meter"]
