"""Dataset card of a table."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import datasets
import pytest

from pipeline.storage import Store
from pipeline.table import open_table, shard_index
from pipeline.table.card import card_text, is_card_current, write_card
from pipeline.table.shard_index import write_index
from tests.storage.archives import let_the_disk_s_clock_move_on
from tests.table.rows import commit, face_row, shard, write_shard, writer


def test_the_card_states_the_counts_of_the_table(filled: str) -> None:
    text = card_text(open_table(filled))
    assert not write_card(open_table(filled))
    assert Store(filled).get("README.md").decode() == text
    assert "12 images in 2 shards gave 8 codes and 8 rejects" in text
    assert "* licence: MIT" in text
    assert "| no_face | 4 |" in text
    assert "| l2 | 0.5000 | 0.2500 | 0.1250 |" in text
    assert "| id_similarity |  | 0.2500 | 0.5000 |" in text
    assert "* lpips: AlexNet, version 0.1, 256 px" in text


def test_the_card_explains_the_best_step_columns(filled: str, tmp_path: Path) -> None:
    line = "are of each face's best step (`best_step`)"
    assert line in card_text(open_table(filled))
    writer(tmp_path / "empty")
    assert line not in card_text(open_table(str(tmp_path / "empty")))


def test_the_card_lists_the_notes_of_the_model(tmp_path: Path) -> None:
    encoder = {"images": 28000, "held_out_l2": [0.0383, 0.0335], "seconds": "about 10800"}
    model = {"name": "demo", "notes": {"pairs": 10200, "encoder": encoder}, "domains": ["faces"]}
    writer(tmp_path, model=model)
    lines = card_text(open_table(str(tmp_path))).splitlines()
    begin = lines.index("* name: demo")
    assert lines[begin + 1 : begin + 5] == [
        "* notes:",
        "  * pairs: 10200",
        "  * encoder: images 28000; held_out_l2 0.0383, 0.0335; seconds about 10800",
        "* domains: faces",
    ]


def test_a_model_without_notes_has_none(tmp_path: Path) -> None:
    writer(tmp_path, model={"notes": {}})
    assert "* notes: none" in card_text(open_table(str(tmp_path))).splitlines()


def test_faces_without_an_identity_are_counted(tmp_path: Path) -> None:
    metrics = {"id_similarity": "cosine of two descriptors"}
    table = writer(tmp_path, metrics=metrics)
    faces = [face_row("a"), face_row("b", id_similarity=None), face_row("c")]
    part = table.write_part(shard(), 0, samples=3, latents=faces, rejects=[])
    table.commit_shard(shard(), [part])
    text = card_text(open_table(str(tmp_path)))
    assert "* id_similarity is null for 1 of 3 faces: " in text


@pytest.mark.parametrize("metrics", [{}, {"id_similarity": "not measured"}])
def test_identity_is_not_mentioned_if_not_measured(tmp_path: Path, metrics: dict[str, str]) -> None:
    write_shard(writer(tmp_path, metrics=metrics), shard())
    assert "id_similarity is null" not in card_text(open_table(str(tmp_path)))


HOSTILE = (
    "x\n---\n# heading\n[link](http://evil) <script>alert(1)</script> ![i](j) `c` *e* _u_ "
    "a|b ~~s~~ $$\\frac$$ &amp; \x1b[2J \u202e \r\n\n***\n"
)


def test_markup_in_texts_of_the_model_is_escaped(tmp_path: Path) -> None:
    """A bundle's record and `_table.json` may come from other people."""
    model = {
        "name": HOSTILE,
        "licence": f"MIT{HOSTILE}" + "z" * 10**6,
        "notes": {HOSTILE: [HOSTILE, {HOSTILE: HOSTILE}], "many": list(range(1000))},
        HOSTILE: {str(number): number for number in range(1000)},
        "deep": functools.reduce(lambda inner, _: [inner], range(300), "x"),
    }
    table = writer(tmp_path, model=model, metrics={HOSTILE: HOSTILE, "l2": HOSTILE})
    write_shard(table, shard())
    manifest = json.loads(table.store.get("_shards/s-0.json"))
    reasons = {HOSTILE: 1, "no_face": 3}
    manifest["figures"]["reasons"] = reasons
    table.store.put("_shards/s-0.json", json.dumps(manifest).encode())
    document = json.loads(table.store.get("_table.json"))
    document["columns"]["w_plus_dtype"] = HOSTILE
    table.store.put("_table.json", json.dumps(document).encode())
    text = card_text(open_table(str(tmp_path)))
    assert all(line.isprintable() for line in text.splitlines())
    assert text.count("\n---\n") == 1, "the front matter is the card's own"
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# W+ codes of 4 faces",
        "## Rejects",
        "## Left out",
        "## Metrics",
        "## Reading",
        "## Citation",
    ]
    body = text.split("\n---\n", 1)[1].split("## Reading")[0]
    for raw in ("[link]", "<script", "![i", "`c`", " *e*", " _u_", " a|b", "~~s", "$$", " &amp; "):
        assert raw not in body
    assert r"\[link\](http://evil) &lt;script&gt;" in body
    assert len(text) < 60_000


def test_the_same_table_gives_the_same_card(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_shard(writer(tmp_path / name), shard())
    assert card_text(open_table(str(tmp_path / "one"))) == card_text(
        open_table(str(tmp_path / "two"))
    )


def test_the_counts_come_from_the_index(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading each manifest would take one request per shard."""
    table = writer(root)
    entries = []
    for source in (shard("s-0"), shard("s-1")):
        write_shard(table, source, commit=False)
        entries.append(commit(table, source))
    write_index(table.store, entries)
    monkeypatch.delattr(shard_index, "read_shard_record")
    assert "12 images in 2 shards gave 8 codes" in card_text(open_table(root))


def test_a_card_is_current_until_the_next_commit(tmp_path: Path) -> None:
    table = writer(tmp_path)
    write_shard(table, shard())
    assert not is_card_current(open_table(str(tmp_path)))
    write_card(open_table(str(tmp_path)))
    assert is_card_current(open_table(str(tmp_path)))
    let_the_disk_s_clock_move_on(tmp_path / "README.md")
    write_shard(table, shard("s-1"))
    assert not is_card_current(open_table(str(tmp_path)))


def test_a_card_with_too_many_shards_is_not_current(tmp_path: Path) -> None:
    """Slices beyond the end of a shorter folder were removed, which changes no other manifest."""
    table = writer(tmp_path)
    for number in range(3):
        write_shard(table, shard(f"s-{number}"))
    write_card(open_table(str(tmp_path)))
    assert is_card_current(open_table(str(tmp_path)))
    table.store.remove("_shards/s-1.json")
    assert not is_card_current(open_table(str(tmp_path)))


def test_an_empty_table_has_a_card(tmp_path: Path) -> None:
    writer(tmp_path)
    text = card_text(open_table(str(tmp_path)))
    assert "Nothing was rejected." in text
    assert "No face was measured." in text


def test_datasets_loads_a_table_by_its_path(tmp_path: Path) -> None:
    root = tmp_path / "table"
    write_shard(writer(root), shard())
    write_card(open_table(str(root)))
    cache = str(tmp_path / "cache")
    latents = datasets.load_dataset(str(root), "latents", split="train", cache_dir=cache)
    rejects = datasets.load_dataset(str(root), "rejects", split="train", cache_dir=cache)
    assert (len(latents), len(rejects)) == (4, 4)


EARLIER = """---
license: other
configs:
  - config_name: latents
    data_files: latents/*.parquet
  - config_name: rejects
    data_files: rejects/*.parquet
---

# W+ codes of 4 faces

6 images in 1 shard gave 4 codes and 4 rejects. A code is `[6][512]` of float16 in the column ...

* name: demo
* notes:
  * pairs: 10200
* fingerprint of weights and settings: `f00d`

## Rejects

| reason | rows |
| --- | --- |
| no_face | 2 |

## Metrics

No face was measured.

* l2: mean square in [-1, 1], 256 px

## Reading

```python
from pipeline.table import open_table
table = open_table("path or URI of this folder")
table.sql("SELECT image_id, l2 FROM latents ORDER BY l2 LIMIT 10")
```

Without this library: `read_parquet('latents/*.parquet')` in DuckDB, pandas, polars or datasets.
"""
WITHOUT_ROWS = EARLIER.replace("1 shard", "1 shards").replace(
    "| reason | rows |\n| --- | --- |\n| no_face | 2 |\n", "Nothing was rejected.\n"
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table of one shard, without a card."""
    write_shard(writer(tmp_path), shard())
    return tmp_path


@pytest.mark.parametrize("card", [EARLIER, WITHOUT_ROWS])
def test_a_card_of_an_earlier_version_is_replaced(table: Path, card: str) -> None:
    (table / "README.md").write_text(card)
    assert not is_card_current(open_table(str(table)))
    assert not write_card(open_table(str(table)))
    assert card_text(open_table(str(table))) == (table / "README.md").read_text() != card


@pytest.mark.parametrize(
    "text",
    [
        "# My photos\n",
        "",
        EARLIER.replace("## Rejects", "## My notes\n\nNever delete this.\n\n## Rejects"),
        EARLIER + "\nMine.\n",
        EARLIER.replace("license: other", "license: mit"),
        "\0\xff",
    ],
)
def test_a_readme_of_the_user_is_kept(table: Path, text: str) -> None:
    (table / "README.md").write_text(text)
    assert is_card_current(open_table(str(table)))
    why = write_card(open_table(str(table)))
    assert "README.md' is not the card that this job writes" in why
    assert (table / "README.md").read_text() == text


def test_an_edited_card_is_kept(table: Path) -> None:
    card = card_text(open_table(str(table)))
    for edited in (card.replace("# W+ codes", "# Our codes"), f"{card}\nMine.\n", card[:-90]):
        (table / "README.md").write_text(edited)
        assert write_card(open_table(str(table)))
        assert (table / "README.md").read_text() == edited


def test_a_card_is_written_again_as_the_table_grows(table: Path) -> None:
    for shards in (1, 2):
        assert not write_card(open_table(str(table)))
        assert (table / "README.md").read_text() == card_text(open_table(str(table)))
        write_shard(writer(table), shard(f"s-{shards}"))
    second = (table / "README.md").read_text()
    assert "12 images in 2 shards gave" in second
