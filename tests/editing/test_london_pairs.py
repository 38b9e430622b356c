"""A direction fitted to some people's smiles orders the photos of others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline import Aligner, invert, load_model, open_table
from pipeline.alignment import AlignmentSettings
from pipeline.editing.direction_fit import FitSettings, fit_direction, project
from pipeline.editing.labels import Labels
from pipeline.models.pixels import to_unit
from pipeline.table import Columns
from pipeline.table.selection import Selection
from tests.table.rows import face_row, shard, state_of, writer

GROUPS = 4


# Aligns and inverts 72 photos of 1350 px: a minute of a core.
@pytest.mark.slow
def test_smiles_of_others_are_ordered(shared: Path, tmp_path: Path) -> None:
    model = load_model("demo")
    aligner = Aligner(AlignmentSettings(output_size=model.input_size))
    photos = sorted((shared / "photos" / "london").glob("*.jpg"))
    with ThreadPoolExecutor(2) as pool:
        faces = list(pool.map(lambda path: aligner.align(path.read_bytes()).faces[0], photos))
    targets = to_unit(np.stack([face.pixels for face in faces]))
    codes = invert(model, targets, steps=5).w_plus[:, -1].cpu().numpy()
    rows = [
        face_row(path.stem, w_plus=code, source_sha256=path.stem)
        for path, code in zip(photos, codes, strict=True)
    ]
    table = writer(tmp_path / "table", part_size=len(rows), columns=Columns(model.n_styles))
    table.write_part(shard(), 0, samples=len(rows), latents=rows, rejects=[])
    table.commit_shard(shard(), state_of(table, shard()).parts.values())

    settings = FitSettings("ridge", "w+")
    reference = model.latent_avg.double().numpy()
    people = sorted({path.stem.split("_")[0] for path in photos})
    code_of = {path.stem: code for path, code in zip(photos, codes, strict=True)}
    ordered = 0
    for group in range(GROUPS):
        unseen = people[group::GROUPS]
        seen = "split_part(key, '_', 1) NOT IN (" + ", ".join(f"'{one}'" for one in unseen) + ")"
        labels = Labels(
            Selection(open_table(str(tmp_path / "table")), f"{seen} AND key LIKE '%_smiling'"),
            against=f"{seen} AND key LIKE '%_neutral'",
            split_by="split_part(key, '_', 1)",
        )
        rows_of_fit = fit_direction(labels, settings, reference).rows
        for one in unseen:
            pair = np.stack([code_of[f"{one}_neutral"], code_of[f"{one}_smiling"]])
            neutral, smiling = project(pair, rows_of_fit)
            ordered += smiling > neutral
    assert len(people) == 36
    assert ordered >= 0.9 * len(people), f"{ordered} of {len(people)}"
