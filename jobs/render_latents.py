"""Render codes of a table as one picture or animation: grids, walks, style mixes, mean faces.

    python jobs/render_latents.py --table URI --output faces.png --order "lpips" --limit 48
    python jobs/render_latents.py --table URI --output walk.webp --ids A B C --frames 30 --closed
    python jobs/render_latents.py --table URI --output mix.png --mix A:0-3 B:4-
    python jobs/render_latents.py --table URI --output means.png --group-by "width > 600"
    python jobs/render_latents.py --table URI --output pictures --truncation 0.7

The name of --output says what is written: *.png a grid, *.webp, *.gif or *.mp4 an animation (MP4
needs the extra `video`), a folder one PNG per face, as --as images of the export does. Faces are
chosen by --where, --order and --limit, or listed by --ids. --frames N walks in a straight line of
W+ with N pictures from each face to the next. The pictures of --mix are its faces and then the mix,
those of --group-by the mean face of each value of an SQL expression.

exit code  0 done   1 a read or a write failed   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, get_args

from pipeline.cli import (
    add_count,
    add_renderer,
    add_selection,
    job_parser,
    number,
    positive,
    print_result,
    refuse_unused,
)
from pipeline.config_loading import flag_of
from pipeline.editing.animation import FPS, SUFFIXES, check_animation
from pipeline.editing.mixing import MixSource, parse_mix
from pipeline.errors import ConfigError
from pipeline.interop.exporting import EXPORT_OUTPUT, NamedSelection, Naming
from pipeline.storage import check_outside
from pipeline.table import open_table
from pipeline.table.model_lookup import check_model_of, model_of

if TYPE_CHECKING:
    from pipeline.editing.rendering import CodeSequence
    from pipeline.interop.pictures import Drawing
    from pipeline.models import RestyleModel  # PyTorch is slow to import

PICTURES: Final = "images"
GRID: Final = "grid"
ANIMATION: Final = "animation"
FRAMES = 30  # default from face to face in an animation
_KINDS = {GRID: "a grid (*.png)", ANIMATION: "an animation", PICTURES: "a folder"}
_SELECTING = ("where", "order", "limit")
# Flags that have no meaning for some outputs.
_ONLY_FOR = {
    "columns": (GRID,),
    "title": (GRID,),
    "mix": (GRID,),
    "group_by": (GRID,),
    "frames": (GRID, ANIMATION),
    "closed": (GRID, ANIMATION),
    "ids": (GRID, ANIMATION),
    "fps": (ANIMATION,),
    "names": (PICTURES,),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, render, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(
        lambda: {"output": args.output, "as": _kind(args), **_render(args)}, given_table=True
    )


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    add_selection(parser)
    parser.add_argument(
        "--output", required=True, metavar="URI", help="*.png, *.webp, *.gif, *.mp4, or a folder"
    )
    parser.add_argument("--ids", nargs="+", metavar="ID", help="image ids of the faces, in order")
    add_count(
        parser,
        "--frames",
        f"pictures from each face to the next, both counted (default: {FRAMES} in an "
        "animation; a grid shows the faces alone)",
    )
    parser.add_argument("--closed", action="store_true", help="walk back to the first face")
    add_count(parser, "--fps", f"frames per second (default {FPS})")
    parser.add_argument(
        "--mix", nargs="+", metavar="ID:ROWS", help="faces and the rows of the code that each gives"
    )
    parser.add_argument("--group-by", metavar="SQL", help="expression on rows; draw mean faces")
    add_count(parser, "--columns", "of the grid (default: about as many as rows)")
    parser.add_argument("--title", default="", help="text above the grid")
    parser.add_argument(
        "--truncation",
        type=number(),
        default=1.0,
        metavar="PSI",
        help="factor of each code's distance to the average code (default 1: none)",
    )
    parser.add_argument(
        "--size",
        type=_size,
        metavar="N|crop",
        help="width of each picture; crop: of the encoder's input (default: the generator's)",
    )
    parser.add_argument(
        "--names", choices=get_args(Naming), help="names of files in a folder (default basename)"
    )
    add_renderer(parser)
    return parser


def _size(text: str) -> int | str:
    return text if text == "crop" else positive(text)


def _kind(args: argparse.Namespace) -> str:
    """Return what to write, by the name of `--output`; `ConfigError` for another file type."""
    suffix = PurePosixPath(args.output).suffix.lower()
    if suffix == ".png":
        return GRID
    if suffix in SUFFIXES:
        return ANIMATION
    if suffix in (".jpg", ".jpeg", ".avi", ".mov", ".mkv", ".webm", ".npy", ".pt"):
        raise ConfigError(
            f"--output {args.output}: name a grid *.png, an animation {', '.join(SUFFIXES)}, or a "
            "folder for one picture per face"
        )
    return PICTURES


def _render(args: argparse.Namespace) -> dict[str, Any]:
    """Render as the flags say; return the rest of the JSON line."""
    kind = _kind(args)
    _check_flags(args, kind)
    check_outside(args.table, args.output, EXPORT_OUTPUT if kind == PICTURES else None)
    table = open_table(args.table)
    naming: Naming = args.names or "basename"
    selection = NamedSelection(table, args.where, args.order, args.limit, naming=naming)
    mixed = parse_mix(args.mix, table.spec.columns.n_styles) if args.mix else []
    check_model_of(table, args.model)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.interop.pictures import Drawing, export_pictures
    from pipeline.inversion import ready_device

    model = model_of(table, args.model, ready_device(args.device))
    width = model.input_size[1] if args.size == "crop" else args.size
    drawing = Drawing(width, psi=args.truncation)
    if kind == PICTURES:
        return {"pictures": export_pictures(selection, model, args.output, PICTURES, drawing)}
    return _save(args, kind, _sequence(args, kind, selection, mixed), model, drawing)


def _check_flags(args: argparse.Namespace, kind: str) -> None:
    """Raise `ConfigError` for flags that do not go together."""
    refuse_unused(args, kind, _ONLY_FOR, _KINDS.__getitem__)
    if kind == ANIMATION:
        check_animation(args.output, args.fps or FPS)
    chosen = [flag_of(name) for name in ("mix", "group_by", "ids") if getattr(args, name)]
    if len(chosen) > 1:
        raise ConfigError(f"{chosen[0]} and {chosen[1]} do not go together")
    walks = [name for name in ("frames", "closed") if getattr(args, name)]
    if walks and (args.mix or args.group_by):
        raise ConfigError(f"--{walks[0]} is for walks, not for {chosen[0]}")
    if args.closed and not args.frames and kind == GRID:
        raise ConfigError("--closed is for walks: give --frames too")
    named = [name for name in _SELECTING if getattr(args, name)]
    if named and (args.mix or args.ids):
        raise ConfigError(f"--{named[0]} chooses faces, but {chosen[0]} names them: give one")


def _sequence(
    args: argparse.Namespace, kind: str, selection: NamedSelection, mixed: Sequence[MixSource]
) -> CodeSequence:
    """Return the codes that the flags ask for."""
    from pipeline.editing import rendering

    if mixed:
        return rendering.mixed_faces(selection.table, mixed)
    if args.group_by:
        return rendering.mean_faces(selection, args.group_by)
    if args.ids:
        faces = rendering.faces_by_id(selection.table, args.ids)
    else:
        faces = rendering.chosen_faces(selection)
    frames = args.frames or (FRAMES if kind == ANIMATION else None)
    return rendering.walk_over(faces, frames, closed=args.closed) if frames else faces


def _save(
    args: argparse.Namespace,
    kind: str,
    sequence: CodeSequence,
    model: RestyleModel,
    drawing: Drawing,
) -> dict[str, Any]:
    from pipeline.editing.rendering import save_animation, save_grid

    if kind == ANIMATION:
        drawn = save_animation(args.output, sequence, model, drawing, fps=args.fps or FPS)
    else:
        title = args.title or args.group_by or ""
        drawn = save_grid(args.output, sequence, model, drawing, columns=args.columns, title=title)
    return drawn._asdict()


if __name__ == "__main__":
    sys.exit(main())
