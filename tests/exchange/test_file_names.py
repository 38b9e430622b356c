"""Promises of the names of files: inside the folder, one a name, and readable back."""

from __future__ import annotations

import itertools
import os

import pytest

from pipeline.exchange.file_names import LONGEST_COMPONENT, fits, from_file_name, to_file_name

PARTS = ("", ".", "..", "a", "%", "%2E", "%25", ".hidden", "%2E%2E", "..x", "ä 日")


@pytest.mark.parametrize("name", ["a", "s-0/a/1.jpg#0", "a b/ä%2E.jpg", "x..", "a.%"])
def test_a_usual_name_is_its_own_file_name(name: str) -> None:
    assert to_file_name(name) == name


def test_no_name_leaves_its_folder_or_is_another_ones_file() -> None:
    names = [
        "/".join(parts) for count in (1, 2, 3) for parts in itertools.product(PARTS, repeat=count)
    ]
    files = {to_file_name(name): name for name in names}
    assert len(files) == len(names)
    assert {from_file_name(file) for file in files} == set(names)
    for file, name in files.items():
        assert from_file_name(file) == name
        assert os.path.normpath(f"/root/{file}") == f"/root/{file}"
        assert not any(part.startswith(".") for part in file.split("/"))


def test_a_name_that_no_disk_takes_is_known_before() -> None:
    assert fits("/".join(["a" * LONGEST_COMPONENT] * 3))
    assert not fits("a" * (LONGEST_COMPONENT + 1))
    assert not fits("." + "a" * (LONGEST_COMPONENT - 2))
    assert not fits("ä" * LONGEST_COMPONENT)
    assert not fits("a\0b")
