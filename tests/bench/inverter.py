"""Seconds, peak memory and share of a CPU's peak of `invert`, against the published loop.

python tests/bench/inverter.py [--batches 1,4] [--steps 1,5] [--allocators default,kept]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.inversion import FastModel, average_image, invert  # noqa: E402
from pipeline.inversion.device import cpu_has_bfloat16  # noqa: E402
from pipeline.models import Architecture, RestyleModel  # noqa: E402
from pipeline.models.stylegan2 import Generator, ModulatedConv2d, StyledConv, ToRGB  # noqa: E402

REGIME = """\
Regime: ReStyle-pSp for faces (IR-SE50 encoder, 1024 px StyleGAN2), seeded random weights.
  published  the loop of the literature in float32: weights modulated for every face, one grouped
             convolution a layer, resampling channel by channel, every step's images at full size
  float32    pipeline.inversion.invert with the twin that a job on a CPU has
  bfloat16   the same with the twin of `--precision bfloat16`, on a CPU that gains by it
Each row is a process of its own; weights are loaded and the average image made before the clock
starts. CPU seconds are user + system of the process, so a busy machine disturbs them little; wall
seconds it does disturb. `kept` is an allocator that keeps freed memory (environment variables).
`share_of_peak` is the floating-point operations of a row's own convolutions and products, counted,
over its CPU seconds and the best rate that a large product or convolution of its dtype has here.
"""
KEPT = {
    "MALLOC_TOP_PAD_": "536870912",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_MMAP_THRESHOLD_": "8589934592",
}
FACES_1024 = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}


# The published loop --------------------------------------------------------------------------


def modulated(conv: ModulatedConv2d, x: Tensor, code: Tensor) -> Tensor:
    """Weights for each face, then all faces as groups of one convolution."""
    n, inputs, height, width = x.shape
    outputs, kernel = conv.weight.shape[1], conv.weight.shape[3]
    style = conv.modulation(code).view(n, 1, inputs, 1, 1)
    weight = conv.scale * conv.weight * style  # [n, o, i, k, k]
    if conv.demodulate:
        norm = torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8)
        weight = weight * norm.view(n, outputs, 1, 1, 1)
    x = x.reshape(1, n * inputs, height, width)
    if not conv.upsample:
        weight = weight.view(n * outputs, inputs, kernel, kernel)
        y = F.conv2d(x, weight, padding=conv.padding, groups=n)
        return y.view(n, outputs, height, width)
    weight = weight.transpose(1, 2).reshape(n * inputs, outputs, kernel, kernel)
    y = F.conv_transpose2d(x, weight, stride=2, groups=n)
    return filtered(y.view(n, outputs, *y.shape[2:]), conv.blur.kernel, (1, 1, 1, 1))


def filtered(x: Tensor, kernel: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Resampling filter with the channels as a batch of grey images."""
    n, channels, _, _ = x.shape
    x = F.pad(x, pad)
    y = F.conv2d(x.reshape(n * channels, 1, *x.shape[2:]), kernel.flip(0, 1)[None, None])
    return y.view(n, channels, *y.shape[2:])


def styled(layer: StyledConv, x: Tensor, code: Tensor, noise: Tensor) -> Tensor:
    """Apply a style layer."""
    y = modulated(layer.conv, x, code) + layer.noise.weight * noise
    return F.leaky_relu(y + layer.activate.bias.view(1, -1, 1, 1), 0.2) * 2**0.5


def to_rgb(layer: ToRGB, x: Tensor, code: Tensor, skip: Tensor | None) -> Tensor:
    """Features to RGB, and the image below, enlarged."""
    image = modulated(layer.conv, x, code) + layer.bias
    if skip is None:
        return image
    n, channels, height, width = skip.shape
    spread = skip.view(n, channels, height, 1, width, 1)
    spread = F.pad(spread, (0, 1, 0, 0, 0, 1)).view(n, channels, 2 * height, 2 * width)
    return image + filtered(spread, layer.upsample.kernel, (2, 1, 2, 1))


def synthesised(generator: Generator, codes: Tensor) -> Tensor:
    """[n, n_styles, 512] to [n, 3, size, size]."""
    noises = list(generator.noises.buffers())
    x = generator.input.input.repeat(len(codes), 1, 1, 1)
    x = styled(generator.conv1, x, codes[:, 0], noises[0])
    image = to_rgb(generator.to_rgb1, x, codes[:, 1], None)
    for level, rgb in enumerate(generator.to_rgbs):
        for index in (2 * level, 2 * level + 1):
            x = styled(generator.convs[index], x, codes[:, index + 1], noises[index + 1])
        image = to_rgb(rgb, x, codes[:, 2 * level + 3], image)
    return image


@torch.no_grad()
def published_loop(model: RestyleModel, images: Tensor, steps: int) -> tuple[Tensor, list[Tensor]]:
    """Return codes of every step [n, steps, n_styles, 512] and every step's images at full size."""
    reconstruction = average_image(model).repeat(len(images), 1, 1, 1)
    codes = model.latent_avg.repeat(len(images), 1, 1)
    step_codes, step_images = [], []
    for _ in range(steps):
        codes = model.encoder(torch.cat([images, reconstruction], dim=1)) + codes
        full = synthesised(model.generator, codes)
        reconstruction = F.adaptive_avg_pool2d(full, model.input_size)
        step_codes.append(codes)
        step_images.append(full)
    return torch.stack(step_codes, dim=1), step_images


# Measuring ------------------------------------------------------------------------------------


SIDES = ("published", "float32", "bfloat16")
SECONDS, PEAK = "cpu_seconds_per_image_and_step", "peak_gib"


def seeded_model() -> RestyleModel:
    """Faces 1024 with random weights."""
    torch.manual_seed(0)
    arguments = {"input_channels": 6, "n_styles": 18}
    return RestyleModel(Architecture("BackboneEncoder", arguments, FACES_1024, mapping_layers=8))


def loop_of(side: str, model: RestyleModel) -> Callable[[Tensor, int], Any]:
    """Return the function of images and steps that a row measures."""
    model.requires_grad_(False)
    if side == "published":
        return lambda images, steps: published_loop(model, images, steps)
    ours = FastModel(model, getattr(torch, side))
    average_image(ours)
    return lambda images, steps: invert(ours, images, steps=steps, full_size=False)


def measure(side: str, batch: int, steps: int, threads: int) -> dict[str, Any]:
    """Measure one row in this process."""
    torch.set_num_threads(threads)
    model = seeded_model()
    images = torch.rand(batch, 3, *model.input_size) * 2 - 1
    average_image(model)
    loop = loop_of(side, model)
    cpu, wall = time.process_time(), time.perf_counter()
    loop(images, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        SECONDS: round((time.process_time() - cpu) / batch / steps, 2),
        "wall_seconds_per_image_and_step": round((time.perf_counter() - wall) / batch / steps, 2),
        PEAK: round(peak, 2),
    }


@torch.no_grad()
def operations(side: str, model: RestyleModel) -> int:
    """Return the floating-point operations of an image and step; `model` is on the meta device."""
    with torch.device("meta"):
        images = torch.empty(1, 3, *model.input_size)
        loop = loop_of(side, model)
        average_image(model)
        with FlopCounterMode(display=False) as counter:
            loop(images, 1)
    return int(counter.get_total_flops())


@torch.no_grad()
def ceilings(threads: int, side: int = 2048) -> dict[str, float]:
    """Return the highest GFLOP a CPU second by dtype, of a product and a convolution."""
    torch.set_num_threads(threads)
    rates = {}
    for name in SIDES[1:]:
        dtype = getattr(torch, name)
        a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
        x = torch.randn(4, side // 8, 64, 64).to(dtype, memory_format=torch.channels_last)
        kernel = torch.randn(side // 8, side // 8, 3, 3).to(
            dtype, memory_format=torch.channels_last
        )
        work: list[Callable[[], Tensor]] = [lambda a=a, b=b: a @ b]
        work += [lambda x=x, kernel=kernel: F.conv2d(x, kernel, padding=1)]
        rates[name] = round(max(map(rate, work)), 1)
    return rates


def rate(work: Callable[[], Tensor]) -> float:
    """Return the GFLOP a CPU second of `work`, by the median of five runs."""
    with FlopCounterMode(display=False) as counter:
        work()
    seconds = []
    for _ in range(5):
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return counter.get_total_flops() / 1e9 / statistics.median(seconds)


def in_a_process(flags: list[str], kept: bool) -> Any:
    """Return what a new process prints, with or without the allocator's settings."""
    environment = {key: value for key, value in os.environ.items() if key not in KEPT}
    done = subprocess.run(
        [sys.executable, __file__, *flags],
        env=environment | (KEPT if kept else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def summary(
    rows: list[dict[str, Any]], counted: dict[str, int], peaks: dict[str, float]
) -> dict[str, Any]:
    """Return rows with their share of the peak, and how much better ours are, by case."""
    ratios = {}
    places = ("batch", "steps", "allocator")
    published = {
        tuple(row[key] for key in places): row for row in rows if row["side"] == "published"
    }
    for row in rows:
        peak = peaks["bfloat16" if row["side"] == "bfloat16" else "float32"]
        row["share_of_peak"] = round(counted[row["side"]] / 1e9 / row[SECONDS] / peak, 3)
        case = tuple(row[key] for key in places)
        if row["side"] != "published" and case in published:
            name = "{}, batch {}, steps {}, allocator {}".format(row["side"], *case)
            ratios[name] = {
                word: round(published[case][key] / row[key], 2)
                for word, key in (("faster", SECONDS), ("smaller", PEAK))
            }
    return {
        "bench": "inverter",
        "gflop_per_image_and_step": {side: round(n / 1e9, 1) for side, n in counted.items()},
        "peak_gflop_per_cpu_second": peaks,
        "rows": rows,
        "published_over_ours": ratios,
    }


def numbers(text: str) -> list[int]:
    """Return whole numbers of a comma-separated flag."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    """Measure every row, print each as it comes, and the summary as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batches", default="1,4", help="comma-separated (published: 16 GB at 4)")
    parser.add_argument("--steps", default="1,5", help="comma-separated")
    parser.add_argument("--allocators", default="default,kept", help="comma-separated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=[*SIDES, "ceilings"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    batches, steps = numbers(args.batches), numbers(args.steps)
    if args.measure == "ceilings":
        print(json.dumps(ceilings(args.threads)))
        return
    if args.measure:
        print(json.dumps(measure(args.measure, batches[0], steps[0], args.threads)))
        return
    print(REGIME)
    sides = SIDES if cpu_has_bfloat16() else SIDES[:-1]
    common = ["--threads", str(args.threads), "--measure"]
    peaks = in_a_process([*common, "ceilings"], kept=True)
    with torch.device("meta"):
        shapes = seeded_model()
    counted = {side: operations(side, shapes) for side in sides}
    rows = []
    allocators = args.allocators.split(",")
    for allocator, count, batch, side in itertools.product(allocators, steps, batches, sides):
        flags = [*common, side, "--batches", str(batch), "--steps", str(count)]
        case = {"batch": batch, "steps": count, "allocator": allocator}
        rows.append({"side": side, **case} | in_a_process(flags, allocator == "kept"))
        print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(summary(rows, counted, peaks)))


if __name__ == "__main__":
    main()
