"""What is to be done: the model and settings as the table records them, and the shards' states."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from pipeline.alignment import AlignmentSettings
from pipeline.config import JobConfig
from pipeline.engine.cluster import in_cluster
from pipeline.engine.invert import InvertSettings
from pipeline.engine.read import ShardWork
from pipeline.errors import ConfigError
from pipeline.metrics import Meter
from pipeline.models import RestyleModel, load_model
from pipeline.storage import Shard, Store, list_shards, read_samples
from pipeline.table import (
    DESCRIPTION_NAME,
    Columns,
    Description,
    ShardState,
    TableWriter,
    check_same,
    open_for_writing,
    read_description,
)

# Raised by whoever changes what the same weights and settings compute.
NUMERICS_VERSION = 1
FACE_DOMAINS = ("faces", "toonify", "unknown")
# These guard the aligner's process and change no row.
_NO_RESULT = {"row_timeout_s", "memory_limit_mib"}


@dataclass(frozen=True)
class Recipe:
    """How every part of the table is made; small, and the same in every process."""

    alignment: AlignmentSettings
    inversion: InvertSettings
    description: Description

    @property
    def columns(self) -> Columns:
        """The table's columns."""
        return self.description.columns


@dataclass(frozen=True)
class Plan:
    """The shards that are to do, and what is done already."""

    recipe: Recipe
    writer: TableWriter
    works: list[ShardWork]
    states: dict[str, ShardState]  # of the shards to do
    done_shards: int
    done_samples: int
    done_parts: int  # of shards that are done, and those that the others have

    @property
    def bytes_to_do(self) -> int:
        """Size of the input that is to be read, in bytes."""
        return sum(work.shard.size for work in self.works)


def _alignment(config: JobConfig, model: RestyleModel) -> AlignmentSettings:
    if not config.prealigned and model.domain not in FACE_DOMAINS:
        raise ConfigError(
            f"the model '{model.name}' inverts images of {model.domain}, which have no faces to "
            "align: add --prealigned"
        )
    return AlignmentSettings(
        faces=config.faces,
        prealigned=config.prealigned,
        min_face_px=config.min_face,
        output_size=model.input_size,
        max_pixels=config.max_pixels,
        row_timeout_s=config.image_timeout,
    )


def _public_config(config: JobConfig) -> dict[str, Any]:
    return config.model_dump(exclude_none=True)


def make_recipe(config: JobConfig) -> Recipe:
    """Load the model and the metric networks once to learn what the table is to say of them."""
    if config.device == "cuda" and not in_cluster() and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU on this machine")
    model = load_model(config.model)
    alignment = _alignment(config, model)
    meter = Meter("cpu", config.identity, config.best_step_by)
    if model.input_channels == 3 and config.steps > 1:
        raise ConfigError(f"the model '{model.name}' works in one pass: use --steps 1")
    settings = {
        "numerics": NUMERICS_VERSION,
        "model": model.fingerprint,
        "steps": config.steps,
        "alignment": {k: v for k, v in asdict(alignment).items() if k not in _NO_RESULT},
        # The definition has the weights' hash, whatever the file is called.
        "identity": meter.definitions["id_similarity"],
        "best_step_by": config.best_step_by,
    }
    columns = Columns(
        n_styles=model.n_styles,
        w_plus_dtype=config.latent_dtype,
        all_steps=config.keep_steps,
        aligned_jpeg=config.keep_crops,
        reconstruction_jpeg=config.keep_reconstructions,
    )
    description = Description(
        columns=columns,
        settings=settings,
        layout=config.layout(),
        config=_public_config(config),
        model=model.metadata,
        metrics=meter.definitions,
    )
    inversion = InvertSettings(
        model=config.model,
        steps=config.steps,
        identity=config.identity,
        best_step_by=config.best_step_by,
        device=config.device,
        largest_code=float(np.finfo(config.latent_dtype).max),
        batch_size=config.batch_size,
        keep_steps=config.keep_steps,
        keep_crops=config.keep_crops,
        keep_reconstructions=config.keep_reconstructions,
    )
    return Recipe(alignment, inversion, description)


def count_samples(shard: Shard, at_most: int | None = None) -> int:
    """Number of samples in `shard`, counted by reading it unless it is a slice of a folder."""
    if shard.kind == "folder":
        return len(shard.names) if at_most is None else min(len(shard.names), at_most)
    return sum(1 for _ in itertools.islice(read_samples(shard), at_most))


def take_first(
    states: Iterable[ShardState], limit: int | None
) -> Iterator[tuple[ShardState, int | None]]:
    """The states that hold the first `limit` samples, with how many to take (None: all)."""
    left = limit
    for state in states:
        if left is None:
            yield state, None
            continue
        if left == 0:
            return
        count = state.manifest.samples if state.manifest else count_samples(state.shard, left)
        taken = min(left, count)
        left -= taken
        yield state, taken


def make_plan(config: JobConfig, *, dry_run: bool = False) -> Plan:
    """Open the table, compare the input with it, and list what is to do.

    Raises a `RequestError` for whatever is wrong with the request, before any work. Writes
    `_table.json` if the table is new, and nothing with `dry_run`.
    """
    recipe = make_recipe(config)
    shards = list_shards(config.input, files_per_shard=config.files_per_shard)
    first = next(shards)  # an input that is not there is refused before the table is made
    shards = itertools.chain([first], shards)
    if dry_run:
        store = Store(config.output)
        if store.exists(DESCRIPTION_NAME):
            check_same(config.output, read_description(store), recipe.description)
        writer = TableWriter(config.output, recipe.description, part_size=config.part_size)
    else:
        writer = open_for_writing(config.output, recipe.description, part_size=config.part_size)
    works, states = [], {}
    done_shards = done_samples = done_parts = 0
    for state, take in take_first(writer.states(shards), config.limit):
        if state.manifest:
            done_shards += 1
            done_samples += state.manifest.samples
            done_parts += len(state.manifest.parts)
            continue
        done_parts += len(state.parts)
        done_samples += sum(summary.samples for summary in state.parts.values())
        works.append(ShardWork(state.shard, config.part_size, frozenset(state.parts), take))
        states[state.shard.shard_id] = state
    return Plan(recipe, writer, works, states, done_shards, done_samples, done_parts)
