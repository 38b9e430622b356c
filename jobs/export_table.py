"""Write the codes or pictures of a table of latents as files that other programs read.

    python jobs/export_table.py --table URI --output latents.npy
    python jobs/export_table.py --table URI --output codes/ --as codes [--where "lpips < 0.2"]
    python jobs/export_table.py --table URI --output results/ --as images|results|coupled

latents: the published scripts' dictionary {file name: [code of each step]}, one object in memory.
codes: a .npy or .pt file [n_styles, 512] a face. images: a PNG of each face's best step.
results: <step>/<name>.png. coupled: all steps and the input side by side. All but the dictionary
are written as the table is read, whatever its size. Names are the images' own; where one stands
for several faces it is refused with the list, and --names id takes image ids instead.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import get_args

from pipeline.choices import Device
from pipeline.command_line import exit_code_of, job_parser
from pipeline.errors import ConfigError
from pipeline.exchange.exporting import (
    EXPORT_OUTPUT,
    CodeForm,
    Naming,
    Selection,
    export_codes,
    export_dictionary,
)
from pipeline.storage import canonical_uri, check_beside, check_output
from pipeline.table import open_table
from pipeline.table.made_by import check_model_of, model_of

FILES = (".pt", ".pth", ".npz", ".pkl", ".zip", ".tar", ".png", ".jpg", ".jpeg")  # not folders
PICTURES = ("images", "results", "coupled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; print one JSON line; the exit code."""
    asked = _parser().parse_args(arguments)
    return exit_code_of(lambda: _report(asked), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    parser.add_argument("--table", required=True, metavar="URI")
    parser.add_argument(
        "--output", "--to", dest="to", required=True, metavar="URI", help="a .npy file, or a folder"
    )
    parser.add_argument("--as", dest="kind", choices=["latents", "codes", *PICTURES])
    parser.add_argument("--form", choices=get_args(CodeForm), default="npy", help="of --as codes")
    parser.add_argument("--where", default="", metavar="SQL", help="which faces, a condition")
    parser.add_argument("--names", choices=get_args(Naming), default="basename", help="of files")
    parser.add_argument("--model", help="renders pictures (default: the table's own)")
    parser.add_argument(
        "--device", default="cpu", choices=get_args(Device), help="that renders pictures"
    )
    return parser


def _report(asked: argparse.Namespace) -> int:
    print(json.dumps({"to": asked.to, "as": _kind(asked), "written": _export(asked)}))
    return 0


def _kind(asked: argparse.Namespace) -> str:
    """What to write; `ConfigError` where `--output` is the name of something else."""
    suffix = PurePosixPath(asked.to).suffix.lower()
    kind = asked.kind or ("latents" if suffix == ".npy" else None)
    if kind == "latents" and suffix != ".npy":
        raise ConfigError(
            f"--output {asked.to}: the dictionary is one file, of a name ending in .npy"
        )
    if kind != "latents" and suffix in (".npy", *FILES):
        raise ConfigError(
            f"--output {asked.to}: the dictionary is a .npy file, all else a folder of files: name "
            "one, and with --as what it is to hold (--as codes --form pt: .pt files)"
        )
    if kind is None:
        raise ConfigError(f"--output {asked.to}: say with --as what the folder is to hold")
    return str(kind)


def _export(asked: argparse.Namespace) -> int:
    kind = _kind(asked)
    target = canonical_uri(asked.to)
    check_beside(
        asked.table, target, what="table", why="where nothing may stand but what its jobs write"
    )
    if kind == "latents":
        check_output(target.rpartition("/")[0] or "/")
    else:
        check_output(target, EXPORT_OUTPUT)
    selection = Selection(open_table(asked.table), asked.where, asked.names)
    if kind == "latents":
        return export_dictionary(selection, asked.to)
    if kind == "codes":
        return export_codes(selection, asked.to, asked.form)
    check_model_of(selection.table, asked.model)
    # PyTorch is slow to import, and codes need no networks.
    from pipeline.exchange.pictures import export_pictures
    from pipeline.inversion import ready_device

    model = model_of(selection.table, asked.model, ready_device(asked.device))
    return export_pictures(selection, model, asked.to, kind)  # type: ignore[arg-type]


if __name__ == "__main__":
    sys.exit(main())
