"""The ReStyle loop: images to W+ codes."""

from pipeline.inversion.allocator import keep_freed_memory
from pipeline.inversion.rendering import average_image
from pipeline.inversion.restyle import Inversion, bootstrap, invert

__all__ = ["Inversion", "average_image", "bootstrap", "invert", "keep_freed_memory"]
