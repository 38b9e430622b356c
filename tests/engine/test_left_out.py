"""Promises of what is left out, from the reader to the card: by the real reader and ledger."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs import invert_dataset
from pipeline.config import JobConfig
from pipeline.engine import dry_run, run
from pipeline.engine.console.summary import print_outcome
from pipeline.engine.dry_run import estimate_job
from pipeline.engine.events import EventLog, logging_to_stderr
from pipeline.engine.plan import make_plan
from pipeline.engine.run import run_job
from pipeline.engine.stages import Align, Read, Write
from pipeline.errors import FingerprintError
from pipeline.storage import Store, list_shards
from pipeline.table import RunRecord, Table, open_table
from pipeline.table.card import write_card
from pipeline.table.status import table_status
from tests.faults.light import execute_in_order
from tests.faults.stages import HASHED, HashedInvert
from tests.storage.archives import write_files, write_parquet, write_tar

ConfigOf = Callable[..., JobConfig]
JPEG = b"\xff\xd8\xff\xe0 an image by its first bytes"
COUNTS = {".json": 3, "(hidden)": 1, ".parquet": 1, ".tar.rar": 1, "(no extension)": 1}


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the stages one after another in this process."""
    monkeypatch.setattr(run, "_execute", execute_in_order)
    monkeypatch.setattr(dry_run, "_time", lambda *_: (1.0, 1.0, 1.0))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images by name and by content, a tar, and other files: `COUNTS`."""
    folder = write_files(tmp_path / "in", "1.jpg", "1.json", ".DS_Store", "a/x.tar.rar", "README")
    (folder / "a" / "noext").write_bytes(JPEG)
    write_parquet(folder / "metadata.parquet", {"url": ["http://x/1.jpg"]})
    members = [("0.jpg", b"0"), ("0.json", b"{}"), ("1.jpg", b"1"), ("1.json", b"{}")]
    write_tar(folder / "s.tar", members)
    return folder


def run_hashed(config: JobConfig) -> RunRecord:
    return run_job(config, HASHED)


def card_of(table: Table) -> str:
    return table.store.get("README.md").decode()


def accounts(uri: str) -> list[dict[str, object]]:
    store = Store(uri)
    return [json.loads(store.get(name)) for name in store.names("_runs/")]


def test_left_out_files_are_counted_in_every_report(config_of: ConfigOf, mixed: Path) -> None:
    config = config_of(input=str(mixed))
    result = estimate_job(config)
    assert (result["left_out"], result["samples_to_do"]) == (COUNTS, 4)
    outcome = run_hashed(config)
    line = outcome.to_dict(config.output)
    assert (line["left_out"], line["samples"], line["exit_code"]) == (COUNTS, 4, 0)
    assert next(iter(line["left_out"])) == ".json", "most first"
    (account,) = accounts(config.output)
    assert account["left_out"] == COUNTS
    card = card_of(open_table(config.output))
    assert "* inside shards: 2 `.json`\n" in card
    listed = "1 `(hidden)`, 1 `(no extension)`, 1 `.json`, 1 `.parquet`, 1 `.tar.rar`"
    assert f"* by the listing of the input: {listed}\n" in card
    assert table_status(config.output).left_out == COUNTS


def test_counts_of_committed_shards_survive_a_restart(config_of: ConfigOf, mixed: Path) -> None:
    config = config_of(input=str(mixed))
    run_hashed(config)
    table = open_table(config.output)
    before = card_of(table)
    again = run_hashed(config).to_dict(config.output)
    assert again["samples"] == 0
    assert again["left_out"] == COUNTS | {".json": 1}, "no tar is read again"
    assert card_of(table) == before
    table.store.remove("README.md")
    write_card(table)
    assert card_of(table) == before, "the manifests and the accounts of runs tell it"


def test_another_listing_changes_the_card_alone(config_of: ConfigOf, mixed: Path) -> None:
    config = config_of(input=str(mixed))
    run_hashed(config)
    (mixed / "more.csv").write_text("1")
    outcome = run_hashed(config)
    assert outcome.counts.parts == 0
    assert "1 `.csv`" in card_of(open_table(config.output))


def test_shards_without_an_image_are_warned_of(
    config_of: ConfigOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    write_tar(folder / "empty.tar", [("a.json", b"{}"), ("inner.tar", b"no image")])
    write_tar(folder / "good.tar", [("a.jpg", b"1")])
    config = config_of(input=str(folder))
    outcome = run_hashed(config)
    line = outcome.to_dict(config.output)
    assert (line["exit_code"], line["empty_shards"]) == (0, 1)
    left_out = "left out: 1 .json, 1 .tar"
    warning = f"shard 'empty' holds no image ({left_out}): '{folder}/empty.tar'"
    assert line["warnings"] == [warning]
    print_outcome(config, outcome, command=["jobs/it.py"])
    assert f"warning: {warning}" in capsys.readouterr().err
    assert "* shards without an image: 1\n" in card_of(open_table(config.output))
    assert table_status(config.output).empty_shards == 1


def test_an_input_without_any_image_is_warned_of(config_of: ConfigOf, tmp_path: Path) -> None:
    config = config_of(input=str(write_tar(tmp_path / "in.tar", [("a.json", b"{}")])))
    warnings = run_hashed(config).warnings
    assert warnings[-1] == f"no image was found in '{tmp_path}/in.tar'"


def test_a_shard_without_images_logs_a_warning(
    config_of: ConfigOf, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tar(tmp_path / "in" / "empty.tar", [("a.json", b"{}")])
    config = config_of(input=str(tmp_path / "in"), log_format="json")
    plan, outcome = make_plan(config), RunRecord()
    with logging_to_stderr(json_lines=True):
        execute_in_order(config, plan, outcome, (EventLog(),), stages=HASHED)
    (event,) = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert (event["event"], event["level"]) == ("shard_committed", "warning")
    assert event["left_out"] == {".json": 1}


class Aligner(Align):
    """Real aligner; the last instance can be closed."""

    last: Align

    def setup(self) -> None:
        super().setup()
        Aligner.last = self


def test_bad_items_are_rejects_and_stop_nothing(config_of: ConfigOf, images: Path) -> None:
    (images / "0000.jpg").symlink_to("nowhere")
    (images / "loop.png").symlink_to("loop.png")
    config = config_of(prealigned=True)
    outcome = run_job(config, (Read, Aligner, HashedInvert, Write))
    assert Aligner.last.aligner
    Aligner.last.aligner.close()
    assert (outcome.exit_code, outcome.counts.samples) == (0, 6)
    assert outcome.counts.reasons == {"unreadable": 2}
    table = open_table(config.output)
    assert table.verify()["samples"] == 6
    rows = table.sql("SELECT key, detail FROM rejects ORDER BY key").to_dict("list")
    assert rows["key"] == ["0000.jpg", "loop.png"]
    assert "a link to 'nowhere', where nothing is" in rows["detail"][0]


def test_an_earlier_table_continues_without_sniffing(config_of: ConfigOf, mixed: Path) -> None:
    old = config_of(input=str(mixed), sniff=False)
    run_hashed(old)
    assert "sniff" not in open_table(old.output).spec.layout, "as in a table of then"
    with pytest.raises(FingerprintError, match=r"continue it as it was made: --no-sniff"):
        make_plan(config_of(input=str(mixed)))
    again = run_hashed(old)
    assert (again.exit_code, again.counts.parts) == (0, 0)
    names = [
        name for shard in list_shards(str(mixed), options=old.read_options) for name in shard.names
    ]
    assert names == ["1.jpg"]


def test_a_lists_table_is_continued_line_by_line(config_of: ConfigOf, tmp_path: Path) -> None:
    write_files(tmp_path / "in", *(f"{number}.jpg" for number in range(4)))
    given = tmp_path / "in" / "list.txt"
    given.write_text("0.jpg\n1.jpg\n2.jpg\n")
    config = config_of(input=str(given), files_per_shard=2)
    assert run_hashed(config).counts.samples == 3
    given.write_text("0.jpg\n1.jpg\n2.jpg\n3.jpg\n")
    outcome = run_hashed(config)
    assert outcome.errors == []
    assert outcome.counts.samples == 2, "the first slice is as it was"
    assert open_table(config.output).verify()["samples"] == 4


@pytest.mark.parametrize(
    ("given", "code", "expected"),
    [
        ("http://127.0.0.1:9/x.tar", 1, "Cannot connect to host"),
        ("sftp://host/x", 2, "pip install paramiko"),
        ("https://127.0.0.1", 2, "a web server lists no folders"),
    ],
)
def test_an_unreachable_input_is_one_line_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str, code: int, expected: str
) -> None:
    argv = ["--input", given, "--output", str(tmp_path / "table")]
    for extra in ([], ["--dry-run"]):
        assert invert_dataset.main([*argv, *extra]) == code
        captured = capsys.readouterr()
        assert expected in captured.err
        assert "Traceback" not in captured.err
        line = json.loads(captured.out.splitlines()[-1])
        assert (line["samples"], line["left_out"]) == (0, {})
    assert not (tmp_path / "table").exists()
