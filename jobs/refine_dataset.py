"""Refine faces of a table, chosen by SQL, by optimisation from their codes: a second pass.

    python jobs/refine_dataset.py --table s3://bucket/latents --where "lpips > 0.3" \\
        --steps 300 --output s3://bucket/refined

The images, the model and the alignment are those of the table. Each new row has, in
`refined_from`, the `image_id` of the row that it began as. Run the same command again to continue
after any failure; the last line of stdout is one JSON object.

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from pipeline.choices import EARLIER_ALIGNMENT
from pipeline.cli import add_count, add_flags, job_parser
from pipeline.config import MODEL_SETTINGS, JobConfig, load_config
from pipeline.engine.job import run_to_exit_code
from pipeline.errors import ConfigError, printable
from pipeline.storage import ALL_IMAGES, canonical_uri
from pipeline.table import RunRecord, TableSpec, open_initial_table

# Settings kept from the first pass, so that the same faces are found in the same images.
KEPT = (
    *("input", "target", "model", "faces", "prealigned", "fit", "min_face", "max_pixels"),
    *("identity", "best_step_by", "latent_dtype", "keep_columns", "keep_identity"),
    *MODEL_SETTINGS,
)
OWN = (
    *("distance_weight", "seed", "best_step_by", "latent_dtype"),
    *("keep_steps", "keep_crops", "keep_reconstructions", "keep_columns", "keep_identity"),
    *("part_size", "device"),
    *("precision", "identity_steps", "batch_size", "align_workers", "inverters", "image_timeout"),
)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags into texts; exit with 2 on an unknown one."""
    parser = job_parser(__doc__, last_line=RunRecord().to_dict(None))
    parser.add_argument("--table", required=True, metavar="URI", help="the table of the first pass")
    parser.add_argument("--where", metavar="SQL", help="condition on its rows (default: all)")
    add_count(parser, "--steps", "optimisation steps per face (default 300)")
    parser.add_argument("--output", required=True, metavar="URI", help="the new table")
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done; write nothing"
    )
    add_flags(parser, JobConfig, OWN)
    return parser.parse_args(argv)


def second_pass(table: str, flags: dict[str, Any]) -> JobConfig:
    """Return the config of the job that refines `table`.

    Raises `RequestError` where that is not a table of images.
    """
    spec = open_initial_table(table).spec
    first_config, layout = spec.config, spec.layout
    settings = {name: first_config[name] for name in KEPT if name in first_config}
    settings |= {name: first_config.get(name, then) for name, then in EARLIER_ALIGNMENT.items()}
    # A relative path of the input is relative to where the first pass ran.
    if "input" in first_config and layout.get("input") != printable(
        canonical_uri(str(first_config["input"]))
    ):
        settings["input"] = layout["input"]
    if "input" not in first_config:
        settings |= _of_imported(table, spec)
    kept = ("files_per_shard", "image_column", "limit")
    settings |= {name: layout[name] for name in kept if layout.get(name)}
    settings["sniff"] = layout.get("sniff", False)  # older tables have none
    settings["image_field"] = layout.get("image_field", ALL_IMAGES)
    settings |= {name: value for name, value in flags.items() if value is not None}
    try:
        return load_config(None, settings | {"method": "hybrid", "init": table})
    except ConfigError as error:  # this job's flag for the iterations is --steps
        raise ConfigError(str(error).replace("--iterations:", "--steps:")) from None


def _of_imported(table: str, spec: TableSpec) -> dict[str, Any]:
    """Return the settings of an imported table's images: `jobs/import_latents.py --images`."""
    images = spec.config.get("images")
    if not images:
        raise ConfigError(
            f"the table '{table}' has codes without images, so there is nothing to refine them "
            "by: import them again with --images"
        )
    aligned = spec.settings["measured"]["alignment"]
    kept = {name: aligned[name] for name in ("faces", "prealigned")}
    kept |= {name: aligned.get(name, earlier) for name, earlier in EARLIER_ALIGNMENT.items()}
    fit = {"fit": aligned["fit"]} if aligned["prealigned"] else {}
    return {"input": images, "min_face": aligned["min_face_px"], **kept, **fit}


def main(argv: list[str]) -> int:
    """Parse, check, run, report; return the exit code."""
    flags = vars(parse_arguments(argv))
    table, dry_run = flags.pop("table"), flags.pop("dry_run")
    flags["iterations"] = flags.pop("steps")
    return run_to_exit_code(
        lambda: second_pass(table, flags), dry_run=dry_run, table=flags["output"]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
