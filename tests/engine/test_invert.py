from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from pipeline.engine.align import FACES, REJECTS, reject_row
from pipeline.engine.invert import InvertStage
from pipeline.engine.inverter import InvertSettings
from pipeline.engine.rows import Row, blank_row, pack, unpack
from pipeline.images import Rejection, RejectReason
from pipeline.inversion.methods import Method
from pipeline.models import load_model, save_bundle
from pipeline.table import Columns, initial_codes_schema
from tests.engine.faces import face, start_of


def part(faces: list[dict[str, Any]]) -> Row:
    row = blank_row("part", "s", 0)
    row["payload"] = pack(FACES.empty_table().from_pylist(faces, schema=FACES))
    row["rejected"] = pack(REJECTS.empty_table())
    return row


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
    stage = InvertStage(InvertSettings("demo", method), Columns(n_styles=10))
    row = stage(part([person, face(1), face(2)]))
    similarities = unpack(row["payload"])["id_similarity"].to_pylist()
    assert [value is None for value in similarities] == [False, True, True]
    assert (row["faces"], row["rejects"], row["identity_missed"]) == (3, 0, 2)


def test_no_identity_is_missed_where_none_is_measured(settings: InvertSettings) -> None:
    row = InvertStage(settings, Columns(n_styles=10))(part([face(0)]))
    assert (row["faces"], row["identity_missed"]) == (1, 0)


def test_a_code_that_is_not_finite_is_a_reject(
    settings: InvertSettings, broken_bundle: str
) -> None:
    stage = InvertStage(replace(settings, model=broken_bundle), Columns(n_styles=10))
    row = stage(part([face(0), face(1)]))
    assert (row["kind"], row["faces"], row["rejects"]) == ("part", 0, 2)
    rejects = unpack(row["rejected"]).to_pylist()
    assert [(r["key"], r["face_index"], r["reason"]) for r in rejects] == [
        ("0", 0, "not_finite"),
        ("1", 0, "not_finite"),
    ]
    assert json.loads(row["reasons"]) == {"not_finite": 2}


def test_a_part_without_faces_stays_a_part(settings: InvertSettings) -> None:
    row = InvertStage(settings, Columns(n_styles=10))(part([]))
    assert (row["kind"], row["faces"], unpack(row["payload"]).num_rows) == ("part", 0, 0)


def test_a_failure_while_inverting_costs_its_part(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = InvertStage(settings, Columns(n_styles=10))

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory for 3 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(stage.inverter.meter, "measure", out_of_memory)
        failed = stage(part([face(0)]))
    assert failed["kind"] == "failed"
    assert "invert: OutOfMemoryError: no memory for 3 GiB" in failed["error"]
    assert stage(part([face(0)]))["faces"] == 1, "the actor goes on"


@pytest.mark.parametrize(("starts", "codes", "left"), [("all", 2, [1]), ("chosen", 1, [])])
def test_a_face_that_the_aligner_rejected_is_a_reject_once_and_only_where_it_is_wanted(
    settings: InvertSettings, starts: Any, codes: int, left: list[int]
) -> None:
    names = [f"s/0#{index}" for index in range(codes)]
    columns = {"image_id": names, "w_plus": np.zeros((codes, 10, 512), np.float32).tolist()}
    small = Rejection(RejectReason.FACE_TOO_SMALL, "the face is 20 pixels wide")
    row = part([face(0)])
    row["rejected"] = pack(pa.Table.from_pylist([reject_row("0", "", "", small, 1)], REJECTS))
    row["start"] = pack(pa.table(columns, schema=initial_codes_schema(10)))
    done = InvertStage(replace(settings, starts=starts), Columns(n_styles=10))(row)
    rejects = unpack(done["rejected"]).to_pylist()
    assert [r["face_index"] for r in rejects] == left
    assert [r["reason"] for r in rejects] == ["face_too_small"] * len(left)
    assert (done["faces"], done["rejects"]) == (1, len(left))


def test_codes_to_start_from_travel_with_their_part(settings: InvertSettings) -> None:
    stage = InvertStage(replace(settings, starts="all"), Columns(n_styles=10))
    starts = start_of(0)
    columns = {"image_id": list(starts), "w_plus": [code.tolist() for code in starts.values()]}
    row = part([face(0)])
    row["start"] = pack(pa.table(columns, schema=initial_codes_schema(10)))
    done = stage(row)
    assert (done["faces"], done["start"]) == (1, b"")
    assert done["inversion_seconds"] > 0
    assert unpack(done["payload"])["refined_from"].to_pylist() == ["s/0#0"]


def test_fields_of_a_face_s_sample_become_columns(settings: InvertSettings) -> None:
    columns = Columns(n_styles=10, kept=(("label", "int64"), ("caption", "string")))
    fields = ['{"label": 3, "caption": "a"}', '{"label": null, "caption": null}']
    faces = [face(number) | {"fields": text} for number, text in enumerate(fields)]
    latents = unpack(InvertStage(settings, columns)(part(faces))["payload"])
    assert latents.schema.equals(columns.latents_schema())
    rows = latents.select(["label", "caption"]).to_pylist()
    assert rows == [{"label": 3, "caption": "a"}, {"label": None, "caption": None}]
