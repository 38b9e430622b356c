"""Erase images from every file of a table, at any failure, so that they do not come back."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import RequestError, StorageError, TableError
from pipeline.images.rejects import RejectReason
from pipeline.storage import Store
from pipeline.table import Table, TableWriter, open_table
from pipeline.table.forgetting.erase import Erased, forget, forgotten_rows
from pipeline.table.forgetting.forgotten import FORGOTTEN, ForgetList, Forgotten
from pipeline.table.forgetting.leftovers import BLANKED, blank_mentions, leftovers
from pipeline.table.forgetting.sources import choose_sources, lists_of, new_list
from pipeline.table.selection import Selection
from pipeline.table.shard_index import index_rows, table_stats, write_index
from pipeline.table.spec import read_spec
from pipeline.table.verify import verify_table
from tests.table.rows import commit, damage_codes, face_row, reject_row, shard, state_of, writer

# Images of each part of a shard: name, faces, rejects of single faces (none of both: a reject).
PARTS = ((("ann", 1, 0), ("bob", 2, 1), ("cid", 0, 0)), (("dan", 1, 0), ("eve", 0, 0)))


def sha256(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def write_images(table: TableWriter, name: str, *, copy_of: str = "") -> None:
    """Write both parts of shard `name`, with the bytes of the images of shard `copy_of`."""
    source = shard(name)
    for number, images in enumerate(PARTS):
        latents: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for image, faces, rejected in images:
            key = f"{image}-of-{name}.jpg"
            about = {
                "source_uri": f"{source.source}#{key}",
                "source_sha256": sha256(f"{image} {copy_of or name}"),
            }
            latents += [face_row(key, face, **about) for face in range(faces)]
            rejects += [
                reject_row(key, "not_finite", faces + face) | about for face in range(rejected)
            ]
            if not faces:
                rejects.append(reject_row(key) | about)
        table.write_part(source, number, samples=len(images), latents=latents, rejects=rejects)


def make_table(root: object) -> TableWriter:
    """Write four shards, of which s-1 and open are copies of s-0; open is not committed."""
    table = make_shards(root, "s-0", "s-1", "s-2")
    write_images(table, "open", copy_of="s-0")
    return table


def make_shards(root: object, *names: str) -> TableWriter:
    """Write indexed shards and the record of a run that failed."""
    table = writer(root)
    for name in names:
        write_images(table, name, copy_of="s-0" if name == "s-1" else "")
    write_index(table.store, [commit(table, shard(name)) for name in names])
    table.store.put(
        "_runs/20260101T000000Z-aa.json",
        json.dumps(
            {
                "exit_code": 1,
                "errors": ["cannot read 'ann-of-s-0.jpg'", "cannot read 'bob-of-s-0.jpg'"],
                "config": {"where": "key = 'ann-of-s-0.jpg'"},
            }
        ).encode(),
    )
    return table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a table whose shards are all committed; tests copy it."""
    root = tmp_path_factory.mktemp("forgetting") / "made"
    commit(make_table(root), shard("open"))
    return root


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> str:
    """Return a copy of `made`."""
    return str(shutil.copytree(made, tmp_path / "table"))


def erase(table: Table, where: str, reason: str = "asked for") -> Erased:
    sources, keys = choose_sources(Selection(table, where))
    return forget(table.store, [new_list(table, sources, reason, keys)] if sources else [])


def files_with(store: Store, *texts: str) -> list[str]:
    """Return the names of all files, also hidden ones, that have one of the texts.

    In Parquet files they are looked for in the bytes (statistics) and in the unpacked columns.
    """
    names = store.names()
    if "://" not in store.root:
        files = (path for path in Path(store.root).rglob("*") if path.is_file())
        names = [path.relative_to(store.root).as_posix() for path in files]
    return [name for name in names if any(text in _content(store, name) for text in texts)]


def _content(store: Store, name: str) -> str:
    content = store.get(name)
    text = content.decode("latin-1")
    if name.endswith(".parquet"):
        table = pq.read_table(io.BytesIO(content))
        text += str([column.to_pylist() for column in table.columns if column.type == pa.string()])
    return text


ANN = ("ann-of-s-0", "ann-of-s-1", "ann-of-open", sha256("ann s-0"))


def test_rows_leave_every_file(root: str) -> None:
    table = make_table(root)
    assert files_with(table.store, *ANN)
    faces = open_table(root).sql("SELECT count(*) AS n FROM latents")["n"][0]

    erased = erase(open_table(root), "key = 'ann-of-s-0.jpg'")

    assert (erased.faces, erased.rejects, erased.parts, erased.shards) == (3, 0, 3, 3)
    assert files_with(table.store, *ANN) == []
    assert files_with(table.store, "bob-of-s-0"), "other images of the part stay"
    opened = open_table(root)
    assert opened.sql("SELECT count(*) AS n FROM latents")["n"][0] == faces - 3
    record = next(each for each in opened.shards() if each.shard == "s-0")
    assert (record.samples, record.faces, record.rejects) == (5, 3, 4)
    rejects = opened.sql(f"SELECT * FROM rejects WHERE reason = '{FORGOTTEN}'")
    assert set(rejects["key"]) == {f"{FORGOTTEN}:00000-0"}
    assert set(rejects["source_uri"]) == set(rejects["source_sha256"]) == {""}
    # The open shard is the only thing that `verify` finds, as before.
    with pytest.raises(TableError, match=r"'latents/open-00000.parquet' belongs to no .* 3 more"):
        opened.verify()
    commit(writer(root), shard("open"))
    assert opened.verify()["samples"] == 20
    assert table_stats(opened.store).counts.reasons[FORGOTTEN] == 3
    assert f"| {FORGOTTEN} | 2 |" in opened.store.get("README.md").decode()
    run = json.loads(opened.store.get("_runs/20260101T000000Z-aa.json"))
    assert run["errors"][1] == "cannot read 'bob-of-s-0.jpg'"
    assert "ann-of-s-0" not in run["errors"][0] + run["config"]["where"]
    check_stays(opened)
    rows = [row for rows in index_rows(opened.store) for row in rows]
    assert sorted(row.shard for row in rows if row.faces == 3) == ["s-0", "s-1"]


def check_stays(table: Table) -> None:
    """Check that what stays is said; of a bucket also whether it keeps versions of objects."""
    if "://" not in table.store.root:
        assert "snapshots" in " ".join(leftovers(table.store, table.spec))
        return
    assert "replicas of the bucket" in " ".join(leftovers(table.store, table.spec))
    bucket = table.store.path().split("/")[0]
    status = {"Status": "Enabled"}
    table.store.fs.call_s3("put_bucket_versioning", Bucket=bucket, VersioningConfiguration=status)
    assert "VERSIONS of replaced objects" in " ".join(leftovers(table.store, table.spec))


def test_forgotten_images_do_not_come_back(copied: str) -> None:
    root = copied
    erase(open_table(root), "key LIKE 'ann-of-s-_.jpg' OR image_id = 's-0/bob-of-s-0.jpg#1'")
    stored = {name: Store(root).get(name) for name in Store(root).names("latents/s-0")}
    stored |= {name: Store(root).get(name) for name in Store(root).names("rejects/s-0")}

    again = writer(root)
    again.store.remove("_shards/s-0.json")
    for name in stored:
        again.store.remove(name)
    write_images(again, "s-0")
    commit(again, shard("s-0"))

    assert {name: again.store.get(name) for name in stored} == stored
    write_images(again, "s-3")
    changed = shard("s-0", "etag-2")  # the photo was encoded again: another hash, the same name
    again.clear(state_of(again, changed))
    write_images(again, "s-0", copy_of="nothing")
    assert files_with(again.store, *ANN) == []
    assert files_with(again.store, "ann-of-s-3"), "another image of the name in another shard"


def test_one_face_of_a_photo_can_be_forgotten(copied: str) -> None:
    root = copied

    erased = erase(open_table(root), "image_id = 's-0/bob-of-s-0.jpg#1'")

    assert (erased.faces, erased.rejects) == (3, 0)
    opened = open_table(root)
    assert opened.verify()["samples"] == 20
    ids = list(opened.sql("SELECT image_id FROM latents WHERE key = 'bob-of-s-0.jpg'")["image_id"])
    assert ids == ["s-0/bob-of-s-0.jpg#0"]
    named = opened.sql("SELECT face_index FROM rejects WHERE reason = 'forgotten' ORDER BY shard")
    assert list(named["face_index"]) == [1, 1, 1]
    assert erase(open_table(root), "key = 'bob-of-s-0.jpg'").faces == 3, "then the whole image"
    assert open_table(root).verify()["faces"] == 16 - 6
    assert files_with(opened.store, "bob-of-s-0") == []


def test_condition_chooses_rejects_too(copied: str) -> None:
    root = copied
    opened = open_table(root)

    assert erase(opened, "key = 'cid-of-s-2.jpg'").rejects == 1
    assert files_with(opened.store, "cid-of-s-2") == []
    opened = open_table(root)
    sources, _ = choose_sources(Selection(opened, "face_index = 2"))
    assert {(each.uri.rpartition("#")[2], each.face) for each in sources} == {
        (f"bob-of-{name}.jpg", 2) for name in ("s-0", "s-1", "s-2", "open")
    }, "a rejected face of a photo whose other faces stay"
    assert choose_sources(Selection(opened, "l2 > 1"))[0] == []
    with pytest.raises(RequestError, match='column "nothing" not found'):
        choose_sources(Selection(opened, "nothing = 1"))
    assert open_table(root).verify()["samples"] == 20


def test_every_failed_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed and a storage that goes down look the same: writes end at one."""
    made = make_shards(tmp_path / "made", "s-0").store.root
    where = "key IN ('ann-of-s-0.jpg', 'eve-of-s-0.jpg', 'cid-of-s-0.jpg')"
    lists = [ForgetList.of(choose_sources(Selection(open_table(made), where))[0], "asked for")]
    texts = [*ANN, "eve-of", "cid-of", sha256("eve s-0"), sha256("cid s-0")]
    for allowed in itertools.count():
        root = shutil.copytree(made, tmp_path / f"table-{allowed}")
        store = Store(str(root))
        with monkeypatch.context() as patch:
            count = itertools.count()
            for name in ("put", "put_if_absent", "remove"):
                patch.setattr(Store, name, _failing(getattr(Store, name), count, allowed))
            with suppress(StorageError):
                forget(store, lists)
                break
        check_between(str(root), texts)
        forget(store, lists if allowed < 2 else [])  # the lock, the list
        assert files_with(store, *texts) == []
        assert verify_table(store, read_spec(store), checksums=True)["faces"] == 3
        assert not Forgotten.read(store).unfinished
    # Lock, list, the record of the run, three files of two parts, index, card and list; a lock that
    # cannot be released is taken over.
    assert allowed == 2 + 1 + 2 * 3 + 2 + 1 + 1


def _failing(write: Callable[..., Any], count: Iterator[int], allowed: int) -> Callable[..., Any]:
    def failing(store: Store, *given: Any) -> Any:
        if next(count) >= allowed:
            raise StorageError("the storage is down")
        return write(store, *given)

    return failing


def check_between(root: str, texts: Sequence[str]) -> None:
    """Check a table after a failure: readers see whole files, and `verify` does not lie."""
    store = Store(root)
    for kind in ("latents", "rejects"):
        for name in store.names(kind):
            pq.read_table(io.BytesIO(store.get(name)))
    try:
        verify_table(store, read_spec(store), checksums=True)
    except TableError as error:
        if "run `restyle forget" not in str(error):
            raise
        with pytest.raises(RequestError, match="run `restyle forget"):
            writer(root)
    else:
        is_listed = any(name.endswith(".json") for name in store.names("_forgotten/"))
        assert not is_listed or files_with(store, *texts) == []


def test_late_part_is_found_and_erased(copied: str) -> None:
    root, late = copied, writer(copied)  # which knows of no list
    erase(open_table(root), "key = 'ann-of-s-0.jpg'")
    for name in ("_shards/open.json", "latents/open-00000.parquet", "rejects/open-00000.parquet"):
        late.store.remove(name)
    write_images(late, "open", copy_of="s-0")
    commit(late, shard("open"))

    with pytest.raises(TableError, match="rows of a forgotten image: run `restyle forget"):
        open_table(root).verify()
    assert forget(late.store).faces == 1
    open_table(root).verify()


def test_damaged_list_is_refused(copied: str) -> None:
    root, table = copied, writer(copied)
    erase(open_table(root), "key = 'ann-of-s-0.jpg'")
    (name,) = table.store.names("_forgotten/")
    table.store.put(name, table.store.get(name).replace(b'"version": 1', b'"version": 9'))

    for use in (lambda: writer(root), open_table(root).verify, lambda: forget(table.store)):
        with pytest.raises(TableError, match=r"its version is 9.*deleting it would let its images"):
            use()


def test_damaged_part_is_named(copied: str) -> None:
    damage_codes(Store(copied), "latents/s-0-00000.parquet")
    with pytest.raises(TableError, match=r"latents/s-0-00000.parquet' is damaged: "):
        erase(open_table(copied), "key = 'ann-of-s-0.jpg'")


def test_list_names_nobody(copied: str) -> None:
    root, table = copied, writer(copied)
    with pytest.raises(RequestError, match="must not name an image"):
        erase(open_table(root), "key = 'ann-of-s-0.jpg'", "Ann-of-S-0 has asked")
    erase(open_table(root), "key = 'ann-of-s-0.jpg'")
    erase(open_table(root), "key = 'dan-of-s-0.jpg'")

    first, second = (ForgetList.read(table.store, n) for n in table.store.names("_forgotten/"))
    assert first.salt == second.salt
    assert not first.entries & second.entries
    assert {len(entry) for entry in first.entries} == {32}
    assert first.finished


def test_list_of_another_table_is_taken_over(made: Path, copied: str, tmp_path: Path) -> None:
    parent, child = copied, str(shutil.copytree(made, tmp_path / "child"))
    erase(open_table(parent), "key = 'ann-of-s-0.jpg'")
    store = Store(child)

    assert len(list(forgotten_rows(store, Forgotten.read(Store(parent))))) == 3
    assert forget(store, lists_of(Store(parent), "asked for")).faces == 3
    assert files_with(store, *ANN) == []
    with pytest.raises(RequestError, match="nothing is forgotten in"):
        lists_of(Store(str(tmp_path / "nothing")), "asked for")


def test_table_of_init_hands_on_its_list(copied: str, tmp_path: Path) -> None:
    parent, child = copied, str(tmp_path / "child")
    erase(open_table(parent), "key = 'ann-of-s-0.jpg'")

    refined = writer(child, config={"init": parent})
    write_images(refined, "s-0")
    commit(refined, shard("s-0"))

    assert files_with(refined.store, *ANN) == []
    assert open_table(child).verify()["samples"] == 5


def test_only_whole_names_are_blanked(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.put("_table.json", b'{"input": "11.jpg"}')
    errors = ["'11.jpg' is damaged", "1.jpg: no bytes", "key = '1.jpg'", "part 1 of 11.jpg"]
    store.put("_runs/a.json", json.dumps({"errors": errors, "found": "x/1.jpg"}).encode())

    assert blank_mentions(store, {"1.jpg", "x/1.jpg"}) == ("_runs/a.json",)
    blanked = json.loads(store.get("_runs/a.json"))["errors"]
    assert blanked == [errors[0], BLANKED, BLANKED, errors[3]]


def test_reason_is_one_of_the_rejects() -> None:
    assert RejectReason(FORGOTTEN) is RejectReason.FORGOTTEN
