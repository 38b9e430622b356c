"""File names as bad input, in any encoding and length, from listing to a committed shard."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage import Shard, list_shards, read_samples
from pipeline.table import open_for_writing, open_table
from tests.fuzz import words
from tests.fuzz.archives import check
from tests.fuzz.kind import BrokenPromiseError, Case, Kind
from tests.table.rows import DESCRIPTION, face_row, reject_row, state_of

_SAFE = re.compile(r"[A-Za-z0-9._-]{1,120}")
_PART = 4


def _tar(draw: Random) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=draw.choice((0, 1, 2))) as archive:
        for _ in range(draw.randint(1, 4)):
            name = words.as_text(words.path(draw)) + draw.choice((".jpg", ".PNG", ".json"))
            try:
                archive.addfile(tarfile.TarInfo(name))
            except ValueError:  # too long for this format
                continue
    return sink.getvalue()


def _parquet(draw: Random) -> bytes:
    keys = [words.text(draw) for _ in range(draw.randint(1, 4))]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": [b"x"] * len(keys), "key": keys}), sink)
    return sink.getvalue()


def _make(draw: Random) -> Case:
    case: Case = {}
    folder = b"".join(words.name(draw) + b"/" for _ in range(draw.choice((0, 0, 1, 2))))
    for _ in range(draw.randint(1, 4)):
        end = draw.choice((".jpg", ".jpeg", ".tar", ".parquet", ".json"))
        content = {".tar": _tar, ".parquet": _parquet}.get(end, lambda _: b"x")(draw)
        case[words.as_text(folder + words.name(draw) + end.encode())] = content
    return case


def _write_input(case: Case, root: Path) -> None:
    for name, content in case.items():
        path = os.path.join(root, name)  # noqa: PTH118 - a name may begin with anything
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(content)


def _commit(shard: Shard, root: Path) -> int:
    """Commit a shard's samples, alternately as faces and rejects; return their number."""
    table = open_for_writing(str(root), DESCRIPTION, part_size=_PART)
    samples = list(read_samples(shard))
    check(samples)
    parts = []
    for part in range(-(-len(samples) // _PART)):
        run = samples[part * _PART : (part + 1) * _PART]
        faces = [face_row(sample.key, source_uri=sample.uri) for sample in run[::2]]
        rejects = [{**reject_row(sample.key), "source_uri": sample.uri} for sample in run[1::2]]
        written = table.write_part(shard, part, samples=len(run), latents=faces, rejects=rejects)
        parts.append(written)
    table.commit_shard(shard, parts)
    if not state_of(table, shard).done:
        raise BrokenPromiseError(f"the shard {shard.shard_id!r} is not done after its commit")
    return len(samples)


def _run(case: Case, folder: Path) -> str:
    _write_input(case, folder / "in")
    shards = list(list_shards(str(folder / "in"), files_per_shard=3))
    for shard in shards:
        if not _SAFE.fullmatch(shard.shard_id):
            raise BrokenPromiseError(f"the shard id {shard.shard_id!r} is not a safe file name")
    samples = sum(_commit(shard, folder / "table") for shard in shards)
    table = open_table(str(folder / "table"))
    counts = table.verify()
    if counts["samples"] != samples or counts["shards"] != len(shards):
        raise BrokenPromiseError(f"{samples} samples went in, the table holds {counts}")
    ids = list(table.sql("SELECT image_id FROM latents ORDER BY image_id")["image_id"])
    if len(table.w_plus(ids)) != counts["faces"]:
        raise BrokenPromiseError("codes are not found by their ids")
    return "row"


KINDS = [Kind("name", _make, _run, share=1, memory_mib=256, limit_s=120)]
