"""Edit faces of a table by directions: a new table, a grid, files, or a video.

    python jobs/edit_latents.py --table URI --direction smile.pt --strength -3,0,3 --output grid.png
    python jobs/edit_latents.py --table URI --direction smile.pt --strength 3 \\
        --direction age.pt --strength -2 --layers 4-8 --as table --output EDITED

An edited code is code + strength * direction, for all rows of the code or those of --layers. A
direction is a built-in name or a file: .pt, .npy, .npz or .safetensors of [512], [1, 512] or
[n, 512]. One of a file that holds several is chosen by its number or name: ganspace.pt:12.

Give --direction again for several at once, each with its own --strength and --layers, in the same
order; one --strength or --layers goes for all. Lists of strengths are taken together: the first of
each make the first picture or row, the second the second.

table: rows with `direction`, `strength` and, in `refined_from`, the row that was edited; metrics
compare with the unedited code's picture. Run the same command again to continue. grid: a PNG of
faces by strengths. images: <direction><strength>/<name>.png. video: faces side by side, through
all strengths and back, as .webp, .gif or .mp4.

exit code  0 done   1 a read or a write failed, run again   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from pipeline.choices import CodeType
from pipeline.cli import (
    add_count,
    add_renderer,
    add_selection,
    job_parser,
    print_result,
    refuse_unused,
)
from pipeline.config import MODEL_SETTINGS
from pipeline.editing.animation import FPS, check_animation, write_animation
from pipeline.editing.directions import read_direction
from pipeline.editing.edit import Edits, edits_of, parse_strengths
from pipeline.errors import ConfigError, printable
from pipeline.interop.exporting import EXPORT_OUTPUT, NamedSelection, Naming
from pipeline.metrics.names import check_identity
from pipeline.models.domains import preset_for
from pipeline.models.files import bundle_names
from pipeline.storage import OutputKind, canonical_uri, check_outside, file_place
from pipeline.table import TABLE_OUTPUT, open_table
from pipeline.table.model_lookup import check_model_of, model_of

if TYPE_CHECKING:
    from pipeline.models import RestyleModel

KINDS = ("table", "grid", "images", "video")
_BY_SUFFIX = {".png": "grid", ".webp": "video", ".gif": "video", ".mp4": "video"}
_LIMITS = {"grid": 12, "video": 4}
_FOLDERS: dict[str, OutputKind] = {"table": TABLE_OUTPUT, "images": EXPORT_OUTPUT}
# Flags that are for one kind of output, by their names in the namespace.
_OWN_FLAGS = {
    "latent_dtype": ("table",),
    "part_size": ("table",),
    "identity": ("table",),
    "size": ("grid", "images", "video"),
    "names": ("images",),
    "frames": ("video",),
    "fps": ("video",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, edit, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(lambda: _edit(args), given_table=True)


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument("--output", required=True, metavar="URI", help="a file or a folder")
    parser.add_argument("--as", dest="kind", choices=KINDS, help="what to write (default: by name)")
    parser.add_argument(
        "--direction",
        action="append",
        required=True,
        metavar="NAME|FILE",
        help="what to add to the codes; again for another",
    )
    parser.add_argument(
        "--strength",
        action="append",
        metavar="N,N,...",
        help="factors of the direction (default -3,0,3)",
    )
    parser.add_argument(
        "--layers", action="append", metavar="ROWS", help="edited rows, as 4-8 or 0-3,6-: (all)"
    )
    add_renderer(parser)
    parser.add_argument("--identity", help="of a table: dlib, none, or a weight file")
    parser.add_argument(
        "--latent-dtype", choices=get_args(CodeType), help="of a table (default: as the source)"
    )
    add_count(parser, "--part-size", "of a table: faces per part (default 256)")
    add_count(parser, "--size", "width of each picture in pixels")
    parser.add_argument("--names", choices=get_args(Naming), help="names of images")
    add_count(parser, "--frames", "of a video: frames from one strength to the next (default 24)")
    add_count(parser, "--fps", "of a video (default 25)")
    return parser


def _edit(args: argparse.Namespace) -> dict[str, Any]:
    kind = _kind(args)
    refuse_unused(args, kind, _OWN_FLAGS)
    if args.identity:
        check_identity(args.identity)
    check_outside(args.table, args.output, _FOLDERS.get(kind))
    if kind == "video":
        check_animation(args.output, args.fps or FPS)
    table = open_table(args.table)
    limit = args.limit or _LIMITS.get(kind)
    selection = NamedSelection(
        table, args.where, args.order, limit, naming=args.names or "basename"
    )
    selection.require_rows()
    check_model_of(table, args.model)
    strengths = [parse_strengths(text) for text in args.strength or ["-3,0,3"]]
    directions = [read_direction(text) for text in args.direction]
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.editing.w_space import w_space_of
    from pipeline.inversion import ready_device

    model = model_of(table, args.model, ready_device(args.device))
    space = w_space_of(model)
    edits = edits_of(directions, strengths, args.layers or [], space, model.n_styles)
    result, notes = _WRITERS[kind](args, selection, model, edits)
    notes = [*edits.notes, *filter(None, notes)]
    for note in notes:
        print(printable(note), file=sys.stderr)
    names = list(edits.names)
    return {"output": args.output, "as": kind, "directions": names, **result, "notes": notes}


def _kind(args: argparse.Namespace) -> str:
    """Return what to write; `ConfigError` where `--output` names something else."""
    suffix = PurePosixPath(args.output).suffix.lower()
    by_name = _BY_SUFFIX.get(suffix)
    kind = str(args.kind or by_name or "")
    if not kind:
        raise ConfigError(
            f"--output {args.output}: say with --as what to write: {', '.join(KINDS)}"
        )
    if kind in ("grid", "video") and by_name != kind:
        names = ", ".join(f"*{ending}" for ending, each in _BY_SUFFIX.items() if each == kind)
        raise ConfigError(f"--output {args.output}: a {kind} is one file: name it {names}")
    if kind in ("table", "images") and by_name:
        raise ConfigError(f"--output {args.output}: --as {kind} writes a folder: name one")
    return kind


_Result = tuple[dict[str, Any], list[str]]


def _write_table(
    args: argparse.Namespace, selection: NamedSelection, model: RestyleModel, edits: Edits
) -> _Result:
    from pipeline.editing.edited_table import TableEdit
    from pipeline.metrics import MetricEvaluator

    name = str(args.model or selection.table.spec.config["model"])
    config = {
        "table": selection.table.store.root,
        "model": name if name in bundle_names() else canonical_uri(name),
        **{name: selection.table.spec.config.get(name) for name in MODEL_SETTINGS},
        "direction": args.direction,
        "strength": args.strength,
        "layers": args.layers,
    }
    # As given, else the source's, else that of the model's domain.
    identity = args.identity or selection.table.spec.config.get("identity")
    meter = MetricEvaluator(
        args.device, str(identity or preset_for(model).identity(prealigned=True))
    )
    edit = TableEdit(
        selection, model, edits, meter, config, args.latent_dtype, args.part_size or 256
    )
    return edit.run(args.output), edit.notes


def _write_grid(
    args: argparse.Namespace, selection: NamedSelection, model: RestyleModel, edits: Edits
) -> _Result:
    from pipeline.editing.edit_pictures import CELL, edit_grid

    grid = edit_grid(selection, model, edits, args.size or CELL)
    store, name = file_place(args.output)
    store.put(name, grid.picture)
    return {"faces": grid.faces, "columns": grid.columns}, [grid.note]


def _write_images(
    args: argparse.Namespace, selection: NamedSelection, model: RestyleModel, edits: Edits
) -> _Result:
    from pipeline.editing.edit_pictures import write_edited_images
    from pipeline.interop.pictures import Drawing

    drawing = Drawing(args.size)
    return {"written": write_edited_images(selection, model, edits, args.output, drawing)}, []


def _write_video(
    args: argparse.Namespace, selection: NamedSelection, model: RestyleModel, edits: Edits
) -> _Result:
    from pipeline.editing.edit_pictures import edit_frames
    from pipeline.interop.pictures import Drawing

    frames = edit_frames(selection, model, edits, args.frames or 24, Drawing(args.size))
    written = write_animation(args.output, frames, args.fps or FPS)
    return {"faces": selection.count(), **written._asdict()}, []


_WRITERS = {
    "table": _write_table,
    "grid": _write_grid,
    "images": _write_images,
    "video": _write_video,
}


if __name__ == "__main__":
    sys.exit(main())
