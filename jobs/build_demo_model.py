"""Build the embedded demo model from (w, image) pairs: fit the generator, train its encoder.

    python jobs/build_demo_model.py --pairs PAIRS --work build/demo --output BUNDLE

PAIRS is a folder of pairs-*.tar shards (`<key>.jpg` and `<key>.w.npy`). Both stages write a
checkpoint to the work folder every few minutes and go on from it when the command is run again;
raise --generator-images or --encoder-images to train longer. Each stage says how long it took.
On several cores: torchrun --nproc-per-node 2 jobs/build_demo_model.py --pairs PAIRS
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from pipeline.models import save_bundle
from pipeline.training.demo import assemble
from pipeline.training.encoder import EncoderPlan, train_encoder
from pipeline.training.generator import GeneratorPlan, fit_generator, repeat_rows
from pipeline.training.pairs import load_pairs
from pipeline.training.parallel import join_group, leave_group
from pipeline.training.schedule import last_report


def parse_arguments() -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pairs-*.tar")
    parser.add_argument("--work", type=Path, default=Path("build/demo"), help="checkpoints, logs")
    parser.add_argument("--output", default="pipeline/models/bundles/demo", help="bundle to write")
    parser.add_argument("--generator-images", type=int, default=GeneratorPlan.images, metavar="N")
    parser.add_argument("--encoder-images", type=int, default=EncoderPlan.images, metavar="N")
    return parser.parse_args()


def main() -> None:
    """Pairs, generator, encoder, bundle."""
    arguments = parse_arguments()
    group = join_group()
    generator_plan = GeneratorPlan(images=arguments.generator_images)
    encoder_plan = EncoderPlan(images=arguments.encoder_images)
    seconds = {}

    started = time.monotonic()
    size = max(generator_plan.channels)
    pairs = load_pairs(sorted(arguments.pairs.glob("pairs-*.tar")), size)
    seconds["pairs"] = time.monotonic() - started
    print(f"{len(pairs)} pairs at {size} px read in {seconds['pairs']:.0f} s", flush=True)

    started = time.monotonic()
    generator = fit_generator(generator_plan, pairs, arguments.work)
    seconds["generator"] = time.monotonic() - started
    print(f"generator: {seconds['generator']:.0f} s", flush=True)

    started = time.monotonic()
    train, _ = pairs.split(encoder_plan.held_out)
    latent_avg = repeat_rows(train.w.mean(dim=0)[None], generator.n_styles)[0]
    encoder = train_encoder(encoder_plan, generator, latent_avg, pairs, arguments.work)
    seconds["encoder"] = time.monotonic() - started
    print(f"encoder: {seconds['encoder']:.0f} s", flush=True)

    leave_group()
    if not group.leads:
        return
    notes = {
        "pairs": len(train),
        "generator": last_report(arguments.work / "generator.jsonl"),
        "encoder": last_report(arguments.work / "encoder.jsonl"),
    }
    model = assemble(generator_plan, generator, encoder, latent_avg, notes)
    save_bundle(model, arguments.output, stored="float16")
    print(json.dumps({"bundle": arguments.output, "seconds": seconds, **notes}))


if __name__ == "__main__":
    main()
