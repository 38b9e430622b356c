"""Code files as bad input: `latents.npy`, which is a pickle, and files of single codes."""

from __future__ import annotations

import functools
import io
import os
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from pipeline.interop.codes import read_code
from pipeline.interop.pickled_codes import latents_file, read_latents
from tests.fuzz import words
from tests.fuzz.archives import json_text
from tests.fuzz.kind import BrokenPromiseError, Case, Kind
from tests.fuzz.mutate import mutated
from tests.interop.hungry import HUNGRY


class _Command:
    """Object whose unpickling would run a command."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch planted",)


@functools.cache
def _sound() -> bytes:
    return latents_file({"a.jpg": np.ones((2, 4, 512), np.float32)})


def _odd_dictionary(draw: Random) -> bytes:
    values = (
        *(np.zeros((4, 512), kind) for kind in ("f2", "f4", ">f4", "f8", "i4", "c8", "O", "U3")),
        *(np.zeros(shape) for shape in ((), (0, 512), (4, 511), (1, 2, 3, 512))),
        np.full((4, 512), np.nan),
        np.zeros((512, 4), "f4").T,
        np.ma.zeros(3),
        _Command(),
        json_text(draw),
        [np.zeros((4, 512))] * 3,
    )
    content = {draw.choice(("a.jpg", words.text(draw), 3)): draw.choice(values) for _ in range(2)}
    sink = io.BytesIO()
    array = np.array(content if draw.random() < 0.9 else draw.choice(values), dtype=object)
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def _make(draw: Random) -> Case:
    way = draw.random()
    if way < 0.1:
        content = draw.choice(sorted(HUNGRY.values()))
        return {"latents.npy": mutated(draw, content, most=2) if draw.random() < 0.5 else content}
    if way < 0.5:
        return {"latents.npy": mutated(draw, _sound())}
    if way < 0.75:
        content = _odd_dictionary(draw)
        return {"latents.npy": mutated(draw, content, most=2) if draw.random() < 0.4 else content}
    sink = io.BytesIO()
    if way < 0.87:
        torch.save(draw.choice((torch.zeros(4, 512), _Command(), [1], {"a": 1})), sink)
        return {"code.pt": mutated(draw, sink.getvalue(), most=2)}
    if way < 0.92:
        np.savez_compressed(sink, **{draw.choice(("w", "z")): np.ones((1, 4, 512), np.float32)})
        return {"code.npz": mutated(draw, sink.getvalue(), most=2)}
    shape = draw.choice(((4, 512), (512,), (70_000,), (0,), (3, 4)))
    np.save(sink, np.broadcast_to(np.float32(1), shape)[:4])
    content = sink.getvalue()[: 20_000 if draw.random() < 0.9 else 128]
    return {"code.npy": mutated(draw, content, most=2) if draw.random() < 0.8 else content}


def _run(case: Case, _: Path) -> str:
    ((name, content),) = case.items()
    if name == "latents.npy":
        arrays = list(read_latents(content, name).values())
    else:
        arrays = [read_code(content, name)]
    if not all(codes.ndim == 3 and codes.dtype.kind == "f" for codes in arrays):
        raise BrokenPromiseError("codes of another shape or type")
    return "codes"


KINDS = [Kind("codes", _make, _run, share=3)]
