"""Conversion of rows to Arrow."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from pipeline.choices import CodeType
from pipeline.errors import ConfigError, TableError
from pipeline.table import Columns, image_id
from pipeline.table.schema import check_kept, latents_table, rejects_table
from tests.table.rows import COLUMNS, N_STYLES, code, face_row, reject_row


def test_ids_name_shard_key_and_face() -> None:
    assert image_id("shard-0001", "x/0007", 0) == "shard-0001/x/0007#0"
    assert image_id("shard-0001", "x/0007", None) == "shard-0001/x/0007"
    faces = latents_table([face_row("k", 2)], COLUMNS, "s")
    assert faces["image_id"].to_pylist() == ["s/k#2"]
    rejects = rejects_table([reject_row("k"), reject_row("k", face=1)], "s")
    assert rejects["image_id"].to_pylist() == ["s/k", "s/k#1"]


def test_values_are_read_as_written() -> None:
    (row,) = latents_table([face_row("k")], COLUMNS, "s").to_pylist()
    assert row["shard"] == "s"
    assert row["landmarks"][67] == [134.0, 135.0]
    assert row["align_quad"][3] == [6.0, 7.0]
    assert row["l2_per_step"] == [0.5, 0.25, 0.125]
    assert row["converged"] is True
    assert (np.array(row["w_plus"], np.float32) == code("k")).all()


def test_unmeasured_values_are_null() -> None:
    row = face_row("k", id_similarity=np.float32("nan"), yaw=float("nan"))
    (stored,) = latents_table([row], COLUMNS, "s").to_pylist()
    assert stored["id_similarity"] is None
    assert stored["yaw"] is None
    assert stored["id_similarity_per_step"] == [None, 0.25, 0.5]


def test_a_prealigned_face_has_no_geometry() -> None:
    nothing = dict.fromkeys(("face_box", "landmarks", "align_quad", "face_px", "yaw"))
    rows = [face_row("k", **nothing), face_row("l")]
    first, second = latents_table(rows, COLUMNS, "s").to_pylist()
    assert [first[name] for name in nothing] == [None] * 5
    assert second["landmarks"] is not None


def test_a_table_without_rows_has_its_columns() -> None:
    table = latents_table([], COLUMNS, "s")
    assert table.num_rows == 0
    assert table.schema.equals(COLUMNS.latents_schema())
    assert rejects_table([], "s").num_rows == 0


def test_optional_columns_hold_every_step_and_the_pictures() -> None:
    columns = Columns(N_STYLES, "float32", True, True, True)
    steps = np.stack([code("k"), code("l")])
    extra = {"w_plus_per_step": steps, "aligned_jpeg": b"1", "reconstruction_jpeg": b"2"}
    rows = [face_row("k", **extra), face_row("l", **{**extra, "w_plus_per_step": steps[:1]})]
    table = latents_table(rows, columns, "s")
    stored = table["w_plus_per_step"].to_pylist()
    assert (np.array(stored[0], np.float32) == steps).all()
    assert (np.array(stored[1], np.float32) == steps[:1]).all()
    assert table["aligned_jpeg"].to_pylist() == [b"1", b"1"]
    assert table.schema.field("w_plus").type.value_type.value_type == pa.float32()


@pytest.mark.parametrize(("dtype", "number"), [("float16", np.float16), ("float32", np.float32)])
def test_identity_vectors_have_the_codes_type(dtype: CodeType, number: type) -> None:
    columns = Columns(N_STYLES, dtype, identity=True)
    vector = np.linspace(-0.3, 0.3, 128, dtype=np.float32)
    rows = [face_row("k", identity=vector), face_row("l", identity=None)]
    table = latents_table(rows, columns, "s")
    assert table.schema.field("identity").type == pa.list_(pa.from_numpy_dtype(number))
    first, second = table["identity"].to_pylist()
    assert (np.array(first, number) == vector.astype(number)).all()
    assert second is None
    assert table.drop_columns(["identity"]).equals(
        latents_table([face_row("k"), face_row("l")], Columns(N_STYLES, dtype), "s")
    )


def test_only_a_search_of_turns_adds_a_column() -> None:
    turned = Columns(N_STYLES, turn_deg=True)
    table = latents_table([face_row("k", turn_deg=270)], turned, "s")
    assert table["turn_deg"].to_pylist() == [270]
    assert table.schema.field("turn_deg").type == pa.int32()
    assert "turn_deg" not in COLUMNS.latents_schema().names
    with pytest.raises(TableError, match=r"unknown \['turn_deg'\]"):
        latents_table([face_row("k", turn_deg=270)], COLUMNS, "s")


@pytest.mark.parametrize("shape", [(N_STYLES, 511), (N_STYLES + 1, 512), (512,)])
def test_a_code_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TableError, match="the table needs"):
        latents_table([face_row("k", w_plus=np.zeros(shape))], COLUMNS, "s")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_code_that_float16_cannot_hold_is_refused(value: float) -> None:
    bad = code("k")
    bad[3, 100] = value
    with pytest.raises(TableError, match="not finite as halffloat"):
        latents_table([face_row("k", w_plus=bad)], COLUMNS, "s")


def test_a_row_with_other_columns_is_refused_by_name() -> None:
    row = face_row("k", colour="red")
    del row["yaw"]
    with pytest.raises(TableError, match=r"missing \['yaw'\], unknown \['colour'\]"):
        latents_table([row], COLUMNS, "s")


def test_a_value_of_another_type_is_refused_by_column() -> None:
    with pytest.raises(TableError, match="column 'landmarks'"):
        latents_table([face_row("k", landmarks=np.zeros((67, 2)))], COLUMNS, "s")


def test_kept_fields_are_the_last_columns() -> None:
    kept = (("label", "int64"), ("seen", "timestamp[us, tz=UTC]"), ("a.b", "string"))
    columns = Columns(N_STYLES, kept=kept)
    rows = [
        face_row("k", label=2**60, seen=1_000_000, **{"a.b": "x"}),
        face_row("l", label=None, seen=None, **{"a.b": None}),
    ]
    table = latents_table(rows, columns, "s")
    assert table.schema.names == [*COLUMNS.latents_schema().names, "label", "seen", "a.b"]
    assert table["label"].to_pylist() == [2**60, None]
    assert table["seen"].to_pylist() == [datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC), None]
    assert table.schema.field("seen").nullable


@pytest.mark.parametrize("name", ["key", "KEY", "l2", "aligned_jpeg", "w_plus_per_step", "shard"])
def test_a_field_named_as_a_column_of_the_table_is_refused(name: str) -> None:
    check_kept(["label", "caption", "identity"])
    with pytest.raises(ConfigError, match=f"--keep-columns: '{name}' is the name of a column"):
        check_kept(["label", name])


def test_a_field_named_identity_is_refused_beside_the_vectors() -> None:
    with pytest.raises(ConfigError, match="--keep-columns: 'Identity' is the name of a column"):
        check_kept(["Identity"], identity=True)
