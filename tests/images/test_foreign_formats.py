from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from pipeline.images import Rejection, RejectReason, decode
from pipeline.images.formats import describe_foreign

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"
DENIED = b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>'
SVG = b"<?xml version='1.0'?><!-- drawn -->\n<svg xmlns='http://www.w3.org/2000/svg'/>"


def brand_box(brand: bytes) -> bytes:
    return b"\x00\x00\x00\x14ftyp" + brand + bytes(4) + brand


def tar_file() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
    return stream.getvalue()


def zip_file() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.jpg", b"")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"<!DOCTYPE html><html><body>403", "an HTML page"),
        (b"\n\n <HTML>\n<head>", "an HTML page"),
        (b"\xef\xbb\xbf<html>", "an HTML page"),
        ("<html>".encode("utf-16"), "an HTML page"),
        (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "">', "an HTML page"),
        (LFS, "a Git LFS pointer"),
        (SVG, "an SVG drawing"),
        (b"<svg/>", "an SVG drawing"),
        (
            DENIED,
            'an XML document ("<?xml version="1.0"?> <Error><Code>AccessDenied</Code></Erro…")',
        ),
        (json.dumps({"message": "Not Found"}).encode(), 'JSON ("{"message": "Not Found"}")'),
        (b"[1, 2, 3]", "JSON"),
        (b"data:image/png;base64,iVBOR", "a data URI"),
        (b"404: Not Found", 'text ("404: Not Found")'),
        ("Zugriff verweigert: für Gäste".encode(), "text"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (brand_box(b"isom"), "a video (MP4)"),
        (brand_box(b"qt  "), "a video (QuickTime)"),
        (b"\x00\x00\x00\x08wide\x00\x00", "a video (QuickTime)"),
        (brand_box(b"crx "), "a camera raw file (CR3)"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "a video (Matroska or WebM)"),
        (b"RIFF\x00\x01\x00\x00AVI LIST", "a video (AVI)"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"v/1\x01\x02\x00", "an OpenEXR image"),
        (b"FUJIFILMCCD-RAW 0201", "a camera raw file (RAF)"),
        (zip_file(), "a ZIP archive"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (tar_file(), "a tar archive"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x00\x05\x16\x07\x00\x02", "macOS metadata (AppleDouble)"),
        (bytes(128) + b"DICM", "a DICOM image"),
    ],
)
def test_a_reject_names_the_kind_of_file(content: bytes, what: str) -> None:
    with pytest.raises(Rejection) as caught:
        decode(content)
    assert caught.value.reason is RejectReason.UNSUPPORTED_FORMAT
    assert caught.value.detail.startswith(f"it is {what}")
    assert ": " in caught.value.detail
    assert caught.value.detail.isprintable()


def test_files_of_zeros_are_described() -> None:
    assert describe_foreign(bytes(5000)).startswith("all of its 5000 bytes are zero")


def test_unknown_bytes_are_quoted() -> None:
    text = describe_foreign(b"\x01\x02\x03\xff\xfe\xfd\x80\x81\x90")
    assert text.startswith("begins with 01 02 03 ff fe fd 80 81, which is none of JPEG, PNG")
    assert "HEIC" in text


@pytest.mark.parametrize("content", [b"\x00", b"\x00\x01", b"a\x1b[31m", b"\xc3", b"\xff\xfe\x00"])
def test_short_and_odd_bytes_are_not_text(content: bytes) -> None:
    assert describe_foreign(content).isprintable()


def test_long_or_nested_texts_are_described_fast() -> None:
    for content in (b"<" * 10**6, b"<?xml" * 10**5, b"<!--" * 10**5, b"[" * 10**6, b" " * 10**6):
        assert len(describe_foreign(content)) < 300
