"""Texts of errors are one printable line of bounded length."""

from __future__ import annotations

from pipeline.errors import FingerprintError, StorageError


def test_names_cannot_inject_line_breaks_or_escapes() -> None:
    error = StorageError("cannot read 'a\n\x1b[31m\u202eb\udcff.tar'")
    assert str(error) == r"cannot read 'a\n\x1b[31m\u202eb\udcff.tar'"
    assert str(StorageError("cannot read 'ä 日本.tar'")) == "cannot read 'ä 日本.tar'"


def test_long_text_keeps_its_beginning_and_end() -> None:
    text = str(StorageError("begin" + "x" * 100_000 + "end"))
    assert (text[:5], text[-3:], len(text)) == ("begin", "end", 1000)


def test_differences_have_one_line_each() -> None:
    assert str(FingerprintError("other:\n  a: 1\n  b\x1b: 2")) == "other:\n  a: 1\n  b\\x1b: 2"
