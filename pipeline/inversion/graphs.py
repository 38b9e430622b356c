"""CUDA graphs of one residual step: a few hundred kernels are launched as one.

A graph has a fixed batch size. Those of powers of two are captured when first needed, and a smaller
batch is padded to the next one: faces do not depend on each other, and results of the padding are
dropped. All graphs share their memory, since one runs at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
WARM_UPS = 3  # before a capture: kernels are compiled and chosen, workspaces allocated

logger = logging.getLogger(__name__)


class _Graph(NamedTuple):
    graph: Any
    inputs: list[Tensor]  # images, codes, reconstructions
    outputs: tuple[Tensor, Tensor]  # codes, images


class GraphedStep:
    """Function `step` as CUDA graphs; the same arguments and results.

    Where a capture fails it warns once and calls `step` itself.
    """

    def __init__(self, step: Step, largest: int) -> None:
        self.step, self.largest = step, largest
        self._graphs: dict[tuple[int, bool], _Graph] = {}
        self._pool: Any = None
        self._failed = False

    def __call__(
        self, images: Tensor, codes: Tensor, reconstruction: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return codes and images after the step, for any number of faces."""
        tensors = [images, codes] + ([] if reconstruction is None else [reconstruction])
        split = [tensor.split(self.largest) for tensor in tensors]
        parts = [self._run(part) for part in zip(*split, strict=True)]
        refined, rendered = (torch.cat(results) for results in zip(*parts, strict=True))
        return refined, rendered

    def _run(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        if self._failed:
            return self._plain(tensors)
        n = len(tensors[0])
        size = padded_size(n, self.largest)
        key = size, len(tensors) == 3
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(tensors, size)
            except RuntimeError as error:
                self._failed = True
                logger.warning("CUDA graphs are off, and small batches slower: %s", error)
                return self._plain(tensors)
        graph, inputs, outputs = self._graphs[key]
        for static, given in zip(inputs, tensors, strict=True):
            static[:n].copy_(given)
        graph.replay()
        return outputs[0][:n].clone(), outputs[1][:n].clone()

    def _plain(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return self.step(tensors[0], tensors[1], tensors[2] if len(tensors) == 3 else None)

    def _capture(self, tensors: tuple[Tensor, ...], size: int) -> _Graph:
        """Capture the step for `size` faces; the padding is zeros until a batch fills it."""
        # A tensor of inference mode could not be written to by a caller outside of it.
        with torch.inference_mode(mode=False), torch.no_grad():
            inputs = [t.new_zeros(size, *t.shape[1:]) for t in tensors]
            static = tuple(inputs)
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._plain(static)
            torch.cuda.current_stream().wait_stream(stream)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                outputs = self._plain(static)
        return _Graph(graph, inputs, outputs)


def padded_size(n: int, largest: int) -> int:
    """Return the batch size of the graph for `n` faces: the next power of two, or `largest`."""
    return min(1 << (n - 1).bit_length(), largest)
