"""Promises of the errors: one line, whatever names it holds."""

from __future__ import annotations

from pipeline.errors import FingerprintError, StorageError


def test_names_cannot_break_the_line_or_drive_the_terminal() -> None:
    error = StorageError("cannot read 'a\n\x1b[31m\u202eb\udcff.tar'")
    assert str(error) == r"cannot read 'a\n\x1b[31m\u202eb\udcff.tar'"
    assert str(StorageError("cannot read 'ä 日本.tar'")) == "cannot read 'ä 日本.tar'"


def test_of_a_long_text_the_beginning_and_the_end_are_kept() -> None:
    text = str(StorageError("begin" + "x" * 100_000 + "end"))
    assert (text[:5], text[-3:], len(text)) == ("begin", "end", 1000)


def test_differences_stand_on_a_line_each() -> None:
    assert str(FingerprintError("other:\n  a: 1\n  b\x1b: 2")) == "other:\n  a: 1\n  b\\x1b: 2"
