"""`verify` finds every kind of damage that it checks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import TableError, printable
from pipeline.models import load_model
from pipeline.storage import Shard, Store
from pipeline.table import open_table
from pipeline.table.parts import PartRecord
from pipeline.table.shard_index import write_index
from pipeline.table.shard_records import ShardRecord, read_shard_record
from pipeline.table.stats import Stats
from tests.fuzz.kind import write_case
from tests.table.rows import (
    COUNTS_OF_ONE,
    DESCRIPTION,
    face_row,
    reject_row,
    shard,
    write_shard,
    writer,
)
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture
def store(tmp_path: Path) -> Store:
    write_shard(writer(tmp_path), shard())
    return Store(str(tmp_path))


def broken(store: Store, match: str, *, checksums: bool = True) -> None:
    with pytest.raises(TableError, match=match) as caught:
        open_table(store.root).verify(checksums=checksums)
    assert store.root in str(caught.value)
    assert "\n" not in str(caught.value)


def change_manifest(store: Store, **changes: Any) -> None:
    manifest = json.loads(store.get("_shards/s-0.json"))
    store.put("_shards/s-0.json", json.dumps({**manifest, **changes}).encode())


def test_a_sound_table_returns_its_counts(filled: str) -> None:
    twice = {name: 2 * count for name, count in COUNTS_OF_ONE.items()}
    assert open_table(filled).verify() == twice
    assert open_table(filled).verify(checksums=False) == twice


def test_samples_with_faces_and_rejected_add_up(store: Store) -> None:
    counts = open_table(store.root).verify()
    assert counts["samples"] == counts["samples_with_faces"] + counts["samples_rejected"] == 6


def test_rejects_of_two_images_may_share_an_id(tmp_path: Path) -> None:
    """Face 0 of 'a' and the image 'a#0'."""
    table = writer(tmp_path)
    rejects = [reject_row("a", "face_too_small", 0), reject_row("a#0", "undecodable")]
    part = table.write_part(shard(), 0, samples=2, latents=[face_row("a", 1)], rejects=rejects)
    table.commit_shard(shard(), [part])
    assert open_table(str(tmp_path)).verify()["rejects"] == 2


def test_a_manifest_with_other_sums_is_found(store: Store) -> None:
    figures = json.loads(store.get("_shards/s-0.json"))["figures"]
    change_manifest(store, figures={**figures, "identified": 3})
    broken(store, "other figures than its manifest", checksums=False)


@pytest.mark.parametrize("kind", ["latents", "rejects"])
def test_a_missing_part_is_found(store: Store, kind: str) -> None:
    store.remove(f"{kind}/s-0-00001.parquet")
    broken(store, f"{kind}/s-0-00001.parquet': not found")


def test_a_part_with_other_bytes_is_found(store: Store) -> None:
    name = "latents/s-0-00000.parquet"
    content = bytearray(store.get(name))
    content[100] ^= 1
    store.put(name, bytes(content))
    broken(store, r"is not the file that its manifest names \(SHA-256\)")


def test_a_truncated_part_is_found_without_checksums(store: Store) -> None:
    name = "latents/s-0-00000.parquet"
    store.put(name, store.get(name)[:-100])
    broken(store, "is damaged", checksums=False)


def test_a_part_under_the_name_of_another_is_found(store: Store) -> None:
    store.put("latents/s-0-00001.parquet", store.get("latents/s-0-00000.parquet"))
    broken(store, "made with another part", checksums=False)


def test_a_part_of_another_state_of_the_shard_is_found(store: Store, tmp_path: Path) -> None:
    other = writer(tmp_path / "other")
    other.write_part(shard(etag="etag-2"), 0, samples=1, latents=[face_row("a")], rejects=[])
    for kind in ("latents", "rejects"):
        name = f"{kind}/s-0-00000.parquet"
        store.put(name, other.store.get(name))
    broken(store, "made with another shard_etag", checksums=False)


def test_a_duplicate_face_is_found(tmp_path: Path) -> None:
    table = writer(tmp_path)
    parts = [
        table.write_part(shard(), part, samples=1, latents=[face_row("a")], rejects=[])
        for part in (0, 1)
    ]
    table.commit_shard(shard(), parts)
    broken(table.store, "shard 's-0' holds rows of latents twice")


@pytest.mark.parametrize("count", ["samples", "faces", "rejects"])
def test_a_manifest_with_other_counts_is_found(store: Store, count: str) -> None:
    change_manifest(store, **{count: 7})
    broken(store, rf"holds \d {count}, its manifest says 7")


def test_a_damaged_manifest_is_found(store: Store) -> None:
    store.put("_shards/s-0.json", b"{}")
    with pytest.raises(TableError, match="is not a shard manifest"):
        open_table(store.root).verify()


def test_parts_without_a_manifest_are_found(store: Store) -> None:
    write_shard(writer(store.root), shard("s-1"), commit=False)
    broken(store, r"'latents/s-1-00000.parquet' belongs to no committed shard.*and 3 more problems")


def test_a_foreign_file_is_found(store: Store) -> None:
    store.put("latents/copy of s-0.parquet", b"")
    broken(store, "'latents/copy of s-0.parquet' belongs to no committed shard")


def test_a_temporary_file_of_a_killed_writer_is_ignored(store: Store) -> None:
    (Path(store.root) / "latents" / ".s-0-00000.parquet.1-ab.tmp").write_bytes(b"half")
    assert open_table(store.root).verify() == COUNTS_OF_ONE


MANIFEST = {
    "shard": "s-1",
    "uri": "s3://elsewhere/s-0.tar",
    "kind": "parquet",
    "etag": "etag-2",
    "fingerprint": "0" * 64,
    "part_size": 5,
    "samples": 7,
    "faces": 7,
    "rejects": 7,
    "parts": [],
    "figures": {"reasons": {}, "identified": 0, "sums": {}, "counts": {}},
    "schema_version": 2,
}
NO_PROOF_OF_MANIFEST = {"size", "left_out"}
PART = {
    "part": 1,
    "samples": 3,
    "faces": 3,
    "rejects": 1,
    "latents_sha256": "0" * 64,
    "rejects_sha256": "0" * 64,
}


PART_RECORD = PartRecord(figures=Stats().figures_text())


def test_every_manifest_field_is_covered_here() -> None:
    document = ShardRecord.of(shard(), [PART_RECORD], "", 4, {".json": 1}).to_dict()
    assert set(MANIFEST) | NO_PROOF_OF_MANIFEST == document.keys()
    assert PART.keys() == document["parts"][0].keys()


@pytest.mark.parametrize("field", MANIFEST)
def test_a_forged_field_of_a_manifest_is_found(store: Store, field: str) -> None:
    change_manifest(store, **{field: MANIFEST[field]})
    with pytest.raises(TableError):
        open_table(store.root).verify()


@pytest.mark.parametrize("kind", ["folder", "parquet", "zip", "x"])
def test_a_shard_of_another_kind_is_found(store: Store, kind: str) -> None:
    change_manifest(store, kind=kind)
    broken(store, f"is of kind '{kind}'", checksums=False)


@pytest.mark.parametrize("field", PART)
def test_a_forged_field_of_a_part_is_found(store: Store, field: str) -> None:
    """The sums over the parts stay correct."""
    parts = json.loads(store.get("_shards/s-0.json"))["parts"]
    before, parts[0][field] = parts[0][field], PART[field]
    if field in ("samples", "faces", "rejects"):
        parts[1][field] += before - PART[field]
    change_manifest(store, parts=parts)
    with pytest.raises(TableError):
        open_table(store.root).verify()


@pytest.mark.parametrize("uri", ["s3://in/s-1.tar", "s3://in2/s-0.tar", "s3://in/s-0.tar.gz"])
def test_a_shard_from_another_place_is_found(tmp_path: Path, uri: str) -> None:
    table = writer(tmp_path)
    rows = [face_row(key, source_uri=f"s3://in/s-0.tar/{key}.jpg") for key in "ab"]
    part = table.write_part(shard(), 0, samples=2, latents=rows, rejects=[])
    table.commit_shard(shard(), [part])
    assert open_table(str(tmp_path)).verify()["faces"] == 2
    change_manifest(table.store, uri=uri)
    broken(table.store, "has a row from 's3://in/s-0.tar/a.jpg'", checksums=False)


def test_a_shard_outside_the_input_is_found(tmp_path: Path) -> None:
    layout = {"input": "s3://in/a", "files_per_shard": 1000}
    table = writer(tmp_path, layout=layout)
    for source in (shard("s-0", uri="s3://in/a/s-0.tar"), shard("s-1", uri="s3://in/a/s-1.tar")):
        row = face_row("a", source_uri=f"{source.uri}/a.jpg")
        part = table.write_part(source, 0, samples=1, latents=[row], rejects=[])
        table.commit_shard(source, [part])
    assert open_table(str(tmp_path)).verify()["shards"] == 2
    document = json.loads(table.store.get("_table.json"))
    document["layout"]["input"] = "s3://in/a/s-0.tar"
    table.store.put("_table.json", json.dumps(document).encode())
    broken(table.store, "is not in the table's input", checksums=False)


def table_from(root: Path, place: str, *shards: Shard, **config: Any) -> Store:
    """A sound table of the input `place`."""
    layout = {"input": place, "files_per_shard": 1000}
    table = writer(root, layout=layout, config={"input": place, **config})
    for source in shards:
        uri = source.source if source.kind == "list" else f"{source.source.removesuffix('/')}/a.jpg"
        part = table.write_part(
            source, 0, samples=1, latents=[face_row("a", source_uri=uri)], rejects=[]
        )
        table.commit_shard(source, [part])
    return table.store


INPUTS = {
    "folder of shards": ("/in/a", shard("s-0", uri="/in/a/b/s-0.tar")),
    "folder of images": ("/in/a", shard("files-00000", uri="/in/a", kind="folder")),
    "whole disk": ("/", shard("s-0", uri="/s-0.tar"), shard("files-00000", uri="/", kind="folder")),
    "shard file": ("s3://in/s-0.tar", shard("s-0", uri="s3://in/s-0.tar")),
    "image": ("/in/a/0.jpg", shard("files-00000", uri="/in/a", kind="folder")),
    "image on the web": (
        "https://host/a/0.jpg?width=64",
        shard("files-00000", uri="https://host/a", kind="folder"),
    ),
    "pattern": ("s3://in/*/{0..3}.tar", shard("s-0", uri="s3://in/x/0.tar")),
    "list": (
        "/in/all.txt",
        shard("files-00000", uri="/in/all.txt", kind="list"),
        shard("s-0", uri="s3://other/s-0.tar"),
    ),
    "no UTF-8": ("/in/\udcff", shard("s-0", uri="/in/\udcff/s-0.tar")),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_is_sound(tmp_path: Path, kind: str) -> None:
    place, *shards = INPUTS[kind]
    store = table_from(tmp_path, printable(place), *shards)
    assert open_table(store.root).verify()["shards"] == len(shards)


@pytest.mark.parametrize("kind", ["folder of shards", "folder of images", "shard file", "image"])
def test_an_input_that_no_shard_came_from_is_found(tmp_path: Path, kind: str) -> None:
    _, *shards = INPUTS[kind]
    store = table_from(tmp_path, "/other/place", *shards)
    broken(store, "is not in the table's input '/other/place'", checksums=False)


@pytest.mark.parametrize(
    ("name", "value", "otherwise"),
    [("sniff", True, False), ("image_field", "all", "one"), ("image_column", "png", "jpg")],
)
def test_a_layout_that_contradicts_the_config_is_found(
    tmp_path: Path, name: str, value: Any, otherwise: Any
) -> None:
    place, *shards = INPUTS["folder of shards"]
    store = table_from(tmp_path, place, *shards, **{name: value})
    for stored, sound in ((value, True), (otherwise, False)):
        document = json.loads(store.get("_table.json"))
        document["layout"][name] = stored
        store.put("_table.json", json.dumps(document).encode())
        if sound:
            assert open_table(store.root).verify()["shards"] == 1
        else:
            broken(store, f"the config has {name}", checksums=False)


def test_an_import_without_images_may_omit_sniff(tmp_path: Path) -> None:
    write_shard(writer(tmp_path, config={"images": None, "sniff": True}), shard())
    assert open_table(str(tmp_path)).verify() == COUNTS_OF_ONE


@pytest.mark.parametrize("part", ["layout", "config", "settings", "model", "metrics"])
def test_a_list_instead_of_a_section_is_found(store: Store, part: str) -> None:
    document = {**json.loads(store.get("_table.json")), part: []}
    store.put("_table.json", json.dumps(document).encode())
    with pytest.raises(TableError, match=f"incomplete: its {part} is not a JSON object"):
        open_table(store.root)


MODELLED = {
    "config": {
        "input": "s3://in",
        "keep_crops": False,
        "keep_steps": False,
        "keep_reconstructions": False,
        "latent_dtype": "float16",
        "files_per_shard": 1000,
        "limit": 10,
        "best_step_by": "lpips",
        "precision": "float32",
        "faces": "largest",
    },
    "layout": {"input": "s3://in", "files_per_shard": 1000, "limit": 10},
    "metrics": {"lpips": "AlexNet, version 0.1, 256 px", "l2": "mean square"},
}


@pytest.fixture(scope="module")
def modelled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Files of a table whose model is a bundle on this machine."""
    folder = tmp_path_factory.mktemp("modelled")
    write_tiny_bundle(str(folder / "bundle"))
    model = load_model(str(folder / "bundle"))
    settings = {**DESCRIPTION.settings, "model": model.fingerprint, "best_step_by": "lpips"}
    config = {**MODELLED["config"], "model": str(folder / "bundle")}
    changes = {**MODELLED, "config": config, "settings": settings, "model": model.metadata}
    write_shard(writer(folder / "table", **changes), shard())
    store = Store(str(folder / "table"))
    assert open_table(store.root).verify()["faces"] == 4
    return {name: store.get(name) for name in store.names()}


FORGED = [
    *(("config", name, "x") for name in MODELLED["config"]),
    *(("layout", name, 7) for name in MODELLED["layout"]),
    *(("columns", name, True) for name in ("all_steps", "aligned_jpeg", "reconstruction_jpeg")),
    *(("columns", *pair) for pair in (("n_styles", 7), ("w_plus_dtype", "float32"))),
    ("columns", "w_plus_dtype", "float64"),
    *(("settings", *pair) for pair in (("steps", 4), ("weights", "x"), ("precision", "bf16"))),
    *(("model", name, "x") for name in ("name", "domain", "source", "licence")),
    *(("metrics", *pair) for pair in (("lpips", "VGG"), ("l2", ""), ("more", "x"))),
]


@pytest.mark.parametrize(("part", "name", "value"), FORGED)
def test_a_forged_field_of_the_spec_is_found(
    tmp_path: Path, modelled: dict[str, bytes], part: str, name: str, value: Any
) -> None:
    write_case(modelled, tmp_path)
    document = json.loads(modelled["_table.json"])
    document[part][name] = value
    (tmp_path / "_table.json").write_text(json.dumps(document))
    with pytest.raises(TableError):
        open_table(str(tmp_path)).verify()


@pytest.mark.parametrize("name", ["schema_version", "fingerprint"])
def test_a_forged_name_in_the_settings_is_found(
    tmp_path: Path, modelled: dict[str, bytes], name: str
) -> None:
    write_case(modelled, tmp_path)
    document = {**json.loads(modelled["_table.json"]), name: "0"}
    (tmp_path / "_table.json").write_text(json.dumps(document))
    with pytest.raises(TableError):
        open_table(str(tmp_path)).verify(checksums=False)


@pytest.mark.parametrize("name", ["latents/more/s-0-00000.parquet", "rejects/a/b/x.parquet"])
def test_a_nested_file_is_found(store: Store, name: str) -> None:
    store.put(name, store.get("latents/s-0-00000.parquet"))
    broken(store, f"'{name}' belongs to no committed shard", checksums=False)


def test_a_link_to_a_folder_is_found(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rejects" / "more").symlink_to(tmp_path / "latents")
    broken(store, "'rejects/more' is a link to a folder", checksums=False)


ROW = {
    "uri": "s3://in/x.tar",
    "etag": "etag-2",
    "size": 101,
    "samples": 10**9,
    "faces": 5,
    "rejects": 5,
    "n_parts": 3,
    "figures": '{"reasons":{}}',
}


@pytest.mark.parametrize("field", ROW)
def test_a_forged_index_row_is_found(store: Store, field: str) -> None:
    record = writer(store.root).with_manifest_etag(read_shard_record(store, "s-0"))
    write_index(store, [record])
    assert open_table(store.root).verify() == COUNTS_OF_ONE
    write_index(store, [replace(record, **{field: ROW[field]})])
    broken(store, "the index row of shard 's-0' differs from its manifest", checksums=False)
