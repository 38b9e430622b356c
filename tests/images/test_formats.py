from __future__ import annotations

import pytest

from pipeline.images.formats import is_cut_short
from pipeline.storage.signatures import sniff
from tests.images.encoded import FILES

PILLOW_NAME = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "tiff": "TIFF"}


@pytest.mark.parametrize("name", FILES)
def test_the_format_is_known_by_its_content(name: str) -> None:
    assert sniff(FILES[name]) == PILLOW_NAME.get(name.split("_")[0], "BMP")


@pytest.mark.parametrize("content", [b"", b"\x89PN", b"RIFF", b"hello", b"\x00" * 64])
def test_other_bytes_have_no_format(content: bytes) -> None:
    assert sniff(content) is None


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_not_cut_short(name: str) -> None:
    known = sniff(FILES[name])
    assert known is not None
    assert not is_cut_short(FILES[name], known)


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "gif", "bmp", "tiff"])
def test_half_a_file_is_cut_short(name: str) -> None:
    half = FILES[name][: len(FILES[name]) // 2]
    known = sniff(half)
    assert known is not None
    # Pillow's own TIFFs begin with their directory: what misses there is found by the strips.
    assert is_cut_short(half, known) is (name != "tiff")
    assert is_cut_short(half[:20], known)
