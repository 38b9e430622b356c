"""Measures the inverter on one GPU in under 8 minutes; writes JSON after every stage.

    python tests/bench/gpu.py --output gpu.json
    python tests/bench/gpu.py --device cpu --tiny       # that it runs, not how fast

Needs torch, numpy and safetensors alone, Triton for the fused kernel, dlib for the last stage's
identity. Faces 1024 with an IR-SE50 encoder and seeded random weights, five steps. Times are
medians of ten on the GPU's clock, after a warm-up, with inputs that rotate. A NaN, or a difference
above its bound, ends the run with exit code 1.

stages  ceilings     copy rate, bfloat16 product
        correct      float32 against the CPU, the twin against float32, the kernel against PyTorch
        published    the loop of the literature, by PyTorch's default flags and in IEEE float32
        inverters    float32, tf32 and the twin, by batch size
        ratios       the fastest of each over the published loop; the twin's share of the product
        parts        encoder, generator, LPIPS, copies; the longest kernels
        loop         batches with their metrics as the inverter runs them, busy share of the GPU
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.inversion import FastModel, average_image, invert, ready_device  # noqa: E402
from pipeline.metrics import MetricEvaluator  # noqa: E402
from pipeline.models import Architecture, RestyleModel  # noqa: E402
from pipeline.models.epilogue import Factors, convolve_and_finish, passes_of  # noqa: E402
from pipeline.models.pixels import from_levels  # noqa: E402
from pipeline.models.stylegan2 import BLUR_TAPS  # noqa: E402
from pipeline.models.transfer import download, upload  # noqa: E402
from tests.bench.inverter import FACES_1024, operations, published_loop  # noqa: E402

SECONDS = 450  # after which no measurement begins
STEPS = 5
# Largest relative difference of codes, and of images, to float32.
BOUNDS = {"float32 on the CPU": 1e-3, "bfloat16": 3e-2}


class Bench:
    """Settings, clock and results of a run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.began, self.results = args, time.monotonic(), dict[str, Any]()
        self.device = torch.device(args.device)
        self.on_gpu = self.device.type == "cuda"
        self.repeats = 2 if args.tiny else 10
        self.steps = 2 if args.tiny else STEPS
        self.batches = (1, 2) if args.tiny else (1, 8, 32, 48)

    def model(self) -> RestyleModel:
        """Return the seeded model on the device."""
        torch.manual_seed(0)
        if self.args.tiny:
            arguments = {"n_styles": 10, "input_size": 64, "input_channels": 6, "width": 8}
            widths = dict.fromkeys((4, 8, 16, 32, 64), 8)
            shape = Architecture("CompactEncoder", arguments, widths, input_size=(64, 64))
        else:
            arguments = {"input_channels": 6, "n_styles": 18}
            shape = Architecture("BackboneEncoder", arguments, FACES_1024)
        with self.device:
            model = RestyleModel(shape)
        return model.requires_grad_(False).to(self.device)

    def pixels(self, model: RestyleModel, n: int) -> list[np.ndarray[Any, Any]]:
        """Return three batches of smooth random faces, uint8 [n, h, w, 3]."""
        draws = np.random.default_rng(0)
        coarse = draws.integers(0, 256, (3, n, 8, 8, 3), dtype=np.uint8)
        side = model.input_size[0] // 8
        return list(coarse.repeat(side, axis=2).repeat(side, axis=3))

    def images(self, model: RestyleModel, n: int) -> list[Tensor]:
        """Return the batches as images on the device, [n, 3, h, w] in [-1, 1]."""
        batches = [upload(each, self.device) for each in self.pixels(model, n)]
        return [from_levels(each.movedim(-1, -3)).contiguous() for each in batches]

    def milliseconds(self, work: Callable[[int], Any]) -> float:
        """Return the median time of `work(k)`, k = 0, 1, 2, 0, ..., after two warm-ups."""
        for k in range(2):
            check_finite(work(k))
        times = [self._timed(work, k % 3) for k in range(self.repeats)]
        return round(statistics.median(times), 4)

    def _timed(self, work: Callable[[int], Any], k: int) -> float:
        if not self.on_gpu:
            began = time.perf_counter()
            work(k)
            return 1e3 * (time.perf_counter() - began)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work(k)
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last))

    @contextlib.contextmanager
    def peak(self, row: dict[str, Any]) -> Iterator[None]:
        """Add the peak memory of what runs inside to `row`."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield
        if self.on_gpu:
            row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)

    def has_time(self) -> bool:
        """Return whether another measurement may begin."""
        return time.monotonic() - self.began < SECONDS

    def write(self, stage: str, result: Any) -> None:
        """Keep the result of a stage, and write all so far."""
        self.results[stage] = result
        self.results["seconds"] = round(time.monotonic() - self.began, 1)
        print(stage, json.dumps(result), flush=True)
        if self.args.output:
            Path(self.args.output).write_text(json.dumps(self.results, indent=2) + "\n")


def check_finite(value: Any) -> None:
    """Raise `ArithmeticError` if a tensor in `value` is not finite."""
    tensors = value if isinstance(value, list | tuple) else [value]
    for tensor in tensors:
        if isinstance(tensor, Tensor) and not tensor.isfinite().all():
            raise ArithmeticError("a result is not finite")


def difference(value: Tensor, expected: Tensor) -> float:
    """Return the relative difference, in float64 on the CPU."""
    value, expected = value.double().cpu(), expected.double().cpu()
    return float((value - expected).norm() / expected.norm())


def ceilings(bench: Bench) -> dict[str, Any]:
    """Return the rates that no kernel exceeds: copied bytes (read and written), products."""
    size, side = (1 << 20, 256) if bench.args.tiny else (1 << 31, 8192)
    source = torch.randn(size // 4, device=bench.device)
    target = torch.empty_like(source)
    copied = bench.milliseconds(lambda _: target.copy_(source))
    a, b = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    multiplied = bench.milliseconds(lambda _: a @ b)
    name = torch.cuda.get_device_name() if bench.on_gpu else "cpu"
    return {
        "device": name,
        "torch": torch.__version__,
        "copy_tb_per_second": round(2 * size / copied / 1e9, 3),
        "bfloat16_tflops": round(2 * side**3 / multiplied / 1e9, 1),
    }


def correct(bench: Bench) -> dict[str, Any]:
    """Compare with the CPU, and the twin with float32; raise `ArithmeticError` beyond a bound."""
    ready_device(bench.args.device, "float32")
    model = bench.model()
    images = bench.images(model, 2)[0]
    exact = invert(model, images, steps=1)
    twin = invert(FastModel(model), images, steps=1, full_size=False)
    on_cpu = invert(bench.model().cpu(), images[:1].cpu(), steps=1)
    pairs = {
        "float32 on the CPU": (on_cpu, exact),
        "bfloat16": (twin, exact),
    }
    result: dict[str, Any] = {"fused_kernel": passes_of(bench.device).finish.__name__}
    for name, (made, expected) in pairs.items():
        n = len(made.w_plus)
        codes = difference(made.w_plus, expected.w_plus[:n])
        pictures = difference(made.step_images, expected.step_images[:n])
        result[name] = {"codes": codes, "images": pictures}
        if not max(codes, pictures) < BOUNDS[name]:  # a NaN is not below either
            raise ArithmeticError(f"{name}: codes differ by {codes:.2e}, images by {pictures:.2e}")
    return result


def default_flags() -> None:
    """Let PyTorch multiply as it does unless told otherwise: convolutions in TF32."""
    ready_device("auto", "tf32")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = False


def published(bench: Bench) -> list[dict[str, Any]]:
    """Time the loop of the literature as its users run it."""
    rows = []
    model = bench.model()
    for flags, setting in (("default", default_flags), ("ieee", ieee)):
        setting()
        for n in (1,) if bench.args.tiny else (1, 4):
            images = bench.images(model, n)
            row: dict[str, Any] = {"flags": flags, "batch": n}
            with bench.peak(row):
                row["ms"] = bench.milliseconds(
                    lambda k, images=images: published_loop(model, images[k], bench.steps)[0]
                )
            rows.append(rated(row))
    return rows


def ieee() -> None:
    """Multiply in float32."""
    ready_device("auto", "float32")


def rated(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with the images per second."""
    return row | {"images_per_second": round(1e3 * row["batch"] / row["ms"], 2)}


def inverters(bench: Bench) -> list[dict[str, Any]]:
    """Time `invert` by precision and batch size."""
    rows = []
    reference = bench.model()
    for precision in ("bfloat16", "tf32", "float32"):
        ready_device("auto", "tf32" if precision == "tf32" else "float32")
        model = FastModel(reference) if precision == "bfloat16" else reference
        for n in bench.batches:
            if not bench.has_time():
                continue
            images = bench.images(model, n)
            row: dict[str, Any] = {"precision": precision, "batch": n}
            with bench.peak(row):
                row["ms"] = bench.milliseconds(
                    lambda k, images=images, model=model: (
                        invert(model, images[k], steps=bench.steps, full_size=False).w_plus
                    )
                )
            rows.append(rated(row))
            bench.write("inverters", rows)
    return rows


def ratios(bench: Bench) -> dict[str, Any]:
    """Return how many times as fast as the published loop the fastest inverters are."""
    theirs, ours = (bench.results.get(stage) for stage in ("published", "inverters"))
    if not isinstance(theirs, list) or not isinstance(ours, list):
        return {"skipped": "needs the stages published and inverters"}
    fastest = {
        precision: max(row["images_per_second"] for row in ours if row["precision"] == precision)
        for precision in dict.fromkeys(row["precision"] for row in ours)
    }
    result: dict[str, Any] = {
        f"published, {row['flags']} flags, batch {row['batch']}": {
            name: round(speed / row["images_per_second"], 2) for name, speed in fastest.items()
        }
        for row in theirs
    }
    product = bench.results.get("ceilings", {}).get("bfloat16_tflops")
    if product and "bfloat16" in fastest:
        work = operations("bfloat16", bench.model().to("meta")) * bench.steps / 1e12
        result["bfloat16_share_of_product"] = round(fastest["bfloat16"] * work / product, 3)
    return result


def parts(bench: Bench) -> dict[str, Any]:
    """Time the parts of a step of the twin, and list the longest kernels."""
    ready_device("auto", "float32")
    n = bench.batches[-2]
    reference = bench.model()
    model = FastModel(reference)
    meter = MetricEvaluator(str(bench.device), "none", dtype=torch.bfloat16)
    images, pixels = bench.images(model, n), bench.pixels(model, n)
    codes = model.latent_avg.expand(n, -1, -1) + torch.randn(n, 1, 512, device=bench.device)
    with torch.no_grad():
        pairs = [torch.cat([each, each], dim=1) for each in images]
        work: dict[str, Callable[[int], Any]] = {
            "encoder": lambda k: model.encoder(pairs[k]),
            "generator_pooled": lambda _: model.pooled(codes),
            "generator_full": lambda _: model.generator(codes[:4]),
            "graphed_step": lambda k: model.step(images[k], codes, images[k]),
            "lpips_of_a_step": lambda k: meter.lpips.compare(
                meter._embed(images[k]), meter._embed(images[0])
            ),
            "upload": lambda k: upload(pixels[k], bench.device),
            "download": lambda _: download({"codes": codes})()["codes"],
        }
        result: dict[str, Any] = {"batch": n}
        for name, function in work.items():
            result[f"{name}_ms"] = bench.milliseconds(function)
        result |= up_convolutions(bench) | last_layers(bench)
        result["kernels"] = kernels(lambda: model.step(images[0], codes, images[0]), bench)
    return result


def up_convolutions(bench: Bench) -> dict[str, float]:
    """Time both forms of the last up-convolution: transposed and filtered, and as four phases."""
    n, side = (1, 32) if bench.args.tiny else (8, 512)
    options: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    x = torch.randn(n, 64, side, side, **options).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(64, 32, 3, 3, **options).contiguous(memory_format=torch.channels_last)
    merged = phases(weight).contiguous(memory_format=torch.channels_last)
    return {
        "up_transposed_ms": bench.milliseconds(lambda _: F.conv_transpose2d(x, weight, stride=2)),
        "up_phases_ms": bench.milliseconds(lambda _: F.conv2d(x, merged, padding=1)),
    }


def last_layers(bench: Bench) -> dict[str, float]:
    """Time both forms of the last layer: in one kernel, and a convolution with its pass."""
    n, side, pool = (1, 32, 4) if bench.args.tiny else (8, 1024, 4)
    options: dict[str, Any] = {"device": bench.device, "dtype": torch.bfloat16}
    x = torch.randn(n, 32, side, side, **options).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(32, 32, 3, 3, **options).contiguous(memory_format=torch.channels_last)
    numbers = torch.randn(n, 3, 32, device=bench.device) / 32
    noise = torch.randn(side, side, device=bench.device)
    factors = Factors(numbers[:, 0], noise, numbers[0, 1], None, numbers, pool)
    passes = passes_of(bench.device)
    apart = partial(convolve_and_finish, passes.finish)
    return {
        f"last_layer_{name}_ms": bench.milliseconds(lambda _, form=form: form(x, weight, factors))
        for name, form in (("fused", passes.last), ("apart", apart))
    }


def phases(weight: Tensor) -> Tensor:
    """Return the weight [4 o, i, 3, 3] of an up-convolution with its filter, from [i, o, 3, 3].

    A 3x3 convolution with it, then a pixel shuffle, is the transposed convolution of stride 2 and
    the binomial filter. It multiplies four times as often, and moves as much memory.
    """
    inputs, outputs = weight.shape[:2]
    taps = torch.tensor(BLUR_TAPS, dtype=weight.dtype, device=weight.device)
    padded = F.pad(weight.reshape(-1, 1, 3, 3), (3, 3, 3, 3))
    wide = F.conv2d(padded, torch.outer(taps, taps)[None, None] / 16)
    wide = wide.view(inputs, outputs, 6, 6).transpose(0, 1)
    parts = [wide[:, :, a::2, b::2].flip(2, 3) for a in (0, 1) for b in (0, 1)]
    return torch.stack(parts, dim=1).reshape(4 * outputs, inputs, 3, 3)


def kernels(work: Callable[[], Any], bench: Bench) -> list[dict[str, Any]]:
    """Return the fifteen kernels that take longest."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as trace:
        work()
        if bench.on_gpu:
            torch.cuda.synchronize()
    rows = [(kernel_us(event), event.key[:90], event.count) for event in trace.key_averages()]
    longest = sorted(rows, reverse=True)[:15]
    return [{"us": round(us, 1), "name": name, "count": count} for us, name, count in longest]


def kernel_us(event: Any) -> float:
    """Return the microseconds of a profiler's event on the device, or the CPU."""
    return float(getattr(event, "self_device_time_total", 0) or event.self_cpu_time_total)


def loop(bench: Bench) -> list[dict[str, Any]]:
    """Time batches from bytes to rows: the next batch is begun before one is waited for."""
    ready_device("auto", "float32")
    model = FastModel(bench.model())
    average_image(model)
    rows = []
    kinds = [("none", "all"), ("dlib", "best"), ("dlib", "all")]
    for identity, steps in kinds[:1] if bench.args.tiny else kinds:
        try:
            meter = MetricEvaluator(
                str(bench.device),
                identity,
                "lpips",
                steps,
                torch.bfloat16 if bench.on_gpu else torch.float32,
            )
        except Exception as error:  # noqa: BLE001 - no dlib on this machine
            rows.append({"identity": identity, "skipped": str(error)})
            continue
        if not bench.has_time():
            break
        rows.append({"identity": identity, "identity_steps": steps} | whole(bench, model, meter))
        bench.write("loop", rows)
    return rows


def whole(bench: Bench, model: FastModel, meter: MetricEvaluator) -> dict[str, Any]:
    """Return images per second of the loop, and the share of the time that the GPU computes."""
    n, count = bench.batches[-2], 2 if bench.args.tiny else 12
    pixels = bench.pixels(model, n)

    def run(batches: int) -> None:
        pending: list[Callable[[], Any]] = []
        for index in range(batches):
            levels = upload(pixels[index % 3], bench.device)
            images = from_levels(levels.movedim(-1, -3))
            made = invert(model, images, steps=bench.steps, full_size=False)
            measures = meter.begin(
                images, made.step_images, made.w_plus, model.latent_avg, made.start
            )
            pending += [measures, download({"w_plus": made.w_plus})]
            while len(pending) > 2:
                check_finite(pending.pop(0)())
        for wait in pending:
            wait()

    run(2)
    began = time.perf_counter()
    run(count)
    seconds = time.perf_counter() - began
    result: dict[str, Any] = {"batch": n, "images_per_second": round(n * count / seconds, 2)}
    if bench.on_gpu:
        result["busy_share"] = round(busy_share(lambda: run(3)), 3)
    return result


def busy_share(work: Callable[[], Any]) -> float:
    """Return the time of kernels over that of the wall; kernels of two streams may overlap."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        began = time.perf_counter()
        work()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    return sum(kernel_us(event) for event in trace.key_averages()) / 1e6 / wall


STAGES: dict[str, Callable[[Bench], Any]] = {
    "ceilings": ceilings,
    "correct": correct,
    "published": published,
    "inverters": inverters,
    "ratios": ratios,
    "parts": parts,
    "loop": loop,
}


def main(argv: list[str]) -> int:
    """Run the stages; return 1 where a result is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--output", help="file for the results, written after every stage")
    parser.add_argument("--tiny", action="store_true", help="a small model, two repeats")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated")
    bench = Bench(parser.parse_args(argv))
    if bench.on_gpu and not torch.cuda.is_available():
        print(json.dumps({"skipped": "PyTorch finds no GPU here"}))
        return 0
    for name in bench.args.stages.split(","):
        if not bench.has_time():
            bench.write(name, {"skipped": "out of time"})
            continue
        try:
            bench.write(name, STAGES[name](bench))
        except ArithmeticError as error:
            bench.write(name, {"wrong": str(error)})
            return 1
    print(json.dumps(bench.results))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
