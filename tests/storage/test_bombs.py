"""Promises about bombs: a shard that claims too much fails or is a reject, and costs no memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import StorageError
from pipeline.storage import Sample, list_shards, read_samples
from pipeline.storage.readers.parquet_pages import PageBombError, read_page_header
from tests.fuzz.guard import forget_peak, memory_mib
from tests.storage import bombs

ROOT = Path(__file__).resolve().parents[2]
MAX_MIB = 64  # growth of the process


def read(path: Path) -> list[Sample]:
    return [sample for shard in list_shards(str(path)) for sample in read_samples(shard)]


def growth_while_refusing(path: Path, message: str) -> int:
    """Return the peak growth in MiB while the shard is refused with `message`."""
    shards = list(list_shards(str(path)))
    forget_peak()
    before = memory_mib("VmRSS")
    with pytest.raises(StorageError, match=message):
        list(read_samples(shards[0]))
    return memory_mib("VmHWM") - before


@pytest.mark.parametrize("compression", ["brotli", "zstd", "gzip"])
def test_page_that_unpacks_too_far_is_refused(tmp_path: Path, compression: str) -> None:
    path = bombs.packed_page(tmp_path / "a.parquet", compression)
    assert path.stat().st_size < 400_000
    assert growth_while_refusing(path, r"claims to unpack to 3145728\d\d, over 200 times") < MAX_MIB


def test_list_with_too_many_values_is_refused(tmp_path: Path) -> None:
    path = bombs.long_list(tmp_path / "a.parquet")
    assert path.stat().st_size < 100_000
    assert growth_while_refusing(path, r"bytes claims \d+ values, of at most 1048576") < MAX_MIB


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_file_of_holes_is_one_reject(tmp_path: Path, form: str) -> None:
    path = bombs.sparse_tar(tmp_path / "a.tar", form=form)
    forget_peak()
    before = memory_mib("VmRSS")
    samples = {sample.key: sample for sample in read(path)}
    assert memory_mib("VmHWM") - before < MAX_MIB
    assert {key: sample.content for key, sample in samples.items()} == {
        "a": b"before",
        "b": b"",
        "c": b"behind",
    }
    assert samples["b"].reject == "unsupported_format"
    assert "sparse file of 1073741824 bytes, of which the archive holds 1" in samples["b"].detail


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_sparse_file_with_a_small_hole_is_read(tmp_path: Path, form: str) -> None:
    path = bombs.sparse_tar(tmp_path / "a.tar", size=200_000, form=form)
    (sample,) = (sample for sample in read(path) if sample.key == "b")
    assert sample.content == bytes(199_999) + b"x"


def test_highly_compressible_equal_images_are_read(tmp_path: Path) -> None:
    image = os.urandom(20_000)
    table = pa.table({"image": [image] * 2000})
    for number, codec in enumerate(("zstd", "brotli", "snappy")):
        pq.write_table(table, tmp_path / f"{number}.parquet", compression=codec)
        plain = tmp_path / f"{number}-plain.parquet"
        pq.write_table(table, plain, compression=codec, use_dictionary=False)
    assert [sample.content == image for sample in read(tmp_path)] == [True] * 12_000


LIMITED_BLOCKS = """
import resource
from pipeline.storage.readers.memory_limit import MemoryLimit

before = resource.getrlimit(resource.RLIMIT_DATA)
limit = MemoryLimit(256 << 20)
for _ in range(3):
    try:
        with limit:
            bytearray(1 << 30)
    except MemoryError:
        print("refused")
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
with limit:
    bytearray(1 << 20)
bytearray(512 << 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_limit_ends_with_its_block() -> None:
    """Run in a process of its own: in a large one, memory may be freed between the blocks."""
    command = [sys.executable, "-c", LIMITED_BLOCKS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused"] * 3


GROWN_WITHOUT_HEADROOM = """
import sys
from pathlib import Path
from pipeline.storage.readers import parquet
from tests.storage.test_bombs import growth_while_refusing

parquet._FREE_MEMORY, parquet._GROWTH = 1 << 20, 0
message = "a row needs far more memory than the file has bytes"
print(growth_while_refusing(Path(sys.argv[1]), message))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_limit_stops_rows_without_page_claims(tmp_path: Path) -> None:
    path = bombs.packed_page(tmp_path / "a.parquet", "none", 200 << 20)
    # In its own process: this one may have freed memory that the allocator has kept.
    command = [sys.executable, "-c", GROWN_WITHOUT_HEADROOM, str(path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < MAX_MIB


@pytest.mark.parametrize(
    "content",
    [b"\x15\x00" * 0 + b"\x1c" * 100, b"\x19\xff" + b"\x00" * 50, b"\x16" + b"\xff" * 40],
)
def test_invalid_page_header_is_refused(content: bytes) -> None:
    with pytest.raises(PageBombError):
        read_page_header(content)
