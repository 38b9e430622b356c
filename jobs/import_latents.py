"""Make a table out of codes that another program found.

    python jobs/import_latents.py --from latents.npy --model restyle.pt --output URI
    python jobs/import_latents.py --from codes/ --model demo --output URI --images photos/
    python jobs/import_latents.py --from codes.npy --names names.txt --model FILE --output URI

--from is the published scripts' latents.npy, whose pickle is read without running it; one array of
many codes [n, n_styles, 512] (e4e's latents.pt, InterFaceGAN's .npy, the `w` of NVIDIA's .npz),
which --names names one a line, else they are numbered; or a folder of .npy, .pt and .npz files of
one code each, or one such file. --refined-from TABLE says what the codes began as: each row's
`refined_from` is the face of that table whose image id, key or file name it has.
Without --images what nobody measured is null. With them every code is matched to its image by name,
rendered (or compared with the scripts' own pictures, --results FOLDER) and measured as the
inversion job does, under the same shards and keys. Ambiguous names are refused with the list. Run
the same command again to continue.

exit code  0 done   1 a read or a write failed, run again   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from pipeline.choices import CodeType, Device, Fit, Icc
from pipeline.cli import add_flags, exit_code_of, job_parser, positive
from pipeline.config_loading import FaceSearch, ModelFlags, fill
from pipeline.errors import ConfigError, printable
from pipeline.interop.code_files import CodeFiles, faces_of, open_codes
from pipeline.interop.lineage import lineage_of
from pipeline.metrics.names import check_identity
from pipeline.models.domains import treatment_for
from pipeline.models.files import ModelHints, bundle_names, check_model, hints_of
from pipeline.storage import (
    FILES_PER_SHARD,
    ReadOptions,
    canonical_uri,
    check_output,
    list_shards,
)
from pipeline.table import TABLE_OUTPUT, open_table

if TYPE_CHECKING:
    from pipeline.interop.importing import Importing
    from pipeline.interop.measuring import Measuring
    from pipeline.models import RestyleModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Import; print one JSON line; the exit code."""
    asked = _parser().parse_args(arguments)
    return exit_code_of(lambda: _report(asked))


def _report(asked: argparse.Namespace) -> int:
    print(json.dumps({**_import(asked), "table": asked.output}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    parser.add_argument("--from", dest="codes", required=True, metavar="URI")
    parser.add_argument("--names", metavar="FILE", help="of an array's codes: one a line")
    parser.add_argument("--refined-from", metavar="TABLE", help="the table that they began as")
    parser.add_argument("--model", required=True, help="that the codes belong to")
    add_flags(parser, ModelFlags)
    parser.add_argument("--output", required=True, metavar="URI", help="the table's folder")
    parser.add_argument("--method", default="imported", help="the word in the column `method`")
    parser.add_argument("--images", metavar="URI", help="what was inverted: measure against it")
    parser.add_argument("--results", metavar="URI", help="pictures, <step>/<name>; not rendered")
    parser.add_argument(
        "--prealigned",
        action=argparse.BooleanOptionalAction,
        help="images are aligned crops (default: as the model's domain asks)",
    )
    parser.add_argument("--fit", choices=get_args(Fit), help="of prealigned images")
    add_flags(parser, FaceSearch)
    parser.add_argument("--icc", choices=get_args(Icc), help="colour profiles (default apply)")
    parser.add_argument("--identity", help="identity network: dlib, none, or a weight file")
    parser.add_argument(
        "--latent-dtype", choices=get_args(CodeType), default="float16", help="of w_plus"
    )
    parser.add_argument(
        "--part-size", type=positive, default=256, metavar="N", help="samples a part"
    )
    parser.add_argument(
        "--files-per-shard",
        type=positive,
        default=FILES_PER_SHARD,
        metavar="N",
        help="images of a folder that make one shard",
    )
    parser.add_argument(
        "--sniff",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="--images without a known extension: read what are images by their first bytes",
    )
    devices = get_args(Device)
    parser.add_argument(
        "--device", default="cpu", choices=devices, help="that renders and measures"
    )
    return parser


def _import(asked: argparse.Namespace) -> dict[str, object]:
    codes = _check(asked)
    # PyTorch is slow to import: what is wrong is told before.
    from pipeline.interop.importing import Importing, ImportSettings
    from pipeline.inversion import ready_device
    from pipeline.models import load_model

    settings = ImportSettings(
        model=asked.model if asked.model in bundle_names() else canonical_uri(asked.model),
        method=asked.method,
        latent_dtype=asked.latent_dtype,
        part_size=asked.part_size,
        files_per_shard=asked.files_per_shard,
        sniff=asked.sniff,
        images=asked.images and canonical_uri(asked.images),
        **_hints(asked),
    )
    device = ready_device(asked.device)
    lineage = lineage_of(codes.names, asked.refined_from) if asked.refined_from else None
    model = load_model(asked.model, device, **_hints(asked))
    if not asked.images:
        return _run(Importing(codes, model, settings, lineage=lineage), asked.output)
    several = any(face.face_index for _, faces in faces_of(codes.names) for face in faces)
    with _measuring(asked, model, device, several=several) as measuring:
        return _run(Importing(codes, model, settings, measuring, lineage), asked.output)


def _check(asked: argparse.Namespace) -> CodeFiles:
    """Return the codes; raise a `RequestError` for what is wrong, without importing PyTorch."""
    check_output(asked.output, TABLE_OUTPUT)
    if not asked.images:
        for name in ("results", "prealigned", "fit", "icc", "identity", *FaceSearch.model_fields):
            if getattr(asked, name):
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} is for images, to measure by: name them with --images")
    check_model(asked.model)
    if asked.identity:
        check_identity(asked.identity)
    if asked.images:
        list_shards(asked.images, options=ReadOptions(sniff=asked.sniff)).first()
    if asked.refined_from:
        open_table(asked.refined_from)
    codes = open_codes(asked.codes, asked.names)
    faces_of(codes.names)
    return codes


def _hints(asked: argparse.Namespace) -> ModelHints:
    """What the flags say of the model, checked."""
    given = {name: getattr(asked, name) for name in ModelFlags.model_fields}
    return hints_of(fill(ModelFlags, None, given).model_dump())


def _run(importing: Importing, root: str) -> dict[str, object]:
    counts = importing.run(root)
    for note in importing.notes:
        print(note, file=sys.stderr)
    return counts


def _measuring(
    asked: argparse.Namespace, model: RestyleModel, device: str, *, several: bool
) -> Measuring:
    from pipeline.alignment import AlignmentSettings
    from pipeline.interop.measuring import Measuring, Result
    from pipeline.metrics import Meter

    treatment = treatment_for(
        model, prealigned=asked.prealigned, identity=asked.identity, fit=asked.fit
    )
    given = {name: getattr(asked, name) for name in FaceSearch.model_fields}
    search = fill(FaceSearch, None, given)
    print(printable(treatment.description), file=sys.stderr)
    alignment = AlignmentSettings(
        faces="all" if several else "largest",
        prealigned=treatment.prealigned,
        fit=treatment.fit,
        output_size=model.input_size,
        **search.model_dump(),
        icc=asked.icc or "apply",
    )
    results = Result(asked.results) if asked.results else None
    return Measuring(model, alignment, Meter(device, treatment.identity), results)


if __name__ == "__main__":
    sys.exit(main())
