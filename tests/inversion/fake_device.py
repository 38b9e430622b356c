"""Counts what an inversion would ask of a GPU, on tensors without data.

    python -m tests.inversion.fake_device [--batch 32] [--steps 5]

Tensors of a made-up device have shapes but no memory, so that the real code runs with the real
sizes in seconds. A tensor of another device where none may be is an error. Each operation counts as
one kernel that reads its inputs and writes its outputs; the fused pass after a style layer, and the
fused last layer, count as the one kernel that they are. Peak memory is that of live tensors,
weights included.
"""

from __future__ import annotations

import argparse
import json
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from torch.utils.flop_counter import flop_registry

from pipeline.inversion import FastModel, average_image, invert
from pipeline.metrics.evaluator import MetricEvaluator
from pipeline.metrics.lpips import Lpips
from pipeline.models import Architecture, RestyleModel, epilogue, stylegan2_fast
from pipeline.models.epilogue import Factors, Finished, Passes

NAME = "counted"
FACES_1024 = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
# Operations that launch nothing: views of the same memory, and allocations.
_FREE = {
    *("view", "_unsafe_view", "slice", "select", "expand", "permute", "transpose", "t", "alias"),
    *("unsqueeze", "squeeze", "split", "split_with_sizes", "unbind", "detach", "as_strided"),
    *("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh"),
    *("_reshape_alias", "narrow", "unfold", "movedim", "resolve_conj"),
}
_WAITS = {"_local_scalar_dense", "nonzero", "item"}


@dataclass
class Counts:
    """What was asked of the device."""

    launches: int = 0
    bytes: int = 0
    flop: int = 0  # of convolutions and products
    waits: int = 0  # the host stops until the device is done, or copies from or to it
    peak_bytes: int = 0
    live: int = 0
    storages: set[int] = field(default_factory=set)

    def to_dict(self) -> dict[str, float]:
        """Return launches, gigabytes, teraflop, waits and peak GiB."""
        return {
            "launches": self.launches,
            "gigabytes": round(self.bytes / 1e9, 2),
            "teraflop": round(self.flop / 1e12, 3),
            "waits": self.waits,
            "peak_gib": round(self.peak_bytes / 2**30, 2),
        }


class Counter(TorchDispatchMode):
    """Counts the operations on tensors of the made-up device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.paused = Counts(), False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in outputs:
            self._hold(tensor)
        name = func.overloadpacket.__name__
        devices = {tensor.device.type for tensor in (*inputs, *outputs)}
        if NAME not in devices or self.paused:
            return result
        if name in _WAITS or (name in ("_to_copy", "copy_") and len(devices) > 1):
            self.counts.waits += 1
        if name not in _FREE and func.namespace != "prim":
            self.add((*inputs, *outputs))
        if func.overloadpacket in flop_registry:
            formula = flop_registry[func.overloadpacket]
            self.counts.flop += formula(*args, **(kwargs or {}), out_val=result)
        if name == "conv2d":  # undivided in inference mode
            self.counts.flop += 2 * result.numel() * args[1][0].numel()
        return result

    def add(self, tensors: tuple[Tensor, ...]) -> None:
        """Count one kernel that touches each of `tensors` once."""
        self.counts.launches += 1
        self.counts.bytes += sum(size_of(x) for x in tensors if x.device.type == NAME)

    def _hold(self, tensor: Tensor) -> None:
        storage, counts = tensor.untyped_storage(), self.counts
        key = storage._cdata
        if tensor.device.type != NAME or key in counts.storages:
            return
        size = storage.nbytes()
        counts.storages.add(key)
        counts.live += size
        counts.peak_bytes = max(counts.peak_bytes, counts.live)

        def free() -> None:
            counts.storages.discard(key)
            counts.live -= size

        weakref.finalize(storage, free)


def size_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values, of expanded axes once."""
    count = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= length if stride else 1
    return count * tensor.element_size()


def fused(counter: Counter) -> Passes:
    """Return the pass, and the last layer, as the kernels that `counter` counts."""

    def finish(y: Tensor, factors: Factors, *, blurred: bool) -> Finished:
        n, c, height, width = y.shape
        height, width = height - blurred, width - blurred
        x = image = None
        if factors.style is not None:
            made = {"dtype": y.dtype, "device": y.device, "memory_format": torch.channels_last}
            x = torch.empty((n, c, height, width), **made)
        if factors.rgb is not None:
            pooled = height // factors.pool, width // factors.pool
            image = factors.factor.new_empty(n, 3, *pooled)
        given = [each for each in factors if isinstance(each, Tensor)]
        counter.add((y, *given, *(each for each in (x, image) if each is not None)))
        return x, image

    def last(x: Tensor, weight: Tensor, factors: Factors) -> Tensor:
        n, _, height, width = x.shape
        assert factors.rgb is not None, "the last layer is mixed to RGB"
        image = factors.factor.new_empty(n, 3, height // factors.pool, width // factors.pool)
        given = [each for each in factors if isinstance(each, Tensor)]
        counter.add((x, weight, *given, image))
        counter.counts.flop += 2 * n * height * width * weight.numel()
        return image

    return Passes(finish, last)


@contextmanager
def counted_device() -> Iterator[Callable[[], Counter]]:
    """Make the device known, and tensors fake; yields a function that returns a new counter."""
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend(NAME)
    original = stylegan2_fast.passes_of
    with FakeTensorMode():

        def start() -> Counter:
            counter = Counter()
            stylegan2_fast.passes_of = lambda _: fused(counter)
            return counter

        try:
            yield start
        finally:
            stylegan2_fast.passes_of = original
            epilogue._blur_kernel.cache_clear()


def moved(module: nn.Module, dtype: torch.dtype | None = None) -> Any:
    """Put the weights of `module` on the made-up device, and return it."""
    for each in module.modules():
        for tensors in (each._parameters, each._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    made = torch.empty(
                        tensor.shape, dtype=dtype or tensor.dtype, device=f"{NAME}:0"
                    )
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = (
                        nn.Parameter(made, requires_grad=False) if is_parameter else made
                    )
    return module


def count(batch: int, steps: int) -> dict[str, dict[str, float]]:
    """Return what a batch of faces asks for: inversion and metrics, reference and twin.

    Faces of 1024 px, with an IR-SE50 encoder.
    """
    results, meter = {}, MetricEvaluator(identity="none")
    arguments = {"input_channels": 6, "n_styles": 18}
    with torch.device("meta"):
        reference = RestyleModel(Architecture("BackboneEncoder", arguments, FACES_1024))
        models = {"reference": reference, "twin": FastModel(reference)}
    with counted_device() as start, torch.no_grad():
        for name, shapes in models.items():
            model = moved(shapes)
            meter.lpips = moved(Lpips())
            moved(meter.lpips.features, torch.bfloat16 if name == "twin" else None)
            meter.device = torch.device(f"{NAME}:0")
            images = torch.empty(batch, 3, 256, 256, device=f"{NAME}:0")
            start()  # counts the average image, which is made once for all batches
            average_image(model)
            counter = start()
            with counter:
                counter.counts.live = sum(map(size_of, model.state_dict().values()))
                made = invert(model, images, steps=steps, full_size=name == "reference")
                results[name] = counter.counts.to_dict()
                meter.begin(images, made.step_images, made.w_plus, model.latent_avg, made.start)
            results[f"{name} and metrics"] = counter.counts.to_dict()
    return results


def main() -> None:
    """Print the counts of a batch as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    print(json.dumps(count(args.batch, args.steps), indent=2))


if __name__ == "__main__":
    main()
