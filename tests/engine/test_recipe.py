from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.refine_dataset import second_pass
from pipeline.config import JobConfig
from pipeline.engine.read import ShardWork, read_parts
from pipeline.engine.recipe import make_recipe
from pipeline.errors import ConfigError
from pipeline.storage import list_shards
from pipeline.table import open_for_writing

ConfigOf = Callable[..., JobConfig]


@pytest.fixture
def first_pass(config_of: ConfigOf, tmp_path: Path) -> JobConfig:
    """A table of two files a shard, both shards committed."""
    config = config_of(output=str(tmp_path / "first"), files_per_shard=2, prealigned=True)
    writer = open_for_writing(config.output, make_recipe(config).description, part_size=2)
    for shard in list_shards(config.input, files_per_shard=2):
        source = dict.fromkeys(("source_uri", "source_sha256", "detail"), "")
        rejects = [
            {"key": name, "face_index": None, "reason": "no_face", **source} for name in shard.names
        ]
        part = writer.write_part(shard, 0, samples=2, latents=[], rejects=rejects)
        writer.commit_shard(shard, [part])
    return config


def test_codes_of_another_cut_of_the_input_are_refused(
    config_of: ConfigOf, first_pass: JobConfig, tmp_path: Path
) -> None:
    init = first_pass.output
    make_recipe(config_of(init=init, files_per_shard=2))
    with pytest.raises(ConfigError, match="files_per_shard '2', and this run has '3'"):
        make_recipe(config_of(init=init, where="key <> ''", files_per_shard=3))
    with pytest.raises(ConfigError, match=r"input '.*/images', and this run has '.*/other'"):
        make_recipe(config_of(init=init, files_per_shard=2, input=str(tmp_path / "other")))


def test_a_shard_that_changed_since_its_codes_were_found_fails(first_pass: JobConfig) -> None:
    """In silence it would give fewer samples: its new keys are none that a condition chose."""
    (shard, _) = list_shards(first_pass.input, files_per_shard=2)
    work = ShardWork(shard, 2, init=first_pass.output, where="true")
    assert [row["kind"] for row in read_parts(work.to_row())] == ["end"]
    changed = replace(work, shard=replace(shard, etag="another"))
    (row,) = read_parts(changed.to_row())
    assert row["kind"] == "failed"
    assert "changed since the table" in row["error"]


def test_a_second_pass_reads_the_input_as_the_first_one_did(
    first_pass: JobConfig, tmp_path: Path
) -> None:
    config = second_pass(first_pass.output, {"output": str(tmp_path / "second")})
    assert config.layout() == first_pass.layout()
    make_recipe(config)


@pytest.mark.parametrize(("where", "limit"), [(None, 3), ("lpips > 0", 3)])
def test_a_second_pass_over_a_limited_table_has_its_limit(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, limit: int
) -> None:
    """And an input by a relative path is found from anywhere."""
    monkeypatch.chdir(tmp_path)
    first = config_of(output="first", input="images", limit=3)
    open_for_writing(first.output, make_recipe(first).description, part_size=2)
    table, other = str(tmp_path / "first"), tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    config = second_pass(table, {"output": "second", "where": where})
    assert (config.input, config.limit) == (str(tmp_path / "images"), limit)
