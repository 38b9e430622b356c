"""Write the codes or pictures of a table of latents as files that other programs read.

    python jobs/export_table.py --table URI --output latents.npy
    python jobs/export_table.py --table URI --output codes/ --as codes [--where "lpips < 0.2"]
    python jobs/export_table.py --table URI --output stack.npy --as stacked
    python jobs/export_table.py --table URI --output results/ --as images|results|coupled
    python jobs/export_table.py --table URI --output out/ --as parquet|huggingface|webdataset

One file:
  latents      the published scripts' dictionary {file name: [code of each step]}, one object in
               memory
  stacked      all codes in one array [n, n_styles, 512] of a .npy, .pt or .npz file (there as `w`),
               and their names, one per line, in <name>.names.txt
One file per face:
  codes        .npy or .pt, [n_styles, 512]
  images       a PNG of the best step; results: <step>/<name>.png; coupled: all steps and the input
               side by side
Few files, of --rows-per-file faces each, in the order of --order or --sort-by:
  parquet      the table's columns and types; `ParquetCodes` reads codes by id out of it
  huggingface  a dataset folder for `load_dataset`, with its card and pictures as images
  webdataset   tars of samples: crop, code and JSON; with --render a picture of the code

All but the dictionary are written while the table is read, whatever its size. Run the same command
again to continue. Files have the names of the images; a name that several faces share is refused
with the list, and --names id takes image ids instead. Pictures have the generator's size and are
rounded to 8 bits; with --size 256 and --truncate-pixels they equal those of the published scripts
with --resize_outputs.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, get_args

from pipeline.cli import (
    add_count,
    add_renderer,
    add_selection,
    job_parser,
    print_result,
    refuse_unused,
)
from pipeline.errors import ConfigError
from pipeline.interop.exporting import (
    EXPORT_OUTPUT,
    CodeForm,
    NamedSelection,
    Naming,
    export_codes,
    export_dictionary,
)
from pipeline.interop.file_series import Series, SeriesOptions
from pipeline.interop.hub_files import HUB_OUTPUT, export_hub
from pipeline.interop.parquet_files import PARQUET_OUTPUT, export_parquet
from pipeline.interop.row_order import SortBy
from pipeline.interop.stacked import export_stacked
from pipeline.interop.tar_shards import TAR_OUTPUT, Samples, export_tars
from pipeline.storage import check_outside
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of, model_of

if TYPE_CHECKING:
    from pipeline.interop.pictures import Drawing
    from pipeline.models import RestyleModel

# Faces per file where a layout has few files.
SERIES = {"parquet": 100_000, "huggingface": 10_000, "webdataset": 1_000}
OUTPUTS = {"parquet": PARQUET_OUTPUT, "huggingface": HUB_OUTPUT, "webdataset": TAR_OUTPUT}
# Suffixes of files: not folders.
FILES = (
    *(".parquet", ".pt", ".pth", ".npz", ".pkl", ".zip", ".tar"),
    *(".png", ".jpg", ".jpeg"),
)
STACKED = (".npy", ".npz", ".pt")
PICTURES = ("images", "results", "coupled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, export, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(
        lambda: {"to": args.to, "as": _kind(args), **_export(args)}, given_table=True
    )


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument(
        "--output", "--to", dest="to", required=True, metavar="URI", help="a file, or a folder"
    )
    kinds = ["latents", "codes", "stacked", *PICTURES, *SERIES]
    parser.add_argument(
        "--as", dest="kind", choices=kinds, help="what to write (default: by --output)"
    )
    parser.add_argument(
        "--form", choices=get_args(CodeForm), default="npy", help="file type of a code"
    )
    parser.add_argument(
        "--names", choices=get_args(Naming), default="basename", help="names of files"
    )
    defaults = ", ".join(f"{kind} {rows:,}" for kind, rows in SERIES.items())
    add_count(parser, "--rows-per-file", f"faces of a file (default {defaults})")
    parser.add_argument(
        "--sort-by", choices=get_args(SortBy), help="order of the faces (default: as selected)"
    )
    parser.add_argument(
        "--render",
        action="store_true",
        help="add a picture of each code to huggingface or webdataset, rendered by the model",
    )
    add_renderer(parser)
    add_count(parser, "--size", "width of pictures (default: the generator's)")
    parser.add_argument(
        "--truncate-pixels",
        action="store_true",
        help="truncate pictures to 8 bits, as the published scripts do, instead of rounding",
    )
    return parser


def _kind(args: argparse.Namespace) -> str:
    """Return what to write; raise `ConfigError` where `--output` names something else."""
    suffix = PurePosixPath(args.to).suffix.lower()
    kind = args.kind or ("latents" if suffix == ".npy" else None)
    if kind == "stacked":
        if suffix not in STACKED:
            listed = ", ".join(f"*{ending}" for ending in STACKED)
            raise ConfigError(f"--output {args.to}: stacked codes are one file: name it {listed}")
        return "stacked"
    if kind == "latents" and suffix != ".npy":
        raise ConfigError(
            f"--output {args.to}: the dictionary is one file, of a name ending in .npy"
        )
    if kind != "latents" and suffix in (".npy", *FILES):
        raise ConfigError(
            f"--output {args.to}: the dictionary is a .npy file, all else a folder of files: name "
            "one, and with --as what it is to hold (--as codes --form pt: .pt files)"
        )
    if kind is None:
        raise ConfigError(f"--output {args.to}: say with --as what the folder is to hold")
    return str(kind)


def _export(args: argparse.Namespace) -> dict[str, object]:
    """Export as the flags say; return the rest of the JSON line."""
    kind = _kind(args)
    _refuse_unused(args, kind)
    is_file = kind in ("latents", "stacked")
    check_outside(args.table, args.to, None if is_file else OUTPUTS.get(kind, EXPORT_OUTPUT))
    selection = NamedSelection(
        open_table(args.table), args.where, args.order, args.limit, naming=args.names
    )
    if kind == "latents":
        return {"written": export_dictionary(selection, args.to)}
    if kind == "stacked":
        written, names = export_stacked(selection, args.to)
        return {"written": written, "names": names}
    if kind == "codes":
        return {"written": export_codes(selection, args.to, args.form)}
    if kind in SERIES:
        return _export_series(args, kind, selection)
    model, drawing = _drawing(args, selection)
    from pipeline.interop.pictures import export_pictures

    written = export_pictures(selection, model, args.to, kind, drawing)  # type: ignore[arg-type]
    return {"written": written}


def _export_series(
    args: argparse.Namespace, kind: str, selection: NamedSelection
) -> dict[str, object]:
    render, shown, added = None, None, 0
    if args.render:
        model, drawing = _drawing(args, selection)
        from pipeline.interop.pictures import render_png

        render = partial(render_png, model, drawing=drawing)
        shown = [*astuple(drawing), model.fingerprint]
        width = drawing.width or model.frame_size[1]
        added = 3 * width * width
    names = [args.names, args.form] if kind == "webdataset" else []
    options = SeriesOptions(args.rows_per_file or SERIES[kind], args.sort_by, added)
    series = Series.of(selection, options, kind, [shown, *names])
    if kind == "parquet":
        return {**export_parquet(series, args.to)}
    if kind == "huggingface":
        return export_hub(series, args.to, render)
    return {**export_tars(series, selection, args.to, Samples(args.form, render))}


def _drawing(args: argparse.Namespace, selection: NamedSelection) -> tuple[RestyleModel, Drawing]:
    """Return the model that renders, and the form of its pictures."""
    check_model_of(selection.table, args.model)
    # PyTorch is slow to import, and codes need no networks.
    from pipeline.interop.pictures import Drawing
    from pipeline.inversion import ready_device

    model = model_of(selection.table, args.model, ready_device(args.device))
    return model, Drawing(args.size, args.truncate_pixels)


def _refuse_unused(args: argparse.Namespace, kind: str) -> None:
    """Raise `ConfigError` for a flag that means nothing for this kind."""
    rendered = ("huggingface", "webdataset")
    pictures = (*PICTURES, *(rendered if args.render else ()))
    meant_for = {
        "size": pictures,
        "truncate_pixels": pictures,
        "rows_per_file": tuple(SERIES),
        "sort_by": tuple(SERIES),
        "render": rendered,
    }
    refuse_unused(args, kind, meant_for)


if __name__ == "__main__":
    sys.exit(main())
