"""Export and import as their users run them, on a table of a real model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jobs.export_table
import jobs.import_latents
import jobs.status
from jobs.refine_dataset import second_pass
from pipeline.errors import ConfigError
from pipeline.interop.pickled_codes import latents_file
from pipeline.interop.pictures import frames_of
from pipeline.models import load_model
from pipeline.storage import Store
from pipeline.table import open_table
from tests.conftest import Bucket
from tests.jobs.running import file_bytes

N_STYLES = 10
Said = tuple[int, dict[str, Any], str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a job's `main`: exit code, last line of stdout, stderr."""

    def call(job: Any, *arguments: object) -> Said:
        code = job.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        return code, json.loads(out.splitlines()[-1]) if out else {}, err

    return call


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """A `latents.npy` of two images and two steps."""
    draws = np.random.default_rng(0).standard_normal((2, 2, N_STYLES, 512)) * 0.3
    codes = draws.astype(np.float16).astype(np.float32)
    path = tmp_path / "latents.npy"
    path.write_bytes(latents_file({"1.jpg": codes[0], "2.jpg": codes[1]}))
    return path


def test_a_dictionary_goes_in_and_comes_out(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    table, again = tmp_path / "table", tmp_path / "again.npy"
    code, result, _ = run(
        jobs.import_latents, "--from", latents, "--model", tiny_bundle, "--output", table
    )
    assert (code, result["faces"], result["table"]) == (0, 2, str(table))
    code, result, _ = run(jobs.export_table, "--table", table, "--to", again)
    assert (code, result) == (0, {"to": str(again), "as": "latents", "written": 2})
    assert again.read_bytes() == latents.read_bytes()


def test_an_imported_table_has_a_finished_status(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    run(jobs.import_latents, "--from", latents, "--model", tiny_bundle, "--output", table)
    code, result, _ = run(jobs.status, table, "--json")
    assert (code, result["complete"], result["runs"][0]["exit_code"]) == (0, True, 0)
    assert result["runs"][0]["samples"] == 2


def test_pictures_are_rendered_by_the_tables_own_model(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    run(jobs.import_latents, "--from", latents, "--model", tiny_bundle, "--output", table)
    code, result, _ = run(
        jobs.export_table,
        *("--table", table, "--to", tmp_path / "out", "--as", "results"),
        *("--size", 16, "--truncate-pixels"),
    )
    assert (code, result["written"]) == (0, 4)
    with Image.open(tmp_path / "out" / "1" / "2.png") as picture:
        assert picture.size == (16, 16)
    code, _, said = run(
        jobs.export_table, "--table", table, "--to", tmp_path / "c", "--as", "codes", "--size", 16
    )
    assert (code, "--size is for --as images or --as results" in said) == (2, True)


def test_images_beside_the_codes_are_measured(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    codes = jobs.import_latents.open_codes(str(latents))
    folder = tmp_path / "images"
    folder.mkdir()
    for name in codes.names:
        sink = io.BytesIO()
        Image.fromarray(frames_of(load_model(tiny_bundle), codes.read(name))[1]).save(sink, "PNG")
        (folder / f"{name[0]}.png").write_bytes(sink.getvalue())
    code, result, said = run(
        jobs.import_latents,
        *("--from", latents, "--model", tiny_bundle, "--output", tmp_path / "table"),
        *("--images", folder, "--prealigned", "--identity", "none"),
    )
    assert (code, result["unmeasured"]) == (0, 0)
    assert "no face alignment, each image resized to 64x64" in said
    rows = open_table(str(tmp_path / "table")).sql("SELECT best_step, l2 FROM latents")
    assert rows["best_step"].tolist() == [2, 2]
    assert rows["l2"].max() < 1e-4


@pytest.mark.parametrize(
    ("source", "said"), [("nowhere.npy", "does not exist"), ("", "not a code, or damaged")]
)
def test_unreadable_codes_are_refused_in_one_line(
    run: Any, tmp_path: Path, latents: Path, tiny_bundle: str, source: str, said: str
) -> None:
    code, _, error = run(
        jobs.import_latents,
        *("--from", latents.parent / source, "--model", tiny_bundle),
        *("--output", tmp_path / "table"),
    )
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "table").exists()


def test_ambiguous_names_are_refused_with_the_list(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    for name in ("a/1.jpg", "b/1.jpg", "2.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened")
    code, _, error = run(
        jobs.import_latents,
        *("--from", latents, "--model", tiny_bundle, "--output", tmp_path / "table"),
        *("--images", tmp_path / "images", "--identity", "none"),
    )
    assert code == 2
    assert "'1.jpg' (files-00000/a/1.jpg, files-00000/b/1.jpg)" in error
    assert not (tmp_path / "table").exists()


@pytest.mark.parametrize(
    "flag", [("--prealigned",), ("--fit", "pad"), ("--identity", "no.pth"), ("--results", "x")]
)
def test_what_is_for_images_is_refused_without_them(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path, flag: tuple[str, ...]
) -> None:
    code, _, error = run(
        jobs.import_latents,
        *("--from", latents, "--model", tiny_bundle, "--output", tmp_path / "table", *flag),
    )
    assert code == 2
    assert f"{flag[0]} is for images, to measure by: name them with --images" in error
    assert not (tmp_path / "table").exists()


def test_a_damaged_table_is_a_wrong_request(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path
) -> None:
    table = tmp_path / "table"
    run(jobs.import_latents, "--from", latents, "--model", tiny_bundle, "--output", table)
    (table / "_table.json").write_text('{"schema_version": 1}')
    args = ("--table", table, "--to", tmp_path / "out", "--as", "codes")
    code, line, error = run(jobs.export_table, *args)
    assert (code, line["exit_code"]) == (2, 2)
    assert "read it with the version of the code that made it" in error


@pytest.mark.parametrize("inside", ["", "latents", "new/codes"])
def test_nothing_is_written_into_the_table(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path, inside: str
) -> None:
    table = tmp_path / "table"
    run(jobs.import_latents, "--from", latents, "--model", tiny_bundle, "--output", table)
    before = file_bytes(table)
    for args in (("--to", table / inside, "--as", "codes"), ("--to", table / inside / "x.npy")):
        code, line, error = run(jobs.export_table, "--table", f"{table}/", *args)
        assert (code, line["exit_code"]) == (2, 2)
        assert f"lies inside the table '{table}'" in error
        assert error.count("\n") == 1
    assert file_bytes(table) == before


def test_an_export_to_a_folder_needs_a_kind(run: Any, tmp_path: Path) -> None:
    code, _, error = run(jobs.export_table, "--table", tmp_path, "--to", tmp_path / "out")
    assert code == 2
    assert "say with --as" in error


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("x.npy", "codes", "all else a folder of files"),
        ("x.pt", None, "(--as codes --form pt: .pt files)"),
        ("x.png", "images", "all else a folder of files"),
        ("x.pt", "latents", "of a name ending in .npy"),
        ("folder/", "latents", "of a name ending in .npy"),
        ("folder/", "stacked", "stacked codes are one file: name it"),
        ("x.parquet", "parquet", "all else a folder of files"),
        ("x.tar", "webdataset", "all else a folder of files"),
    ],
)
def test_an_export_does_not_overwrite_another_kind(
    run: Any, tmp_path: Path, name: str, kind: str | None, said: str
) -> None:
    args = ("--table", tmp_path, "--to", f"{tmp_path}/{name}", *(("--as", kind) if kind else ()))
    code, _, error = run(jobs.export_table, *args)
    assert code == 2
    assert said in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--as", "codes", "--rows-per-file", "5"), "--rows-per-file is for --as parquet or"),
        (("--as", "images", "--sort-by", "image_id"), "--sort-by is for --as parquet or"),
        (
            ("--as", "parquet", "--render"),
            "--as webdataset, not for --as parquet",
        ),
        (("--as", "webdataset", "--size", "64"), "--as coupled, not for --as webdataset"),
    ],
)
def test_a_flag_of_another_layout_is_refused(
    run: Any, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    code, line, error = run(jobs.export_table, "--table", tmp_path, "--to", tmp_path / "o", *flags)
    assert (code, line["exit_code"]) == (2, 2)
    assert said in error
    assert error.count("\n") == 1


def test_codes_go_from_bucket_to_bucket(
    run: Any, s3: Bucket, latents: Path, tiny_bundle: str
) -> None:
    bucket = Store(s3.uri)
    bucket.put("latents.npy", latents.read_bytes())
    source, again, table, out = map(bucket.uri, ("latents.npy", "again.npy", "table", "out"))
    code, result, said = run(
        jobs.import_latents, "--from", source, "--model", tiny_bundle, "--output", table
    )
    assert (code, result["faces"]) == (0, 2), said
    code, result, said = run(jobs.export_table, "--table", table, "--to", again)
    assert (code, result["written"]) == (0, 2), said
    assert bucket.get("again.npy") == latents.read_bytes()
    for kind, written in (("codes", 2), ("results", 4)):
        code, result, said = run(jobs.export_table, "--table", table, "--to", out, "--as", kind)
        assert (code, result["written"]) == (0, written), said
    stack = bucket.uri("stack.npz")
    code, result, said = run(jobs.export_table, "--table", table, "--to", stack, "--as", "stacked")
    assert (code, result["written"]) == (0, 2), said
    code, result, said = run(
        jobs.import_latents,
        *("--from", stack, "--names", result["names"], "--refined-from", table),
        *("--model", tiny_bundle, "--output", f"{table}-3"),
    )
    assert (code, result["refined_from"], result["without_ancestor"]) == (0, 2, 0), said
    third = open_table(f"{table}-3").sql("SELECT key, refined_from FROM latents ORDER BY key")
    assert third["key"].tolist() == ["1", "2"]
    assert third["refined_from"].tolist() == [f"codes-00000/{n}.jpg#0" for n in (1, 2)]
    for kind in ("parquet", "huggingface", "webdataset"):
        folder, back = bucket.uri(kind), f"{table}-{kind}"
        code, result, said = run(jobs.export_table, "--table", table, "--to", folder, "--as", kind)
        assert (code, result["written"], result["files"]) == (0, 2, 1), said
        again = run(jobs.export_table, "--table", table, "--to", folder, "--as", kind)
        assert (again[0], again[1]["new_files"]) == (0, 0), said
        code, result, said = run(
            jobs.import_latents, "--from", folder, "--model", tiny_bundle, "--output", back
        )
        assert (code, result["refined_from"], result["without_ancestor"]) == (0, 2, 0), said
        query = "SELECT l.key, refined_from, w_plus FROM latents l ORDER BY 1"
        rows = open_table(back).sql(query)
        assert rows["refined_from"].tolist() == [f"codes-00000/{n}.jpg#0" for n in (1, 2)]
        first = open_table(table).sql("SELECT w_plus FROM latents ORDER BY key")
        for item, other in zip(first["w_plus"], rows["w_plus"], strict=True):
            assert np.array_equal(np.stack(item), np.stack(other))
    names = bucket.names("out/")
    assert {name.rsplit(".", 1)[1] for name in names} == {"npy", "png"}
    code, result, said = run(
        jobs.import_latents, "--from", out, "--model", tiny_bundle, "--output", f"{table}-2"
    )
    assert (code, result["faces"]) == (0, 2), said
    first, second = (open_table(uri).sql("SELECT * FROM latents") for uri in (table, f"{table}-2"))
    for item, other in zip(first["w_plus"], second["w_plus"], strict=True):
        assert np.array_equal(np.stack(item), np.stack(other))


def test_an_imported_table_is_refined_by_its_images(
    run: Any, latents: Path, tiny_bundle: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in (1, 2):
        Image.new("RGB", (64, 64), (80 * number, 90, 100)).save(photos / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    given = ("--from", latents, "--model", tiny_bundle)
    output = ("--images", "photos", "--prealigned", "--identity", "none")
    assert run(jobs.import_latents, *given, "--output", "table", *output)[0] == 0
    assert run(jobs.import_latents, *given, "--output", "blind")[0] == 0
    monkeypatch.chdir("/")
    config = second_pass(str(tmp_path / "table"), {"output": str(tmp_path / "refined")})
    assert config.icc == "apply"
    assert (config.input, config.prealigned, config.fit) == (str(photos), True, "stretch")
    with pytest.raises(ConfigError, match="import them again with --images"):
        second_pass(str(tmp_path / "blind"), {"output": str(tmp_path / "refined")})
