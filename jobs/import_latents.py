"""Make a table of the codes of another program.

    python jobs/import_latents.py --from latents.npy --model restyle.pt --output URI
    python jobs/import_latents.py --from codes/ --model demo --output URI --images photos/
    python jobs/import_latents.py --from codes.npy --names names.txt --model FILE --output URI

--from is the published scripts' latents.npy, whose pickle is read without running it; one array of
many codes [n, n_styles, 512] (e4e's latents.pt, InterFaceGAN's .npy, the `w` of NVIDIA's .npz),
with --names one name per line, else numbered; a folder of .npy, .pt and .npz files of one code
each, or one such file; or Parquet files or WebDataset tars, as jobs/export_table.py writes them.
--refined-from TABLE is the table that the codes came from: each row's `refined_from` is the face
there with its image id, key or file name. Parquet files and tars that have the URI of their table
need no --refined-from.
Without --images all metrics are null. With --images each code is matched to its image by name,
rendered (or compared with the scripts' own pictures, --results FOLDER) and measured as the
inversion job does, under the same shards and keys. Ambiguous names are refused with the list. Run
the same command again to continue.

exit code  0 done   1 a read or a write failed, run again   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.choices import EARLIER_SEARCH
from pipeline.cli import add_count, add_device, add_flags, job_parser, print_result
from pipeline.config import MODEL_SETTINGS, JobConfig, fill_part
from pipeline.config_loading import flag_of
from pipeline.errors import ConfigError, printable
from pipeline.interop.code_files import CodeFiles, faces_of, open_codes
from pipeline.interop.lineage import Lineage, lineage_of, lineage_of_export
from pipeline.metrics.names import check_identity
from pipeline.models.domains import treatment_for
from pipeline.models.files import bundle_names, check_model, hints_of
from pipeline.storage import (
    ReadOptions,
    Store,
    canonical_uri,
    check_output,
    list_shards,
)
from pipeline.table import TABLE_OUTPUT, open_table

if TYPE_CHECKING:
    from pipeline.interop.importing import Importing
    from pipeline.interop.measuring import Measuring
    from pipeline.models import RestyleModel

# Settings of the inversion job that mean the same here: of images to measure by, and of all.
OF_IMAGES = ("prealigned", "fit", *EARLIER_SEARCH, "icc", "identity")
SHARED = (*MODEL_SETTINGS, *OF_IMAGES, "latent_dtype", "files_per_shard", "sniff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check, import, print one JSON line; return the exit code."""
    args = _parser().parse_args(arguments)
    return print_result(lambda: {**_import(args), "table": args.output})


def _parser() -> argparse.ArgumentParser:
    parser = job_parser(__doc__)
    parser.add_argument("--from", dest="codes", required=True, metavar="URI", help="the codes")
    parser.add_argument("--names", metavar="FILE", help="names of an array's codes, one per line")
    parser.add_argument("--refined-from", metavar="TABLE", help="table that the codes came from")
    parser.add_argument("--model", required=True, help="model of the codes")
    parser.add_argument("--output", required=True, metavar="URI", help="the table's folder")
    parser.add_argument("--method", default="imported", help="the word in the column `method`")
    parser.add_argument("--images", metavar="URI", help="inverted images, to measure against")
    parser.add_argument(
        "--results", metavar="URI", help="pictures <step>/<name>, instead of rendering"
    )
    add_count(parser, "--part-size", "samples per part", 256)
    add_flags(parser, JobConfig, SHARED)
    add_device(parser, "device that renders and measures")
    return parser


def _import(args: argparse.Namespace) -> dict[str, object]:
    config = fill_part(SHARED, vars(args))
    codes = _check(args, config)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.interop.importing import Importing, ImportSettings
    from pipeline.inversion import ready_device
    from pipeline.models import load_model

    hints = hints_of(config.model_dump())
    settings = ImportSettings(
        model=args.model if args.model in bundle_names() else canonical_uri(args.model),
        method=args.method,
        latent_dtype=config.latent_dtype,
        part_size=args.part_size,
        files_per_shard=config.files_per_shard,
        sniff=config.sniff,
        images=args.images and canonical_uri(args.images),
        **hints,
    )
    device = ready_device(args.device)
    lineage = _lineage(args.refined_from, codes)
    model = load_model(args.model, device, **hints)
    if not args.images:
        return _run(Importing(codes, model, settings, lineage=lineage), args.output)
    many_faces = any(face.face_index for _, faces in faces_of(codes.names) for face in faces)
    results = Store(args.results) if args.results else None
    with _measuring(config, results, model, device, many_faces=many_faces) as measuring:
        return _run(Importing(codes, model, settings, measuring, lineage), args.output)


def _lineage(table: str | None, codes: CodeFiles) -> Lineage | None:
    """Return the faces that the codes began as: in `table`, or as an export says it."""
    if table is None:
        return lineage_of_export(codes.origin)
    return lineage_of(codes.names, table, codes.origin.image_ids if codes.origin else None)


def _check(args: argparse.Namespace, config: JobConfig) -> CodeFiles:
    """Return the codes; raise a `RequestError` for what is wrong, without importing PyTorch."""
    check_output(args.output, TABLE_OUTPUT)
    given = [flag_of(name) for name in ("results", *OF_IMAGES) if vars(args)[name] is not None]
    if given and not args.images:
        raise ConfigError(f"{given[0]} is for images, to measure by: name them with --images")
    check_model(args.model)
    if config.identity:
        check_identity(config.identity)
    if args.images:
        list_shards(args.images, options=ReadOptions(sniff=config.sniff)).first()
    if args.refined_from:
        open_table(args.refined_from)
    codes = open_codes(args.codes, args.names)
    faces_of(codes.names)
    return codes


def _run(importing: Importing, root: str) -> dict[str, object]:
    counts = importing.run(root)
    for note in importing.notes:
        print(note, file=sys.stderr)
    return counts


def _measuring(
    config: JobConfig, results: Store | None, model: RestyleModel, device: str, *, many_faces: bool
) -> Measuring:
    from pipeline.alignment import AlignmentSettings
    from pipeline.interop.measuring import Measuring
    from pipeline.metrics import MetricEvaluator

    treatment = treatment_for(
        model, prealigned=config.prealigned, identity=config.identity, fit=config.fit
    )
    print(printable(treatment.description), file=sys.stderr)
    alignment = AlignmentSettings(
        faces="all" if many_faces else "largest",
        prealigned=treatment.prealigned,
        fit=treatment.fit,
        output_size=model.input_size,
        **config.model_dump(include={"icc", *EARLIER_SEARCH}),
    )
    return Measuring(model, alignment, MetricEvaluator(device, treatment.identity), results)


if __name__ == "__main__":
    sys.exit(main())
