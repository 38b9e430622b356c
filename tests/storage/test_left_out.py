"""Promises of the counts of files that are left out."""

from __future__ import annotations

import random
import string

import pytest

from pipeline.storage import LeftOut
from pipeline.storage.left_out import MAX_LABELS, OTHER, label_of
from pipeline.table.spec import to_json


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("a/0001.JSON", ".json"),
        ("x.tar.rar", ".tar.rar"),
        ("x.tar", ".tar"),
        (".DS_Store", "(hidden)"),
        ("__MACOSX/a.jpg", "(hidden)"),
        ("README", "(no extension)"),
        ("a.", "(no extension)"),
        ("a.b/c", "(no extension)"),
        ("a.jpeg.1", "(numbered)"),
        ("a.php?id=12.7", ".php"),
        ("a.jpg ", ".jpg"),
        ("a.\u202etxt", "(other)"),
        ("a.\n", "(no extension)"),
        ("a." + "x" * 40, "(other)"),
        ("my.secret", "(other)"),
    ],
)
def test_label_is_the_end_of_a_name(name: str, label: str) -> None:
    assert label_of(name) == label


def test_labels_are_few_short_and_printable() -> None:
    random_ = random.Random(0)
    counts = LeftOut()
    for _ in range(5000):
        counts.add_file("a." + "".join(random_.choices(string.printable + "é\u202e/", k=5)))
    assert sum(counts.values()) == 5000
    assert len(counts) <= MAX_LABELS + 1
    assert all(label.isprintable() and label.isascii() and len(label) <= 18 for label in counts)


def test_counts_add_up_and_can_be_stored() -> None:
    first, second = LeftOut(), LeftOut()
    for name in ("a.txt", "b.json", "c.json"):
        first.add_file(name)
    second.add_file("d.json")
    second.merge(first)
    assert second == {".json": 3, ".txt": 1}
    assert list(second.ordered()) == [".json", ".txt"]
    assert LeftOut.from_text(second.to_text()) == second
    assert LeftOut().to_text() == ""
    assert LeftOut.from_text("") == {}


@pytest.mark.parametrize("text", ["[]", '{"a": "b"}', '{"a": true}', "{"])
def test_invalid_counts_are_refused(text: str) -> None:
    with pytest.raises((TypeError, ValueError)):
        LeftOut.from_text(text)


def test_labels_beyond_the_limit_are_counted_together() -> None:
    counts = LeftOut()
    for number in range(MAX_LABELS + 10):
        counts.add(f".x{number}")
    assert counts[OTHER] == 10


def test_labels_are_not_blanked_out_as_secrets() -> None:
    counts = LeftOut()
    for name in ("a.token", "b.api_key", "c.password", "d.json"):
        counts.add_file(name)
    assert b"***" not in to_json({"left_out": counts.ordered()})
