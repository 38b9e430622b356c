from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import JobConfig
from pipeline.engine import plan as plan_module
from pipeline.engine.plan import Backlog, Plan, TaskQueue, make_plan, take_first
from pipeline.engine.stages.read import ShardTask
from pipeline.errors import (
    FingerprintError,
    InputError,
    ModelError,
    RequestError,
    StorageError,
)
from pipeline.models import load_model, save_bundle
from pipeline.storage import ReadOptions, Shard, list_shards
from pipeline.storage.file_types import Kind
from pipeline.table import PartRecord
from pipeline.table.resume import ShardState
from pipeline.table.schema import SCHEMA_VERSION
from tests.storage.archives import write_files, write_parquet, write_tar

ConfigOf = Callable[..., JobConfig]
KINDS = ("latents", "rejects")


@pytest.fixture
def states(tmp_path: Path) -> list[ShardState]:
    """Three archives of four images each."""
    folder = tmp_path / "tars"
    for name in "abc":
        write_tar(folder / f"{name}.tar", [(f"{n}.jpg", b"image") for n in range(4)])
    return [ShardState(shard) for shard in list_shards(str(folder))]


def reject_of(name: str) -> dict[str, str | None]:
    """Return the row of a sample without a face."""
    source = dict.fromkeys(("source_uri", "source_sha256", "detail"), "")
    return {"key": name, "face_index": None, "reason": "no_face", **source}


def taken(states: list[ShardState], limit: int | None) -> list[tuple[str, int | None]]:
    return [(state.shard.shard_id, take) for state, take in take_first(states, limit, 2, Backlog())]


def test_without_a_limit_all_is_taken(states: list[ShardState]) -> None:
    assert taken(states, None) == [("a", None), ("b", None), ("c", None)]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, [("a", 1)]),
        (4, [("a", 4)]),
        (6, [("a", 6), ("b", 2)]),
        (99, [("a", 99), ("b", 95), ("c", 91)]),
    ],
)
def test_a_limit_takes_the_first_samples(
    states: list[ShardState], limit: int, expected: list[tuple[str, int]]
) -> None:
    """Each shard may take all that is left: its reader stops at its end, or at damage."""
    assert taken(states, limit) == expected


@pytest.mark.parametrize(("limit", "limited"), [(None, False), (6, True), (12, True), (13, False)])
def test_a_limit_knows_whether_it_cut_the_input(
    states: list[ShardState], limit: int | None, limited: bool
) -> None:
    backlog = Backlog()
    list(take_first(states, limit, 2, backlog))
    assert backlog.limited is limited


def test_shards_behind_the_limit_are_not_read(states: list[ShardState]) -> None:
    Path(states[2].shard.uri).unlink()
    assert len(taken(states, 8)) == 2


def test_a_damaged_shard_fails_alone(states: list[ShardState]) -> None:
    path = Path(states[1].shard.uri)
    path.write_bytes(path.read_bytes()[:1500])
    assert taken(states, 99) == [("a", 99), ("b", 95), ("c", 94)]


@pytest.mark.parametrize(
    ("samples", "limit", "kept"),
    [
        ({0: 2, 1: 2}, 4, {0, 1}),
        ({0: 2, 1: 2}, 3, {0}),  # part 1 was taken whole, and one sample is
        ({0: 2, 1: 1}, 4, {0}),  # part 1 was cut, and both its samples are taken
        ({0: 2, 1: 1}, 3, {0, 1}),
        ({0: 1, 1: 2}, 3, {1}),  # part 0 was cut
        ({1: 2}, 4, {1}),
        ({1: 1}, 3, set()),  # where it began is not known
        ({1: 2}, 3, set()),
        ({0: 2, 1: 1}, None, {0, 1}),
    ],
)
def test_parts_that_another_limit_cut_are_done_again(
    states: list[ShardState], samples: dict[int, int], limit: int | None, kept: set[int]
) -> None:
    parts = {number: PartRecord(number, count, 0, count) for number, count in samples.items()}
    (state, _), *_ = take_first([replace(states[0], parts=parts)], limit, 2, Backlog())
    assert state.parts.keys() == kept
    stale = {f"{kind}/a-{n:05d}.parquet" for n in parts.keys() - kept for kind in KINDS}
    assert set(state.stale) == stale


def work_of(size: int, names: int = 0) -> ShardTask:
    kind: Kind = "folder" if names else "tar"
    shard = Shard(f"s-{size}", "/in", kind, size, "e", ("x",) * names, (1,) * names)
    return ShardTask(shard, 2)


def test_the_largest_shards_come_first() -> None:
    tasks = TaskQueue(work_of(size) for size in (3, 9, 1, 7))
    assert tasks
    assert [work.shard.size for work in tasks] == [9, 7, 3, 1]
    assert not tasks


@pytest.mark.parametrize(("window", "names"), [("WINDOW_SHARDS", 0), ("WINDOW_NAMES", 1)])
def test_a_long_listing_holds_only_a_window(
    window: str, names: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, window, 3)
    listed: list[int] = []

    def listing() -> Iterator[ShardTask]:
        for size in (1, 2, 3, 9, 8, 7):
            listed.append(size)
            yield work_of(size, names)

    tasks = TaskQueue(listing())
    assert next(tasks).shard.size == 3
    assert listed == [1, 2, 3]
    assert [next(tasks).shard.size for _ in range(2)] == [9, 8]
    assert listed == [1, 2, 3, 9, 8]


def failing(sizes: range) -> Iterator[ShardTask]:
    """A listing that ends with an error."""
    yield from map(work_of, sizes)
    raise StorageError("SlowDown")


def test_a_late_listing_error_keeps_earlier_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "WINDOW_SHARDS", 3)
    tasks = TaskQueue(failing(range(5)))
    assert tasks
    assert sorted(next(tasks).shard.size for _ in range(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(StorageError, match="SlowDown"):
        next(tasks)


def test_an_early_listing_error_is_raised_at_once() -> None:
    with pytest.raises(StorageError, match="SlowDown"):
        bool(TaskQueue(failing(range(5))))


def test_a_new_table_is_described_before_any_work(plan: Plan) -> None:
    assert plan.writer.store.exists("_table.json")
    (work,) = plan.tasks
    assert work.shard.shard_id == "files-00000"
    backlog = plan.backlog
    assert (backlog.done_shards, backlog.done_parts, backlog.done_samples) == (0, 0, 0)
    assert backlog.complete
    assert backlog.bytes == work.shard.size > 0


def test_a_dry_run_plans_without_a_trace(config_of: ConfigOf) -> None:
    config = config_of()
    assert len(list(make_plan(config, dry_run=True).tasks)) == 1
    assert not Path(config.output).exists()


def test_a_missing_input_is_refused_without_a_table(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of(input=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere' does not exist"):
        make_plan(config)
    assert not Path(config.output).exists()


def test_a_missing_model_is_refused_without_a_table(config_of: ConfigOf) -> None:
    config = config_of(model="no-such-model")
    with pytest.raises(ModelError, match="no-such-model"):
        make_plan(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("setting", "difference"),
    [
        ({"steps": 3}, "--steps: 5 in the table, 3 asked for"),
        ({"faces": "all"}, '--faces: "largest" in the table, "all" asked for'),
        ({"latent_dtype": "float32"}, '--latent-dtype: "float16" in the table, "float32"'),
        ({"limit": 2}, "--limit: null in the table, 2 asked for"),
        ({"best_step_by": "last"}, '--best-step-by: "lpips" in the table, "last" asked for'),
        ({"keep_steps": True}, "--keep-steps: false in the table, true asked for"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_other_settings_are_refused_with_the_difference(
    plan: Plan, config_of: ConfigOf, setting: dict[str, object], difference: str, dry_run: bool
) -> None:
    before = plan.writer.store.get("_table.json")
    with pytest.raises(FingerprintError) as refusal:
        make_plan(config_of(**setting), dry_run=dry_run)
    assert difference in str(refusal.value)
    assert plan.writer.store.get("_table.json") == before


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"schema_version": 99}', "schema version 99; this code reads version"),
        (b'{"schema_ver', "is not JSON"),
        (b"[]", "is not a JSON object"),
        (f'{{"schema_version": {SCHEMA_VERSION}}}'.encode(), "is incomplete"),
    ],
)
def test_an_unreadable_table_is_a_wrong_request(
    plan: Plan, config_of: ConfigOf, content: bytes, problem: str, dry_run: bool
) -> None:
    """Repeating the command cannot help, and the table is not overwritten."""
    plan.writer.store.put("_table.json", content)
    with pytest.raises(RequestError, match=f"{problem}.*choose another output"):
        make_plan(config_of(), dry_run=dry_run)
    assert plan.writer.store.get("_table.json") == content


@pytest.mark.parametrize("dry_run", [False, True])
def test_another_input_is_refused_without_deleting_parts(
    plan: Plan, config_of: ConfigOf, tmp_path: Path, dry_run: bool
) -> None:
    (work,) = plan.tasks
    rejects = [reject_of(name) for name in work.shard.names[:2]]
    plan.writer.write_part(work.shard, 0, samples=2, latents=[], rejects=rejects)
    before = plan.writer.store.names()
    other = write_files(tmp_path / "other", "another.jpg")
    with pytest.raises(FingerprintError, match=r"layout\.input: .* in the table, .*/other. asked"):
        list(make_plan(config_of(input=str(other)), dry_run=dry_run).tasks)
    assert plan.writer.store.names() == before


def test_only_secrets_are_refused_in_input_names(
    config_of: ConfigOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = config_of(
        input=str(write_files(tmp_path / "facedata", "1.jpg")), output=str(tmp_path / "table")
    )
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "facedata")
    with pytest.raises(InputError, match="value of the environment variable AWS_SECRET_ACCESS_KEY"):
        make_plan(args)
    assert not (tmp_path / "table").exists()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "facedata")
    for _ in range(2):
        assert len(list(make_plan(args).tasks)) == 1


@pytest.mark.parametrize("place", ["", "latents", "a/b"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_table_inside_its_own_input_is_refused(
    config_of: ConfigOf, place: str, dry_run: bool
) -> None:
    photos = config_of().input
    with pytest.raises(InputError, match="lies inside the input"):
        make_plan(config_of(output=f"{photos}/{place}"), dry_run=dry_run)
    assert not Path(photos, place or "_table.json", "_table.json").exists()
    make_plan(config_of(output=f"{photos}-latents"), dry_run=True)


def test_a_parquet_without_images_is_refused(config_of: ConfigOf, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in" / "captions.parquet", {"url": ["http://x/0.jpg"]})
    config = config_of(input=str(path.parent))
    with pytest.raises(InputError, match=r"no column of image bytes; its columns are url"):
        make_plan(config)
    assert not Path(config.output).exists()


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"keep_columns": "key"}, "'key' is the name of a column of the table"),
        ({"keep_columns": "colour"}, "has no column 'colour'"),
        ({"image_column": "colour"}, "has no column 'colour'"),
        ({}, r"several columns of images \(left, right\).*--image-column"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_missing_columns_are_refused_without_a_table(
    config_of: ConfigOf, tmp_path: Path, settings: dict[str, str], problem: str, dry_run: bool
) -> None:
    columns = {"left": [b"1"], "right": [b"2"], "label": [3]}
    path = write_parquet(tmp_path / "in.parquet", columns)
    config = config_of(**{"input": str(path), "image_column": "left"} | settings)
    if not settings:
        config = config_of(input=str(path))
    with pytest.raises(RequestError, match=problem):
        make_plan(config, dry_run=dry_run)
    assert not Path(config.output).exists()


def test_how_archives_are_read_travels_with_each_shard(config_of: ConfigOf, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "in.parquet", {"left": [b"1"], "label": [3]})
    settings = {"image_column": "left", "image_field": "PNG; .jpg", "keep_columns": "label"}
    plan = make_plan(config_of(input=str(path), **settings))
    (work,) = plan.tasks
    assert work.options == ReadOptions(
        image_column="left", image_field="png,jpg", keep_columns={"label": "int64"}
    )
    assert plan.job.spec.columns.kept == (("label", "int64"),)


@pytest.mark.usefixtures("plan")
def test_other_weights_are_other_settings(
    config_of: ConfigOf, tiny_bundle: str, tmp_path: Path
) -> None:
    model = load_model(tiny_bundle)
    with torch.no_grad():
        model.latent_avg[0, 0] += 1e-3
    save_bundle(model, str(tmp_path / "other"))
    with pytest.raises(FingerprintError, match="model: "):
        make_plan(config_of(model=str(tmp_path / "other")))


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 3},
        {"part_size": 1},
        {"inverters": 1},
        {"device": "cpu"},
        {"image_timeout": 9},
    ],
)
@pytest.mark.usefixtures("plan")
def test_how_the_work_is_done_changes_no_table(
    config_of: ConfigOf, setting: dict[str, object]
) -> None:
    assert len(list(make_plan(config_of(**setting)).tasks)) == 1


def test_a_committed_shard_is_not_planned_again(
    plan: Plan, work: ShardTask, config_of: ConfigOf
) -> None:
    rejects = [reject_of(name) for name in work.shard.names]
    parts = [
        plan.writer.write_part(
            work.shard, part, samples=2, latents=[], rejects=rejects[2 * part : 2 * part + 2]
        )
        for part in range(2)
    ]
    half = make_plan(config_of())
    assert next(half.tasks).existing == {0, 1}
    assert half.backlog == Backlog(
        shards=1, bytes=work.shard.size, done_samples=4, done_parts=2, complete=True
    )
    plan.writer.commit_shard(work.shard, parts)
    again = make_plan(config_of())
    assert not again.tasks
    backlog = again.backlog
    assert (backlog.done_shards, backlog.done_parts, backlog.done_samples) == (1, 2, 4)
    assert (backlog.shards, backlog.bytes) == (0, 0)
