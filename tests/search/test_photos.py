"""A photo finds the faces of its person, by vectors made like those of the table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from jobs import forget
from pipeline.choices import SearchBy
from pipeline.engine import photos as photos_module
from pipeline.engine.photos import photo_vectors, queries_of, read_photos
from pipeline.errors import RequestError
from pipeline.search.neighbours import nearest
from pipeline.search.vectors import Vectors
from pipeline.table import Table, open_table
from pipeline.table.selection import Selection
from tests.search.tables import table_of_codes, table_of_photos

PEOPLE = ("003", "124", "143")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, sample_images: dict[str, bytes]) -> Table:
    """A table of two rendered portraits, copied from a bucket that is out of reach."""
    photos = {f"{n}.jpg": sample_images[f"portraits/000{n}.jpg"] for n in (2, 3)}
    table = table_of_photos(tmp_path_factory.mktemp("samples"), photos)
    document = json.loads(table.store.get("_table.json"))
    document["config"]["output"] = "s3://elsewhere/table"
    table.store.put("_table.json", json.dumps(document).encode())
    return open_table(table.store.root)


@pytest.mark.parametrize("by", get_args(SearchBy))
def test_a_photo_of_the_table_finds_itself(samples: Table, by: SearchBy) -> None:
    vectors = Vectors(Selection(samples), by)
    photo = f"{samples.spec.config['input']}/3.jpg"
    names, queries = queries_of(vectors, [photo, "files-00000/2.jpg#0"])
    assert names == ["files-00000/2.jpg#0", photo]
    other, itself = nearest(vectors, queries, 2, names)
    assert [face.image_id for face in itself] == ["files-00000/3.jpg#0", "files-00000/2.jpg#0"]
    assert itself[0].similarity > 0.9999 > other[0].similarity


def test_forgetting_similar_faces_needs_a_confirmation(
    samples: Table,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The photo is another encoding of a face of the table, so that only its looks match."""
    embedded: list[Any] = []  # once: two seconds

    def once(*given: Any) -> Any:
        embedded[:] = embedded or [queries_of(*given)]
        return embedded[0]

    monkeypatch.setattr(photos_module, "queries_of", once)
    root, photo = tmp_path / "table", tmp_path / "photo.png"
    shutil.copytree(samples.store.root, root)
    Image.open(f"{samples.spec.config['input']}/3.jpg").save(photo)
    given = ["--table", str(root), "--like", str(photo), "--similar", "0.95", "--reason", "x"]
    assert forget.main(given) == forget.NOT_CONFIRMED
    said = capsys.readouterr()
    assert re.search(r"face    files-00000/3\.jpg#0  similarity (1\.000|0\.99\d)\n", said.err)
    assert "to erase these faces, add --yes" in said.err
    assert open_table(str(root)).verify()["faces"] == 2

    assert forget.main([*given, "--yes"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["faces"], list(line["similar"])) == (1, ["files-00000/3.jpg#0"])
    table = open_table(str(root))
    assert table.verify()["faces"] == 1
    assert table.arrow("SELECT key FROM latents").to_pydict() == {"key": ["2.jpg"]}


def test_unusable_photos_are_refused(
    samples: Table, sample_images: dict[str, bytes], tmp_path: Path, tiny_bundle: str
) -> None:
    vectors = Vectors(Selection(samples), "identity")
    (tmp_path / "landscape.jpg").write_bytes(sample_images["rejects/landscape.jpg"])
    with pytest.raises(RequestError, match=r"landscape.jpg' gives no face: no_face"):
        queries_of(vectors, [str(tmp_path / "landscape.jpg")])
    with pytest.raises(RequestError, match=r"such.jpg' is not an image id of .* does not exist"):
        queries_of(vectors, ["/no/such.jpg"])
    codes = table_of_codes(tmp_path / "codes", tiny_bundle, vectors.table.w_plus([])[:, :10])
    with pytest.raises(RequestError, match="made from codes without images"):
        queries_of(Vectors(Selection(codes), "w_plus"), [str(tmp_path / "landscape.jpg")])


def test_a_smiling_photo_finds_the_neutral_one(shared: Path, tmp_path: Path) -> None:
    london = shared / "photos" / "london"
    neutral = {
        f"{person}.jpg": (london / f"{person}_neutral.jpg").read_bytes() for person in PEOPLE
    }
    table = table_of_photos(tmp_path, neutral)
    smiling = tmp_path / "smiling"
    smiling.mkdir()
    for person in PEOPLE:
        (smiling / f"{person}.jpg").symlink_to(london / f"{person}_smiling.jpg")
    photos = read_photos(table, str(smiling))
    for by in get_args(SearchBy):
        vectors = Vectors(Selection(table), by)
        result = nearest(vectors, photo_vectors(vectors, photos), 1)
        expected = [f"files-00000/{person}.jpg#0" for person in PEOPLE]
        assert [row[0].image_id for row in result] == expected, by
