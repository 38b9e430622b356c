"""Seconds and peak memory an image of `invert` on a CPU, against the published loop.

python tests/bench/inverter.py [--batches 1,4] [--steps N] [--threads N]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline.inversion import average_image, invert  # noqa: E402
from pipeline.models import Architecture, RestyleModel  # noqa: E402
from pipeline.models.stylegan2 import Generator, ModulatedConv2d, StyledConv, ToRGB  # noqa: E402

REGIME = """\
Regime: ReStyle-pSp for faces (IR-SE50 encoder, 1024 px StyleGAN2), seeded random weights, float32.
  published  the loop of the literature: weights modulated for every face, one grouped convolution a
             layer, resampling channel by channel, every step's images kept at full size
  ours       pipeline.inversion.invert
Each row is a process of its own; weights are loaded and the average image made before the clock
starts. CPU seconds are user + system of the process, so a busy machine disturbs them little; wall
seconds it does disturb. `kept` is an allocator that keeps freed memory (environment variables).
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


def seeded_model() -> RestyleModel:
    """Faces 1024 with random weights."""
    torch.manual_seed(0)
    arguments = {"input_channels": 6, "n_styles": 18}
    return RestyleModel(Architecture("BackboneEncoder", arguments, FACES_1024, mapping_layers=8))


def measure(side: str, batch: int, steps: int, threads: int) -> dict[str, Any]:
    """Measure one row in this process."""
    torch.set_num_threads(threads)
    model = seeded_model()
    images = torch.rand(batch, 3, *model.input_size) * 2 - 1
    average_image(model)
    cpu, wall = time.process_time(), time.perf_counter()
    if side == "ours":
        invert(model, images, steps=steps)
    else:
        published_loop(model, images, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {
        "cpu_seconds_per_image_and_step": round((time.process_time() - cpu) / batch / steps, 2),
        "wall_seconds_per_image_and_step": round((time.perf_counter() - wall) / batch / steps, 2),
        "peak_gib": round(peak, 2),
    }


def in_a_process(side: str, batch: int, kept: bool, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one row in a new process, with or without the allocator's settings."""
    environment = {key: value for key, value in os.environ.items() if key not in KEPT}
    command = [sys.executable, __file__, "--measure", side, "--batches", str(batch)]
    command += ["--steps", str(args.steps), "--threads", str(args.threads)]
    done = subprocess.run(
        command,
        env=environment | (KEPT if kept else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row = {"side": side, "batch": batch, "allocator": "kept" if kept else "default"}
    return row | json.loads(done.stdout)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the speed-up and the memory ratio of our loop, by batch and allocator."""
    ratios = {}
    by_case = {(row["side"], row["batch"], row["allocator"]): row for row in rows}
    for (side, batch, allocator), ours in by_case.items():
        if side == "ours":
            theirs = by_case["published", batch, allocator]
            ratios[f"batch {batch}, allocator {allocator}"] = {
                name: round(theirs[key] / ours[key], 2)
                for name, key in (
                    ("faster", "cpu_seconds_per_image_and_step"),
                    ("smaller", "peak_gib"),
                )
            }
    return {"bench": "inverter", "rows": rows, "published_over_ours": ratios}


def main() -> None:
    """Measure every row, print each as it comes, and the summary as the last line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--batches", default="1,4", help="comma-separated (published: 12 GB at 4)")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", choices=["ours", "published"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    batches = [int(batch) for batch in args.batches.split(",")]
    if args.measure:
        print(json.dumps(measure(args.measure, batches[0], args.steps, args.threads)))
        return
    print(REGIME)
    rows = []
    for batch in batches:
        for kept in (False, True):
            for side in ("published", "ours"):
                rows.append(in_a_process(side, batch, kept, args))
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
