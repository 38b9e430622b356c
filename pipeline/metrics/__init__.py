"""How good an inversion is: pixel distances, LPIPS, identity, editability; per face and step."""

from pipeline.metrics.meter import BestStepBy, Measures, Meter

__all__ = ["BestStepBy", "Measures", "Meter"]
