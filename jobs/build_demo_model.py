"""Build a demo model from (w, image) pairs: fit the generator, grow it, train its encoder.

    python jobs/build_demo_model.py --pairs PAIRS
    python jobs/build_demo_model.py --pairs PAIRS --look cartoon --base demo

PAIRS is a folder of pairs-*.tar shards (`<key>.jpg` and `<key>.w.npy`). The second command makes
the model that draws cartoons: it starts from the first one's bundle and learns the same pairs in a
computed look, at 64 px. Each stage writes a checkpoint to the work folder every few minutes, from
which the same command continues; raise --generator-images, --growth-images or --encoder-images to
train longer. A work folder of another look or base is refused. Each stage says how long it took
over all its runs.
On several cores: torchrun --nproc-per-node 2 jobs/build_demo_model.py --pairs PAIRS

exit code  0 done   1 failed or stopped, run again to continue   2 the request is wrong
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.cli import add_count, exit_code_of, job_parser
from pipeline.models.files import check_model, is_bundle
from pipeline.storage import OutputKind, check_output
from pipeline.storage.readers.pairs import pair_tars

if TYPE_CHECKING:
    from pipeline.demo.plans import DemoPlan
    from pipeline.models import RestyleModel

LOOKS = {"photo": "demo", "cartoon": "demo-toonify"}  # and the models that render them


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Parse the flags."""
    parser = job_parser(__doc__)
    parser.add_argument("--pairs", required=True, help="folder of pairs-*.tar")
    parser.add_argument("--look", choices=LOOKS, default="photo", help="what the model renders")
    parser.add_argument("--base", default="demo", help="with a look: the model to start from")
    parser.add_argument("--work", help="checkpoints, logs (default: build/NAME)")
    parser.add_argument("--output", help="bundle to write (default: the embedded one)")
    add_count(parser, "--generator-images", "in all")
    add_count(parser, "--growth-images", "in all, at 128 px")
    add_count(parser, "--encoder-images", "in all")
    return parser.parse_args(argv)


def planned(arguments: argparse.Namespace) -> DemoPlan:
    """Return the plan of the look, with the lengths that the flags give."""
    from pipeline.demo.plans import CARTOON, FACES

    plan = CARTOON if arguments.look == "cartoon" else FACES
    generator_images = arguments.generator_images or plan.generator.images
    encoder_images = arguments.encoder_images or plan.encoder.images
    growth = plan.growth
    if growth and arguments.growth_images:
        growth = replace(growth, loop=replace(growth.loop, images=arguments.growth_images))
    return replace(
        plan,
        generator=replace(plan.generator, images=generator_images),
        encoder=replace(plan.encoder, images=encoder_images),
        growth=growth,
    )


def run(arguments: argparse.Namespace) -> int:
    """Read pairs, train generator and encoder, write the bundle."""
    shards = pair_tars(arguments.pairs)
    name = LOOKS[arguments.look]
    work = arguments.work or f"build/{name}"
    output = arguments.output or f"pipeline/models/bundles/{name}"
    check_output(output, OutputKind("a model bundle", is_bundle))
    if arguments.look != "photo":
        check_model(arguments.base)
    # PyTorch is slow to import, so the request is checked first.
    from pipeline.demo.build import build, draw_cartoons
    from pipeline.demo.plans import check_plan
    from pipeline.models import load_model, save_bundle
    from pipeline.training.distributed import join_group, leave_group
    from pipeline.training.latent_pairs import load_pairs

    group, plan = join_group(), planned(arguments)
    base: RestyleModel | None = load_model(arguments.base) if arguments.look != "photo" else None
    check_plan(plan, base, work)  # before cartoons are drawn, which takes minutes

    started = time.monotonic()
    size = plan.size
    if arguments.look == "cartoon":  # drawn twice as large
        pairs = draw_cartoons(load_pairs(shards, 2 * size), size, work)
    else:
        pairs = load_pairs(shards, size)
    print(f"{len(pairs)} pairs at {size} px: {time.monotonic() - started:.0f} s", flush=True)
    model, seconds = build(plan, pairs, work, base)
    leave_group()
    if not group.is_main_process:
        return 0
    save_bundle(model, output, stored="float16")
    notes = dict(model.card.notes)
    print(json.dumps({"bundle": output, "seconds": seconds, **notes}))
    return 0


def main(argv: list[str]) -> int:
    """Parse, check, build, report; return the exit code."""
    arguments = parse_arguments(argv)
    return exit_code_of(lambda: run(arguments), stopped="run the same command again to continue")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
