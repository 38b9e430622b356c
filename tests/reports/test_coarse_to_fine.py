import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.models import load_model
from pipeline.reports.coarse_to_fine import (
    Change,
    change_by_step,
    detail_tables,
    groups_table,
    laplacian_bands,
)
from pipeline.table import Columns
from tests.reports.compared import face, write_table


@pytest.fixture
def kept(make_table):
    """Return a table of two faces and two steps in float32, for exact comparisons."""
    return make_table(keep_steps=True, latent_dtype="float32")


def codes_of(table, model) -> np.ndarray:
    """Return [faces, 1 + steps, n_styles, 512]: the average code, then each step's."""
    column = table.arrow("SELECT w_plus_per_step AS c FROM latents ORDER BY image_id")["c"]
    codes = np.array(column.to_pylist(), np.float32)
    start = np.broadcast_to(model.latent_avg.numpy(), (len(codes), 1, *codes.shape[2:]))
    return np.concatenate([start, codes], axis=1)


def means(intervals) -> np.ndarray:
    return np.array([[each.mean for each in step] for step in intervals])


def test_layers_are_mean_absolute_residuals(kept, tiny_bundle):
    codes = codes_of(kept, load_model(tiny_bundle))
    expected = np.abs(np.diff(codes, axis=1)).mean(axis=(0, 3))  # [steps, n_styles]
    change = change_by_step(kept, images=0)
    np.testing.assert_allclose(means(change.layers), expected, rtol=1e-5)
    grouped = [expected[:, :4], expected[:, 4:8], expected[:, 8:]]
    columns = np.stack([each.mean(axis=1) for each in grouped], axis=1)
    np.testing.assert_allclose(means(change.groups), columns, rtol=1e-5)
    assert (change.faces, change.rendered, change.without_start) == (2, 0, 0)
    assert change.layers[0][0].n == 2


def test_bands_match_the_rendered_differences(kept, tiny_bundle):
    model = load_model(tiny_bundle)
    with torch.no_grad():
        frames = [model.generator(torch.from_numpy(c)).clamp(-1, 1) for c in codes_of(kept, model)]
    differences = torch.stack(frames).diff(dim=1)  # [faces, steps, 3, 64, 64]
    expected = [
        [float(band.abs().mean()) for band in laplacian_bands(differences[:, step])]
        for step in range(2)
    ]
    change = change_by_step(kept, images=10)
    np.testing.assert_allclose(means(change.bands), expected, rtol=1e-4)
    assert change.rendered == 2
    assert len(change.band_names) == len(change.bands[0]) == 5


def test_number_of_rendered_faces_is_limited(kept):
    change = change_by_step(kept, images=1)
    assert (change.rendered, change.bands[0][0].n, change.layers[0][0].n) == (1, 1, 2)


def test_model_with_other_weights_is_refused(kept):
    path = Path(kept.store.root) / "_table.json"
    document = json.loads(path.read_text())
    document["settings"]["model"] = "0" * 64
    path.write_text(json.dumps(document))
    with pytest.raises(ModelError, match="belong to another model"):
        change_by_step(type(kept)(kept.store.root), images=1)


def test_report_tables_have_all_rows(kept):
    change = change_by_step(kept, images=1)
    sheets = [groups_table({"m": change}), *detail_tables({"m": change})]
    assert [len(sheet.rows) for sheet in sheets] == [2, 2 * 10, 2 * 5]
    assert "faces rendered: m 1." in sheets[0].note


def test_note_counts_excluded_first_steps():
    change = Change([], [], [], [], faces=5, rendered=0, without_start=5)
    assert "not included, faces: m 5." in groups_table({"m": change}).note


def test_first_step_from_another_code_is_excluded(tmp_path, tiny_bundle):
    model = load_model(tiny_bundle)
    codes = model.latent_avg.numpy() + np.array([1.0, 3.0], np.float32)[:, None, None]
    steps = {"w_plus": codes[-1], "w_plus_per_step": codes}
    table = write_table(
        tmp_path,
        {
            "a": face([0.2, 0.1], **steps, residual_norm_per_step=[1.0, 2.0]),
            "b": face([0.2, 0.1], **steps, residual_norm_per_step=[9.0, 2.0]),
        },
        columns=Columns(10, all_steps=True),
        config={"model": tiny_bundle},
        settings={"model": model.fingerprint},
    )
    change = change_by_step(table, images=0)
    assert change.without_start == 1
    assert [step[0].n for step in change.layers] == [1, 2]
    np.testing.assert_allclose(means(change.layers), [[1.0] * 10, [2.0] * 10], rtol=1e-2)
