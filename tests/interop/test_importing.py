"""Import codes of other programs as a valid table; unknown values are null."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.alignment import AlignmentSettings
from pipeline.choices import EARLIER_SEARCH
from pipeline.errors import FingerprintError, InputError, StorageError
from pipeline.interop.code_files import FaceName, open_codes
from pipeline.interop.exporting import NamedSelection, export_codes, export_dictionary
from pipeline.interop.importing import Importing, ImportSettings
from pipeline.interop.measuring import Measuring, match_images
from pipeline.interop.pickled_codes import latents_file
from pipeline.interop.pictures import export_pictures, frames_of
from pipeline.metrics import MetricEvaluator
from pipeline.models import RestyleModel, load_model
from pipeline.storage import Shard, Store
from pipeline.table import Table, TableWriter, open_table
from pipeline.table.card import card_text
from pipeline.table.status import table_status

N_STYLES = 10


@pytest.fixture(scope="module")
def model(tiny_bundle: str) -> RestyleModel:
    return load_model(tiny_bundle)


@pytest.fixture(scope="module")
def meter() -> MetricEvaluator:
    return MetricEvaluator(identity="none")


def steps_of(seed: int, count: int = 2) -> np.ndarray:
    """Return codes that float16 represents exactly, [count, 10, 512]."""
    draws = np.random.default_rng(seed).standard_normal((count, N_STYLES, 512))
    return (draws * 0.3).astype(np.float16).astype(np.float32)


def dictionary(folder: Path, **codes: np.ndarray) -> str:
    """Write a `latents.npy` of codes whose names end in `.jpg`."""
    path = folder / "latents.npy"
    path.write_bytes(latents_file({f"{name}.jpg": steps for name, steps in codes.items()}))
    return str(path)


def imported(
    codes: str, model: RestyleModel, root: Path, measuring: Any = None, **settings: Any
) -> Any:
    given = ImportSettings(**{"model": "tiny", "method": "restyle", **settings})
    counts = Importing(open_codes(codes), model, given, measuring).run(str(root))
    return counts, open_table(str(root))


def measuring(
    model: RestyleModel, meter: MetricEvaluator, results: Store | None = None, **alignment: Any
) -> Measuring:
    given = {"prealigned": True, "output_size": model.input_size, **alignment}
    return Measuring(model, AlignmentSettings(**given), meter, results)


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    path.write_bytes(sink.getvalue())


def test_dictionary_round_trips_through_a_table(model: RestyleModel, tmp_path: Path) -> None:
    given = {"b": steps_of(1), "a": steps_of(2, 3)}
    source = dictionary(tmp_path, **given)
    counts, table = imported(source, model, tmp_path / "t")
    assert (counts["samples"], counts["faces"], counts["rejects"]) == (2, 2, 0)
    export_dictionary(NamedSelection(table), str(tmp_path / "again.npy"))
    again = open_codes(str(tmp_path / "again.npy"))
    assert list(again.names) == ["a.jpg", "b.jpg"]
    for name, steps in given.items():
        np.testing.assert_array_equal(again.read(f"{name}.jpg"), steps)


@pytest.mark.parametrize("form", ["npy", "pt"])
def test_single_codes_round_trip_through_a_table(
    model: RestyleModel, tmp_path: Path, form: Any
) -> None:
    _, first = imported(dictionary(tmp_path, a=steps_of(1), b=steps_of(2)), model, tmp_path / "t")
    export_codes(NamedSelection(first, naming="id"), str(tmp_path / "codes"), form)
    _, second = imported(str(tmp_path / "codes"), model, tmp_path / "u")
    ids = [f"codes-00000/codes-00000/{name}.jpg#0" for name in "ab"]
    expected = np.stack([steps_of(1)[-1], steps_of(2)[-1]])
    np.testing.assert_array_equal(second.w_plus(ids), expected)


def test_unmeasured_columns_are_null(model: RestyleModel, tmp_path: Path) -> None:
    _, table = imported(dictionary(tmp_path, a=steps_of(1)), model, tmp_path / "t")
    (row,) = table.arrow("SELECT * FROM latents").to_pylist()
    assert (row["key"], row["method"], row["steps"], row["best_step"]) == ("a.jpg", "restyle", 2, 2)
    assert row["source_uri"].endswith("latents.npy")
    for name in ("l2", "lpips", "converged", "width", "face_box", "generator_passes"):
        assert row[name] is None
    assert row["l2_per_step"] == [None, None]
    step = np.sqrt(((steps_of(1)[1] - steps_of(1)[0]) ** 2).mean())
    assert row["residual_norm_per_step"][1] == pytest.approx(step, rel=1e-5)
    away = np.sqrt(((steps_of(1)[1] - model.latent_avg.numpy()) ** 2).mean())
    assert row["w_avg_distance"] == pytest.approx(away, rel=1e-5)


def test_single_codes_have_no_steps(model: RestyleModel, tmp_path: Path) -> None:
    _, table = imported(dictionary(tmp_path, a=steps_of(1, 1)), model, tmp_path / "t")
    (row,) = table.arrow("SELECT * FROM latents").to_pylist()
    assert row["steps"] is row["best_step"] is row["l2_per_step"] is None
    assert row["w_plus_variance"] > 0


def test_w_code_is_repeated_in_every_row(model: RestyleModel, tmp_path: Path) -> None:
    code = steps_of(1)[0, 0]
    np.save(tmp_path / "a.npy", code)
    _, table = imported(str(tmp_path / "a.npy"), model, tmp_path / "t")
    stored = table.w_plus(["codes-00000/a#0"])[0]
    np.testing.assert_array_equal(stored, np.tile(code, (N_STYLES, 1)))


def test_codes_of_another_generator_are_refused(model: RestyleModel, tmp_path: Path) -> None:
    source = dictionary(tmp_path, a=steps_of(1)[:, :6])
    with pytest.raises(InputError, match=r"'a\.jpg' has 6 rows, but the model 'tiny' takes 10"):
        imported(source, model, tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_stopped_import_resumes_only_with_equal_codes(model: RestyleModel, tmp_path: Path) -> None:
    many = {f"f{n}": steps_of(n, 1) for n in range(5)}
    source = dictionary(tmp_path, **many)
    cut = {"part_size": 2, "files_per_shard": 4}
    _, whole = imported(source, model, tmp_path / "t", **cut)
    parts = sorted((tmp_path / "t" / "latents").iterdir())
    assert len(parts) == 3
    before = [part.read_bytes() for part in parts]
    (tmp_path / "t" / "_shards" / "codes-00000.json").unlink()
    parts[1].unlink()
    counts, _ = imported(source, model, tmp_path / "t", **cut)
    assert counts["faces"] == 5
    assert [part.read_bytes() for part in parts] == before
    assert whole.spec.settings["codes"] == open_codes(source).digest
    with pytest.raises(FingerprintError, match="codes"):
        imported(dictionary(tmp_path, a=steps_of(1)), model, tmp_path / "t", **cut)


def test_finished_import_has_a_run_record(model: RestyleModel, tmp_path: Path) -> None:
    source = dictionary(tmp_path, **{f"f{n}": steps_of(n, 1) for n in range(5)})
    cut = {"part_size": 2, "files_per_shard": 4}
    imported(source, model, tmp_path / "t", **cut)
    status = table_status(str(tmp_path / "t"))
    assert (status.complete, status.shards_total, status.runs[0]["samples"]) == (True, 2, 5)
    assert table_status(str(tmp_path / "t"), list_input=True).complete
    imported(source, model, tmp_path / "t", **cut)
    runs = open_table(str(tmp_path / "t")).runs()
    assert [run["exit_code"] for run in runs] == [0, 0]
    assert sorted((run["samples"], run["parts"], run["skipped_parts"]) for run in runs) == [
        (0, 0, 3),
        (5, 3, 0),
    ]
    assert runs[0]["imported"]["faces"] == 5


def test_running_import_updates_its_run_record(
    model: RestyleModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also check the record of a failed import."""
    monkeypatch.setattr("pipeline.table.runs.WRITE_EVERY_S", 0.0)
    source = dictionary(tmp_path, **{f"f{n}": steps_of(n, 1) for n in range(4)})
    commit, statuses = TableWriter.commit_shard, []

    def commit_and_poll(writer: TableWriter, *args: Any) -> Any:
        statuses.append(table_status(str(tmp_path / "t")))
        if len(statuses) == 2:
            raise StorageError("the disk is full")
        return commit(writer, *args)

    monkeypatch.setattr(TableWriter, "commit_shard", commit_and_poll)
    with pytest.raises(StorageError):
        imported(source, model, tmp_path / "t", files_per_shard=2)
    progress = [(status.complete, status.shards_left, status.shards_total) for status in statuses]
    assert progress == [(False, 2, 2), (False, 1, 2)]
    assert [status.runs[0]["exit_code"] for status in statuses] == [None, None]
    assert [status.runs[0]["samples"] for status in statuses] == [2, 4]
    (run,) = open_table(str(tmp_path / "t")).runs()
    assert (run["exit_code"], run["errors"]) == (1, ["the disk is full"])


def test_codes_with_images_are_measured_by_key(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path
) -> None:
    good, bad = steps_of(1, 1), steps_of(2, 1)
    save_image(tmp_path / "in" / "x" / "a.png", frames_of(model, good)[0])
    save_image(tmp_path / "in" / "b.png", 255 - frames_of(model, bad)[0])
    (tmp_path / "in" / "c.png").write_bytes(b"no image, and no code of it")
    with measuring(model, meter) as measured:
        source = dictionary(tmp_path, a=np.concatenate([bad, good]), b=np.concatenate([bad, bad]))
        counts, table = imported(
            source, model, tmp_path / "t", measured, images=str(tmp_path / "in")
        )
    assert (counts["samples"], counts["unmeasured"]) == (2, 0)
    a, b = table.arrow("SELECT * FROM latents ORDER BY key DESC").to_pylist()
    assert (a["image_id"], b["image_id"]) == ("files-00000/x/a.png#0", "files-00000/b.png#0")
    assert a["best_step"] == 2
    assert a["l2"] == a["l2_per_step"][1] < 1e-4 < a["l2_per_step"][0]
    assert b["l2"] > 0.01
    assert (a["width"], a["height"], a["n_faces"]) == (64, 64, 1)
    assert len(a["source_sha256"]) == 64
    np.testing.assert_array_equal(table.w_plus([a["image_id"]])[0], good[0])


def test_code_of_a_broken_image_stays_unmeasured(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(b"no image")
    with measuring(model, meter) as measured:
        counts, table = imported(
            dictionary(tmp_path, a=steps_of(1)),
            model,
            tmp_path / "t",
            measured,
            images=str(tmp_path / "in"),
        )
    assert (counts["faces"], counts["rejects"], counts["unmeasured"]) == (1, 0, 1)
    assert table.sql("SELECT l2 FROM latents")["l2"].isna().all()


def test_card_reports_metrics_of_codes_without_steps(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path
) -> None:
    pixels = 255 - frames_of(model, steps_of(1, 1))[0]
    save_image(tmp_path / "in" / "a.png", pixels)
    (tmp_path / "in" / "b.png").write_bytes(b"no image")
    source = dictionary(tmp_path, a=steps_of(1, 1), b=steps_of(2, 1))
    with measuring(model, meter) as measured:
        _, table = imported(source, model, tmp_path / "t", measured, images=str(tmp_path / "in"))
    (l2,) = table.sql("SELECT l2 FROM latents WHERE l2 IS NOT NULL")["l2"]
    lines = card_text(table).splitlines()
    assert "| mean | step 1 |" in lines
    assert f"| l2 | {l2:.4f} |" in lines
    assert "| residual_norm |  |" in lines
    assert (
        "* steps: nobody knows how many led to a code: what was measured stands under step 1"
        in lines
    )
    assert table.verify()["faces"] == 2


def test_import_counts_skipped_files_and_ignored_profiles(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path
) -> None:
    pixels = 255 - frames_of(model, steps_of(1))[0]
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png", icc_profile=b"damaged")
    (tmp_path / "in" / "notes.txt").write_text("")
    source = dictionary(tmp_path, a=steps_of(1))
    with measuring(model, meter) as measured:
        counts, table = imported(
            source, model, tmp_path / "t", measured, images=str(tmp_path / "in")
        )
    assert (counts["icc_ignored"], counts["left_out"]) == (1, {".txt": 1})
    (run,) = table.sql("SELECT icc_ignored FROM runs")["icc_ignored"]
    assert run == 1
    assert "* by the listing of the input: 1 `.txt`" in card_text(table).splitlines()
    assert table.store.get("README.md").decode() == card_text(table)


def test_given_pictures_are_measured_instead_of_renders(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path
) -> None:
    save_image(tmp_path / "in" / "a.png", frames_of(model, steps_of(1))[1])
    source = dictionary(tmp_path, a=steps_of(1))
    _, plain = imported(source, model, tmp_path / "plain")
    export_pictures(NamedSelection(plain), model, str(tmp_path / "results"), "results")
    l2 = []
    for name, results in (("t", None), ("u", Store(str(tmp_path / "results")))):
        with measuring(model, meter, results) as measured:
            _, table = imported(
                source, model, tmp_path / name, measured, images=str(tmp_path / "in")
            )
        l2.append(table.sql("SELECT l2_per_step FROM latents")["l2_per_step"][0])
    np.testing.assert_allclose(l2[0], l2[1], atol=1e-4)
    assert l2[1][1] == 0
    with (
        measuring(model, meter, Store(str(tmp_path / "in"))) as measured,
        pytest.raises(InputError, match=r"no picture of step 0 of 'a\.jpg'"),
    ):
        imported(source, model, tmp_path / "v", measured, images=str(tmp_path / "in"))


def test_codes_of_turned_photos_are_measured_upright(
    model: RestyleModel, meter: MetricEvaluator, tmp_path: Path, sample_images: dict[str, bytes]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(sample_images["rejects/upside-down.jpg"])
    source = dictionary(tmp_path, a=steps_of(1))
    photos = {"images": str(tmp_path / "in")}
    with measuring(model, meter, prealigned=False) as measured:
        _, table = imported(source, model, tmp_path / "t", measured, **photos)
        (row,) = table.arrow("SELECT turn_deg, l2 FROM latents").to_pylist()
        assert row["turn_deg"] == 180
        assert row["l2"] > 0
    with measuring(model, meter, prealigned=False, **EARLIER_SEARCH) as measured:
        message = (
            "as it was made: --check-below 1.35 --coarse-side 224 --search-pixels 64000000 "
            "--turns auto"
        )
        with pytest.raises(FingerprintError, match=message):
            imported(source, model, tmp_path / "t", measured, **photos)
        _, table = imported(source, model, tmp_path / "u", measured, **photos)
    assert table.arrow("SELECT * FROM latents").to_pylist()[0]["l2"] is None


def rows_of(table: Table) -> list[str]:
    return table.sql("SELECT image_id FROM latents ORDER BY image_id")["image_id"].tolist()


@pytest.fixture
def numbered(model: RestyleModel, meter: MetricEvaluator, tmp_path: Path) -> Any:
    """Return a function that imports codes 1 to 3 with given images, one slice per image."""
    source = dictionary(tmp_path, **{name: steps_of(int(name), 1) for name in "123"})

    def call(*names: str) -> Any:
        paths = [tmp_path / "in" / f"{name}.png" for name in names]
        for path in {*(tmp_path / "in").glob("*/*.png")} - {*paths}:
            path.unlink()
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(b"not an image: its content does not matter")
        cut = {"images": str(tmp_path / "in"), "files_per_shard": 1}
        with measuring(model, meter) as measured:
            return imported(source, model, tmp_path / "t", measured, **cut)

    return call


def test_slices_beyond_the_folders_end_are_removed(numbered: Any) -> None:
    """Remove an image without a code: later codes move one slice forward."""
    _, table = numbered("a/0", "b/1", "b/2", "b/3")
    assert len(rows_of(table)) == 3
    counts, table = numbered("b/1", "b/2", "b/3")
    assert counts["faces"] == 3
    assert rows_of(table) == [f"files-0000{n}/b/{n + 1}.png#0" for n in range(3)]


def test_slices_without_codes_are_removed(numbered: Any) -> None:
    """Add images without codes: they get the slices of others."""
    numbered("b/1", "b/2", "b/3")
    counts, table = numbered("a/0", "b/00", "b/1", "b/2", "b/3")
    assert counts["faces"] == 3
    assert rows_of(table) == [f"files-0000{n + 2}/b/{n + 1}.png#0" for n in range(3)]
    assert table_status(table.store.root).complete


@pytest.mark.parametrize("killed", ["files-00001", "files-00003"])
def test_parts_of_a_killed_import_are_removed(numbered: Any, killed: str) -> None:
    """Covers a slice that has no codes any more and one beyond the end."""
    _, table = numbered("a/0", "b/1", "b/2", "b/3")
    table.store.remove(f"_shards/{killed}.json")
    names = ("b/1", "b/10", "b/2", "b/3") if killed == "files-00001" else ("b/1", "b/2", "b/3")
    counts, table = numbered(*names)
    assert counts["faces"] == len(rows_of(table)) == 3
    assert not any(f"/{killed}" in name for name in table.store.names())


def test_late_part_of_a_committed_shard_is_removed(numbered: Any) -> None:
    _, table = numbered("b/1", "b/2", "b/3")
    for kind in ("latents", "rejects"):
        part = table.store.get(f"{kind}/files-00001-00000.parquet")
        table.store.put(f"{kind}/files-00001-00001.parquet", part)
    _, table = numbered("b/1", "b/2", "b/3")
    assert len(rows_of(table)) == 3


def folder_of(*names: str) -> Shard:
    return Shard("files-00000", "/in", "folder", 1, "etag", names, (1,) * len(names))


def faces(*keys: str) -> list[tuple[str, list[FaceName]]]:
    return [(key, [FaceName(key, 0, key)]) for key in keys]


@pytest.mark.parametrize("name", ["1.jpg", "1", "a/1.jpg", "a/1", "files-00000/a/1.jpg"])
def test_code_matches_its_image_by_any_name(name: str) -> None:
    matched = match_images(faces(name), [folder_of("a/1.jpg", "a/2.jpg")])
    assert matched == {("files-00000", "a/1.jpg"): [FaceName(name, 0, name)]}


@pytest.mark.parametrize(
    ("names", "images", "message"),
    [
        (("1.jpg",), ("a/1.jpg", "b/1.jpg"), r"several images: '1\.jpg' \(files-00000/a/1\.jpg, f"),
        (("1.jpg", "1.png"), ("1.jpg",), r"match one image: '1' \(1\.jpg, 1\.png\)"),
        (("1.jpg", "2.jpg"), ("1.jpg",), r"codes without an image: 2\.jpg$"),
    ],
)
def test_ambiguous_image_names_are_refused_with_the_list(
    names: tuple[str, ...], images: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        match_images(faces(*names), [folder_of(*images)])
