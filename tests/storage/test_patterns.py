"""Promises of patterns of names."""

from __future__ import annotations

import pytest

from pipeline.storage.patterns import (
    Glob,
    count_braces,
    expand_braces,
    has_braces,
    has_glob,
    literal_folder,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{0..3}.tar", ["0.tar", "1.tar", "2.tar", "3.tar"]),
        ("{008..010}", ["008", "009", "010"]),
        ("{1..10..4}", ["1", "5", "9"]),
        ("{3..1}", ["3", "2", "1"]),
        ("{+1..3}", ["1", "2", "3"]),
        ("{+001..02}", ["0001", "0002"]),
        ("{a..c}", ["a", "b", "c"]),
        ("{a..e..2}", ["a", "c", "e"]),
        ("{z..a..-9}", ["z", "q", "h"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("a{b,c{1..2},}d", ["abd", "ac1d", "ac2d", "ad"]),
        ("{{a,b}", ["{a", "{b"]),
    ],
)
def test_braces_expand_as_in_bash(text: str, expected: list[str]) -> None:
    assert list(expand_braces(text)) == expected
    assert count_braces(text) == len(expected)
    assert has_braces(text)


@pytest.mark.parametrize(
    "text", ["plain", "{one}", "{}", "{", "}{", "{1..}", "{a..bc}", "{" * 9999]
)
def test_braces_with_one_expansion_are_literal(text: str) -> None:
    assert list(expand_braces(text)) == [text]
    assert (count_braces(text), has_braces(text)) == (1, False)


def test_expansions_are_counted_without_being_created() -> None:
    assert count_braces("{0..99999}/{0..99999}.jpg") == 10**10
    assert count_braces(f"{{0..{10**20}}}") == 10**20 + 1
    assert count_braces(f"{{{10**20}..1..3}}") == 10**20 // 3 + 1


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("*.jpg", ["a.jpg", ".jpg"], ["a.png", "b/a.jpg"]),
        ("**/*.jpg", ["a.jpg", "b/a.jpg", "b/c/a.jpg"], ["a.png", "b/a.png"]),
        ("a/**", ["a/b", "a/b/c"], ["b", "b/a"]),
        ("train-?/[0-4]*.tar", ["train-a/0.tar", "train-b/4x.tar"], ["train-a/5.tar", "0.tar"]),
        ("2024-*", ["2024-01", "2024-01/a/b.jpg"], ["2023-01/a.jpg"]),
        ("**", ["a", "b/c/d.jpg"], []),
        ("**/**", ["a", "b/c/d.jpg"], []),
        ("a/**/b/*.jpg", ["a/b/1.jpg", "a/x/y/b/1.jpg"], ["a/1.jpg", "b/1.jpg"]),
    ],
)
def test_glob_fits_paths_or_folders_above_them(
    pattern: str, fitting: list[str], others: list[str]
) -> None:
    glob = Glob(pattern)
    assert [path for path in (*fitting, *others) if glob.fits(path)] == fitting
    for path in fitting:
        while "/" in path:
            path = path.rpartition("/")[0]
            assert glob.may_hold(path), "or a walk would not come to what fits"


def test_folders_that_cannot_match_are_not_entered() -> None:
    assert not Glob("*.jpg").may_hold("deep")
    assert not Glob("a/*/1.jpg").may_hold("b")
    assert not Glob("a/*/1.jpg").may_hold("a/x/y")


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [
        ("s3://b/s/{0..3}.tar", "s3://b/s"),
        ("s3://b/*", "s3://b"),
        ("s3://{a,b}/x", ""),
        ("https://host/{0..3}.tar", "https://host"),
        ("/data/in/**/*.jpg", "/data/in"),
        ("/*.jpg", ""),
    ],
)
def test_literal_folder_ends_before_the_pattern(pattern: str, folder: str) -> None:
    assert literal_folder(pattern) == folder


def test_web_query_is_not_a_pattern() -> None:
    assert not has_glob("https://host/a.tar?download=1")
    assert has_glob("https://host/*.tar")
    assert has_glob("/data/?.tar")
