"""A few samples of a large input, evenly, at the cost of these few."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.storage import sampling, spread_samples
from pipeline.storage.readers import folder
from pipeline.storage.sampling import evenly
from tests.storage.archives import write_files, write_parquet, write_tar


def keys(folder: Path, limit: int) -> list[str]:
    return [sample.key for sample in spread_samples(str(folder), limit)]


def test_places_are_even_and_include_both_ends() -> None:
    assert evenly(10, 4) == [0, 3, 6, 9]
    assert evenly(3, 100) == [0, 1, 2]
    assert (evenly(7, 1), evenly(0, 5)) == ([0], [])
    for count in range(1, 60):
        places = evenly(count, 34)
        assert (places[0], places[-1]) == (0, count - 1)
        assert len(set(places)) == len(places) == min(count, 34)


def test_the_samples_of_all_shards_are_one_row(tmp_path: Path) -> None:
    for name, count in (("a", 3), ("b", 5)):
        write_tar(tmp_path / f"{name}.tar", [(f"{name}{n}.jpg", b"image") for n in range(count)])
    write_parquet(tmp_path / "c.parquet", {"key": ["c0", "c1"], "image": [b"x", b"y"]})
    write_files(tmp_path, "d/0.jpg", "d/1.jpg")
    assert keys(tmp_path, 4) == ["a0", "b0", "b4", "d/1.jpg"]
    assert len(keys(tmp_path, 12)) == len(keys(tmp_path, 99)) == 12


def test_files_that_are_not_chosen_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, *(f"{number}.jpg" for number in range(9)))
    fetched: list[str] = []
    contents = folder._contents
    monkeypatch.setattr(
        folder, "_contents", lambda shard, names: fetched.extend(names) or contents(shard, names)
    )
    assert keys(tmp_path, 3) == fetched == ["0.jpg", "4.jpg", "8.jpg"]


def test_of_many_archives_few_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        write_tar(tmp_path / f"{number}.tar", [(f"{number}-{n}.jpg", b"image") for n in range(3)])
    opened: list[str] = []
    read = sampling.read_samples
    monkeypatch.setattr(
        sampling,
        "read_samples",
        lambda shard, *others: opened.append(shard.shard_id) or read(shard, *others),
    )
    assert keys(tmp_path, 3) == ["0-0", "3-0", "6-0"]
    assert opened == ["0", "3", "6"]


def test_masks_are_not_spread(tmp_path: Path) -> None:
    members = [(f"{n}.{end}", b"1") for n in range(4) for end in ("jpg", "seg.png")]
    write_tar(tmp_path / "s.tar", members)
    assert keys(tmp_path, 9) == ["0", "1", "2", "3"]
