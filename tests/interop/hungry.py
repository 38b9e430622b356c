"""Small files of codes that demand gigabytes of memory, each in another way."""

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
    """Return a numpy file of the dictionary {"a": value}, written as pickle instructions."""
    dictionary = b"}X\1\0\0\0a" + value + b"s"
    objects = b"(K\1)cnumpy\ndtype\nX\2\0\0\0O8\x85R\x89](" + dictionary + b"etb"
    return HEADER + b"\x80\2" + _ARRAY + objects + b"."


def _buffer(rows: int, raw: bytes) -> bytes:
    """`numpy._core.numeric._frombuffer(raw, float32, (rows, 512), "C")`."""
    shape = _number(rows) + b"M\0\2\x86"
    return b"cnumpy._core.numeric\n_frombuffer\n(" + raw + _FLOATS + shape + b"X\1\0\0\0CtR"


_ONE_CODE = _buffer(1, b"B" + struct.pack("<I", 2048) + bytes(2048))


def zeros_from_a_number(gigabytes: int = 2) -> bytes:
    """Return an array whose bytes are a number: `bytes(n)` is n zeros."""
    rows = (gigabytes << 30) // 2048 - 1
    return _file(_buffer(rows, _number(rows * 2048)))


def far_memo() -> bytes:
    """Use a memo slot far beyond the others, for which Python's unpickler allocates memory."""
    return HEADER + b"\x80\2}r" + struct.pack("<I", 1 << 28) + b"."


def laughing_lists(depth: int = 30) -> bytes:
    """Return lists of lists, nine times each: 9 ** `depth` when they are traversed."""
    nested = _ONE_CODE
    for slot in range(1, depth + 1):
        nested = b"](" + nested + bytes([ord("q"), slot]) + bytes([ord("h"), slot]) * 8 + b"e"
    return _file(nested)


def repeated_code(times: int = 8000) -> bytes:
    """Return one code that is referenced many times."""
    return _file(b"](" + _ONE_CODE + b"q\1" + b"h\1" * times + b"e")


def repeated_names(times: int = 50_000) -> bytes:
    """Return one text that is encoded many times."""
    text = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20) + b"q\1"
    encoded = b"c_codecs\nencode\n(h\1X\6\0\0\0latin1tR"
    return _file(b"](" + text + encoded * times + b"e")


def many_records(times: int = 1_000_000) -> bytes:
    """Return an object of a hundred bytes for every three bytes of the file."""
    return _file(b"](cnumpy\nndarray\nq\1" + b"h\1)R" * times + b"e")


def promised_bytes() -> bytes:
    """Return a byte array that declares gigabytes and has none."""
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
