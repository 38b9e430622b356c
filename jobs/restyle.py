"""Run a job of restyle-pipeline by its short name.

    restyle invert --input s3://bucket/photos --output s3://bucket/latents
    restyle query s3://bucket/latents "SELECT image_id, lpips FROM latents ORDER BY lpips LIMIT 10"

`restyle JOB --help` lists the flags of a job. `jobs/*.py` are the same programs, for use without
an installed package (`ray job submit`). Completion of names and flags, for bash and zsh:
`eval "$(register-python-argcomplete restyle)"`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from pipeline import __version__
from pipeline.cli import job_parser

# Name of a job: its module beside this one, and what it does.
JOBS = {
    "invert": ("invert_dataset", "images to a table of W+ latents"),
    "refine": ("refine_dataset", "chosen faces of a table again, by another method"),
    "status": ("status", "progress of a table"),
    "query": ("query_latents", "SQL over a table"),
    "sheet": ("contact_sheet", "picture of some faces of a table, step by step"),
    "find": ("find_faces", "neighbours, duplicates and clusters of faces"),
    "render": ("render_latents", "grid, walk, style mix or mean faces from codes"),
    "report": ("report", "web page about a table: quality, rejects, best and worst faces"),
    "evaluate": ("evaluate", "report that compares tables"),
    "edit": ("edit_latents", "faces of a table edited by directions"),
    "direction": ("fit_direction", "direction fitted to labels of a table"),
    "export": ("export_table", "codes or pictures of a table as files"),
    "import": ("import_latents", "codes of another program to a table"),
    "forget": ("forget", "erase images from a table and keep them out"),
    "convert": ("convert_model", "official checkpoint to a model bundle"),
    "train": ("train_restyle", "train an encoder"),
    "calibrate": ("calibrate_stop", "choose the rule of --steps auto"),
    "benchmark": ("benchmark", "measure the engine"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job that the first argument names; return its exit code, 2 for an unknown job."""
    given = list(sys.argv[1:] if argv is None else argv)
    name = _completed_job() or (given[0] if given else "")
    if name not in JOBS:
        return _no_job(given)
    sys.argv[0] = f"restyle {name}"  # which usage and errors show
    package = f"{__package__}." if __package__ else ""
    code: int = import_module(package + JOBS[name][0]).main(given[1:])
    return code


def _completed_job() -> str:
    """Return the job whose flags a shell wants to complete, and leave its name out of the words."""
    words = os.environ.get("COMP_LINE", "").split()
    if "_ARGCOMPLETE" not in os.environ or len(words) < 2 or words[1] not in JOBS:
        return ""
    os.environ["_ARGCOMPLETE"] = "2"  # the place of the first word that is the job's own
    return words[1]


def _no_job(given: list[str]) -> int:
    parser = job_parser(__doc__, reads_only=True)
    parser.prog = "restyle"
    width = max(map(len, JOBS))
    listed = "\n".join(f"  {name:{width}}  {text}" for name, (_, text) in JOBS.items())
    parser.epilog = f"jobs:\n{listed}"
    parser.add_argument("--version", action="version", version=f"restyle-pipeline {__version__}")
    parser.add_argument("job", choices=JOBS, metavar="JOB", help="one of the jobs below")
    parser.add_argument("flags", nargs=argparse.REMAINDER, help="of that job")
    parser.parse_args(given or ["--help"])
    return 2  # never reached: each of `given` that comes here ends the parser


if __name__ == "__main__":
    sys.exit(main())
