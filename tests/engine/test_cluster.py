from __future__ import annotations

import pytest

from pipeline.engine.cluster import gist

TRACE = 'ray::Align() (pid=7)\n  File "align.py", line 3, in work\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TRACE + "OSError: the disk is full", "RuntimeError: OSError: the disk is full"),
        (TRACE + "OSError: the disk is full\r\n \t\n\n", "RuntimeError: OSError: the disk is full"),
        ("lost\u2028node", "RuntimeError: node"),
        (" \n", "RuntimeError"),
        ("", "RuntimeError"),
    ],
)
def test_of_a_remote_error_the_last_line_with_words_is_told(text: str, told: str) -> None:
    assert gist(RuntimeError(text)) == told


def test_no_line_of_a_credential_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_SECRET_KEY", "first-line-of-it\nlast-line-of-it")
    told = gist(OSError("refused: first-line-of-it\nlast-line-of-it"))
    assert told == "OSError: refused: ***"
