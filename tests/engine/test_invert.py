from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.engine.inverter import InvertSettings
from pipeline.engine.messages import FaceBatch, Failure
from pipeline.engine.stages.align import FACES, REJECTS, reject_row
from pipeline.engine.stages.base import results
from pipeline.engine.stages.invert import Invert
from pipeline.images import Rejection, RejectReason
from pipeline.inversion.methods import Method
from pipeline.models import load_model, save_bundle
from pipeline.storage import Shard
from pipeline.table import Columns, Counts
from pipeline.table.initial_codes import initial_codes_schema
from pipeline.table.schema import latents_table
from tests.engine.faces import face, start_of


def part(
    faces: list[dict[str, Any]], rejects: Sequence[dict[str, Any]] = (), start: Any = None
) -> FaceBatch:
    shard, rejected = Shard("s", "/in", "folder", 0, "e"), pa.Table.from_pylist(rejects, REJECTS)
    table = pa.Table.from_pylist(faces, schema=FACES)
    return FaceBatch(shard, 0, Counts(), table, rejected, start)


def stage_of(settings: InvertSettings, columns: Columns = Columns(n_styles=10)) -> Invert:  # noqa: B008
    stage = Invert(settings, columns)
    stage.setup()
    return stage


@pytest.fixture(scope="module")
def broken_bundle(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose every code is infinite."""
    model = load_model(tiny_bundle)
    with torch.no_grad():
        model.encoder.heads.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    folder = str(tmp_path_factory.mktemp("broken"))
    save_bundle(model, folder)
    return folder


def test_faces_whose_identity_is_not_found_are_counted(sample_images: dict[str, bytes]) -> None:
    picture = Image.open(io.BytesIO(sample_images["portraits/0001.jpg"])).convert("RGB")
    person = face(0) | {"pixels": picture.resize((64, 64), Image.Resampling.BOX).tobytes()}
    method = Method(steps=1)
    stage = stage_of(InvertSettings("demo", method), Columns(n_styles=12))
    done = stage.process(part([person, face(1), face(2)]))
    missed = [row["id_similarity"] is None for row in done.latents]
    assert missed == [False, True, True]
    counts = done.counts
    assert (counts.faces, counts.rejects, counts.identity_missed) == (3, 0, 2)


def test_no_identity_is_missed_where_none_is_measured(settings: InvertSettings) -> None:
    counts = stage_of(settings).process(part([face(0)])).counts
    assert (counts.faces, counts.identity_missed) == (1, 0)


def test_a_nonfinite_code_is_a_reject(settings: InvertSettings, broken_bundle: str) -> None:
    done = stage_of(replace(settings, model=broken_bundle)).process(part([face(0), face(1)]))
    assert [(r["key"], r["face_index"], r["reason"]) for r in done.rejects] == [
        ("0", 0, "not_finite"),
        ("1", 0, "not_finite"),
    ]
    assert (done.counts.faces, done.counts.reasons) == (0, {"not_finite": 2})


def test_a_part_without_faces_stays_a_part(settings: InvertSettings) -> None:
    done = stage_of(settings).process(part([]))
    assert (done.counts.faces, done.latents) == (0, [])


def test_a_failure_while_inverting_costs_its_part(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_of(settings)

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory for 3 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(stage.inverter.meter, "begin", out_of_memory)
        (failure,) = results(stage, part([face(0)]))
    assert isinstance(failure, Failure)
    assert failure.stage == "invert"
    assert "OutOfMemoryError: no memory for 3 GiB" in failure.error
    assert stage.process(part([face(0)])).counts.faces == 1, "the actor continues"


@pytest.mark.parametrize(("chosen", "codes", "left"), [("all", 2, [1]), ("chosen", 1, [])])
def test_a_face_rejected_by_the_aligner_counts_once(
    settings: InvertSettings, chosen: Any, codes: int, left: list[int]
) -> None:
    names = [f"s/0#{index}" for index in range(codes)]
    columns = {"image_id": names, "w_plus": np.zeros((codes, 10, 512), np.float32).tolist()}
    small = Rejection(RejectReason.FACE_TOO_SMALL, "the face is 20 pixels wide")
    start = pa.table(columns, schema=initial_codes_schema(10))
    batch = part([face(0)], [reject_row("0", "", "", small, 1)], start)
    done = stage_of(replace(settings, initial_codes=chosen)).process(batch)
    assert [r["face_index"] for r in done.rejects] == left
    assert [r["reason"] for r in done.rejects] == ["face_too_small"] * len(left)
    assert (done.counts.faces, done.counts.rejects) == (1, len(left))


def test_codes_to_start_from_travel_with_their_part(settings: InvertSettings) -> None:
    stage = stage_of(replace(settings, initial_codes="all"))
    codes = start_of(0)
    columns = {"image_id": list(codes), "w_plus": [code.tolist() for code in codes.values()]}
    done = stage.process(part([face(0)], start=pa.table(columns, schema=initial_codes_schema(10))))
    assert done.counts.faces == 1
    assert done.counts.inversion_seconds > 0
    assert [row["refined_from"] for row in done.latents] == ["s/0#0"]


def test_fields_of_a_face_s_sample_become_columns(settings: InvertSettings) -> None:
    columns = Columns(n_styles=10, kept=(("label", "int64"), ("caption", "string")))
    fields = ['{"label": 3, "caption": "a"}', '{"label": null, "caption": null}']
    faces = [face(number) | {"fields": text} for number, text in enumerate(fields)]
    latents = stage_of(settings, columns).process(part(faces)).latents
    rows = latents_table(latents, columns, "s").select(["label", "caption"]).to_pylist()
    assert rows == [{"label": 3, "caption": "a"}, {"label": None, "caption": None}]
