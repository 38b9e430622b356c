"""Convert an official ReStyle, pSp or e4e checkpoint, or a generator, into a model bundle, once.

    python jobs/convert_model.py restyle_psp_ffhq_encode.pt s3://bucket/models/restyle-psp-ffhq

FILE is a checkpoint (.pt, .pth, .safetensors), a StyleGAN2 generator alone (`g_ema` in a .pt), or
NVIDIA's network pickle (.pkl), which is read without running it. The bundle of a generator alone
has no encoder; use it with --method optimize.

The bundle (safetensors + JSON) loads without unpickling, faster, and with its sha256 verified; at
float32 it has the checkpoint's fingerprint, so either continues a table.

exit code  0 done   1 a read or a write failed   2 the checkpoint does not fit
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from pipeline.cli import add_flags, add_place, job_parser, parse_places, print_result
from pipeline.config import MODEL_SETTINGS, JobConfig, fill_part
from pipeline.models.files import check_model, hints_of, is_bundle
from pipeline.storage import OutputKind, check_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, convert, print one JSON line; return the exit code."""
    args = parse_places(_parser(), arguments, "checkpoint", "bundle")
    return print_result(lambda: _convert(args))


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_place(
        parser, "checkpoint", "--model", metavar="FILE", text="path or URI of the file to convert"
    )
    add_place(parser, "bundle", "--output", metavar="FOLDER", text="path or URI of the bundle")
    parser.add_argument("--name", help="the model's name (default: the folder's)")
    parser.add_argument(
        "--licence", help="licence of the weights (default: the model's own, if known)"
    )
    add_flags(parser, JobConfig, MODEL_SETTINGS)
    parser.add_argument(
        "--stored", choices=["float32", "float16"], default="float32", help="type of the weights"
    )
    return parser


def _convert(args: argparse.Namespace) -> dict[str, Any]:
    check_output(args.bundle, OutputKind("a model bundle", is_bundle))
    check_model(args.checkpoint)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.models import load_model, save_bundle

    hints = hints_of(fill_part(MODEL_SETTINGS, vars(args)).model_dump())
    model = load_model(args.checkpoint, **hints)
    name = args.name or PurePosixPath(args.bundle.rstrip("/")).name
    model.card = dataclasses.replace(model.card, name=name, licence=args.licence or model.licence)
    save_bundle(model, args.bundle, stored=args.stored)
    written = load_model(args.bundle if "/" in args.bundle else f"./{args.bundle}")
    return {"bundle": args.bundle, **written.metadata, "fingerprint": written.fingerprint}


if __name__ == "__main__":
    sys.exit(main())
