"""Documents are true: their links, files, flags, commands, settings and code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from jobs.query_latents import read_frames
from jobs.restyle import JOBS
from pipeline.config import load_config
from pipeline.interop.file_series import Series
from pipeline.interop.parquet_files import export_parquet
from pipeline.table import Columns, open_table
from pipeline.table.selection import Selection
from pipeline.training.config import load_train_config
from tests.documents import ROOT, Document, all_documents, flags_of, parser_of, program_of
from tests.models.test_official import empty_model
from tests.table.rows import N_STYLES, shard, write_shard, writer

DOCUMENTS = all_documents()
README = Document(ROOT / "README.md")
# Programs of others, which a guide tells people to use; tests/cluster looks at what they are given.
FOREIGN = {
    *("ray", "aws", "docker", "gcloud", "kubectl", "torchrun", "pre-commit", "python"),
    *("install", "curl", "grep", "tail", "tee", "sleep", "base64", "$EDITOR"),
    *(".", "export", "set", "for", "done", "fi", "break"),
}
OTHERS_FLAGS = {
    "--require-hashes",
    "--no-deps",
    "--start_from_latent_avg",
}  # of pip, restyle-encoder
# Blocks that `tests/table/test_readme.py` runs, each with the codes that it has to give.
RUN_ELSEWHERE = "pipeline/table/README.md"
PROGRAMS = [
    *(f"jobs.{module}" for module, _ in JOBS.values()),
    *("jobs.restyle", "jobs.build_samples", "jobs.build_demo_model"),
    *("tests.faults.__main__", "tests.fuzz.__main__"),
]
FOLDERS = ("pipeline", "jobs", "tests")
MODULES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|md|ya?ml|toml|txt|json|safetensors)")

ours = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample_images: dict[str, bytes]) -> Path:
    """A folder with a small table, `table`, its export, `few`, labels, and a photo, `photo.jpg`."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "labels.csv").write_text("key,smile\na,1\nc,0\n")
    table = writer(folder / "table", columns=Columns(N_STYLES, identity=True))
    write_shard(table, shard(), identity=[0.6, 0.8])
    series = Series.of(Selection(open_table(str(folder / "table"))), "parquet", 2)
    export_parquet(series, str(folder / "few"))
    (folder / "photo.jpg").write_bytes(sample_images["portraits/0001.jpg"])
    return folder


@ours
def test_links_lead_to_files_and_headings(document: Document) -> None:
    for target in document.links():
        path, _, anchor = target.partition("#")
        linked = (document.path.parent / path).resolve() if path else document.path
        assert linked.exists(), f"there is no {target}"
        assert linked.is_relative_to(ROOT)
        assert not anchor or anchor in Document(linked).anchors(), f"no heading for {target}"


@ours
def test_named_files_exist(document: Document) -> None:
    for code in document.inline_code():
        if FILE.fullmatch(code):
            places = (ROOT, ROOT / "pipeline", document.path.parent)
            assert any((place / code).is_file() for place in places), f"there is no {code}"
        if re.fullmatch(r"\w+\.py", code):
            assert code in MODULES, f"there is no {code}"


def test_docstrings_name_documents_that_exist() -> None:
    modules = [path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py")]
    named = {name for path in modules for name in re.findall(r"[\w/]+/\w+\.md", path.read_text())}
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@ours
def test_commands_have_flags_that_exist(
    document: Document, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in document.commands():
        if words[0] == "make":
            check_make(words[1:])
            continue
        program = program_of(words)
        if not program:
            assert words[0] in FOREIGN, f"'{words[0]}' is not a program that is checked"
            continue
        module, arguments = program
        if module == "pytest":
            assert all((ROOT / name).exists() for name in arguments if name.startswith("tests"))
            continue
        if arguments in (["--help"], ["--version"]):
            assert arguments[0] in flags_of(module)
            continue
        try:
            parser_of(module).parse_intermixed_args(arguments)
        except SystemExit:
            pytest.fail(f"{' '.join(words)}: {capsys.readouterr().err.splitlines()[-1]}")


def check_make(words: list[str]) -> None:
    """Assert that targets and variables of a `make` command stand in the Makefile."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_set, _ = word.partition("=")
        pattern = rf"\$\((or \$\()?{name}\)" if is_set else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"make knows no {word}"


@pytest.mark.parametrize(
    "document", [one for one in DOCUMENTS if not one.name.startswith("cluster/")], ids=str
)
def test_named_flags_are_flags_of_a_program(document: Document) -> None:
    known = OTHERS_FLAGS.union(*(flags_of(module) for module in PROGRAMS))
    named = [
        flag
        for code in document.inline_code()
        for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", code)
    ]
    assert sorted(set(named) - known) == []


def test_every_flag_of_the_job_is_described() -> None:
    named = {flag for one in DOCUMENTS for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", one.text)}
    flags = {flag.replace("--no-", "--") for flag in flags_of("jobs.invert_dataset")} - {"-h"}
    negated = {flag.replace("--no-", "--") for flag in named}
    assert sorted(flags - named - negated) == []


def test_every_column_is_described() -> None:
    (document,) = [one for one in DOCUMENTS if one.name == RUN_ELSEWHERE]
    switches = {"all_steps": True, "aligned_jpeg": True, "reconstruction_jpeg": True}
    schema = Columns(6, **switches, turn_deg=True, identity=True, edited=True).latents_schema()
    assert [name for name in schema.names if f"`{name}`" not in document.text] == []


@pytest.mark.parametrize("folder", ["pipeline", "tests"])
def test_every_package_is_described(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text()
    packages = [path.parent.name for path in sorted((ROOT / folder).glob("*/__init__.py"))]
    assert [name for name in packages if not re.search(rf"`{name}/?`", text)] == []


@ours
def test_queries_and_conditions_are_answered(
    document: Document, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    table = open_table("table")
    for words in document.commands():
        module, arguments = program_of(words) or ("", [])
        if module == "jobs.query_latents":
            args = parser_of(module).parse_intermixed_args(arguments)
            table.arrow(args.query, **read_frames(args.frames))
        if "--where" in arguments:
            condition = arguments[arguments.index("--where") + 1]
            table.arrow(f"SELECT image_id FROM latents WHERE {condition}")


@ours
def test_settings_go_together(document: Document, tmp_path: Path) -> None:
    blocks = [text for text in document.blocks("yaml") if text.startswith("input:")]
    for text in blocks:
        (tmp_path / "run.yaml").write_text(text)
        assert load_config(str(tmp_path / "run.yaml"), {})
    for words in document.commands():
        module, arguments = program_of(words) or ("", [])
        if module not in ("jobs.invert_dataset", "jobs.train_restyle") or "--help" in arguments:
            continue
        flags = vars(parser_of(module).parse_args(arguments))
        file = flags.pop("config")
        if file == "run.yaml":
            assert blocks, "the document shows this file"
            file = str(tmp_path / file)
        elif file:
            file = str(ROOT / file)
        flags = {
            name: value for name, value in flags.items() if name not in ("dry_run", "attempts")
        }
        load = load_config if module == "jobs.invert_dataset" else load_train_config
        assert load(file, flags)


@ours
def test_structured_blocks_are_read(document: Document) -> None:
    for text in document.blocks("yaml"):
        assert yaml.safe_load(text)
    for text in document.blocks("json"):
        assert json.loads(text)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        pytest.param(document.name, block, id=f"{document.name}-{number}")
        for document in DOCUMENTS
        if document.name != RUN_ELSEWHERE
        for number, block in enumerate(document.blocks("python"))
    ],
)
def test_code_runs_on_a_small_table(
    name: str, block: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(block, name, "exec"), names)
    if "codes" in names:
        assert len(names["codes"]) == 4  # type: ignore[arg-type]


def test_the_readme_is_short() -> None:
    lines = README.text.splitlines()
    assert len(lines) <= 210
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.parametrize(
    ("domain", "encoder_type", "size"),
    [
        ("faces", "BackboneEncoder", 1024),
        ("cars", "ResNetBackboneEncoder", 512),
        ("churches", "ResNetBackboneEncoder", 256),
    ],
)
def test_the_readme_gives_the_size_of_weights(domain: str, encoder_type: str, size: int) -> None:
    domains = {"churches": "church"}
    model = empty_model(encoder_type, domains.get(domain, domain), size)
    megabytes = 4 * sum(value.numel() for value in model.state_dict().values()) / 1e6
    (row,) = re.findall(rf"^\| {domain} \|.*$", README.text, re.MULTILINE)
    assert row.endswith(f"| {size} px | {megabytes:.0f} MB |")
