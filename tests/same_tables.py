"""Compare the tables that two checkouts of this repository make of the same inputs.

    python -m tests.same_tables --old ../old-checkout

Runs the same small commands with the code of both checkouts, each by its own `.venv` if it has
one. `latents/`, `rejects/`, `_shards/` and `_table.json` have to be byte-equal, and the documents
of `_runs/` have to keep their keys. Prints one line per table; exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
_FEW = ("--steps", "2", "--identity", "none")
_WORKERS = ("--align-workers", "1", "--inverters", "1")
# Table -> the job that writes it and its flags; $ is the folder of inputs, @ that of tables.
COMMANDS: dict[str, tuple[str, ...]] = {
    "five-steps": ("invert_dataset", "--input", "$/photos", "--steps", "5", "--part-size", "2"),
    "all-faces": (
        *("invert_dataset", "--input", "$/photos", "--files-per-shard", "3", "--faces", "all"),
        *("--keep-steps", "--keep-crops", "--keep-reconstructions", *_FEW),
    ),
    "auto-steps": (
        *("invert_dataset", "--input", "$/photos", "--steps", "auto", "--max-steps", "4"),
        *("--identity", "none"),
    ),
    "bootstrapped": ("invert_dataset", "--input", "$/photos", "--bootstrap", "$/model", *_FEW),
    "tar": ("invert_dataset", "--input", "$/photos.tar", "--latent-dtype", "float32", *_FEW),
    "parquet": (
        *("invert_dataset", "--input", "$/photos.parquet", "--keep-columns", "label", *_FEW),
    ),
    "refined": (
        *("refine_dataset", "--table", "@/all-faces", "--where", "key LIKE '%0001%'"),
        *("--steps", "6"),
    ),
    "imported": (
        *("import_latents", "--from", "$/codes", "--model", "$/model", "--images", "$/photos"),
        *("--identity", "none"),
    ),
}
_WITHOUT_MODEL = ("refine_dataset", "import_latents")
_WITHOUT_WORKERS = ("import_latents",)
_SAMPLES = 3  # portraits of the inputs


def write_inputs(folder: Path) -> None:
    """Write a tiny model, a folder, a tar and a Parquet file of sample images, and codes."""
    import io
    import tarfile

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    import pipeline
    from tests.tiny_bundle import write_tiny_bundle

    write_tiny_bundle(str(folder / "model"))
    images: dict[str, bytes] = {}
    for archive in sorted((Path(pipeline.__file__).parent / "samples").glob("*.tar")):
        with tarfile.open(archive) as tar:
            members = [entry for entry in tar if not entry.name.endswith(".json")]
            portraits = [entry for entry in members if entry.name.startswith("portraits/")]
            others = ("rejects/landscape.jpg", "rejects/text.jpg", "unusual/two-faces.jpg")
            chosen = portraits[:_SAMPLES] + [entry for entry in members if entry.name in others]
            for member in chosen:
                if content := tar.extractfile(member):
                    images[member.name] = content.read()
    for name, content in images.items():
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for name, content in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    rows = pa.table({"image": [*images.values()], "label": [*range(len(images))]})
    pq.write_table(rows, folder / "photos.parquet")
    (folder / "codes").mkdir()
    for seed, name in enumerate(name for name in images if name.startswith("portraits/")):
        code = np.random.default_rng(seed).standard_normal((10, 512)).astype(np.float32)
        np.save(folder / "codes" / f"{Path(name).stem}.npy", code)


def run_commands(checkout: Path, inputs: Path, tables: Path, names: list[str]) -> None:
    """Write the tables with the jobs of `checkout`, in this process."""
    for name in names:
        job, *flags = COMMANDS[name]
        flags = [flag.replace("$", str(inputs)).replace("@", str(tables)) for flag in flags]
        flags += ["--output", str(tables / name)]
        flags += () if job in _WITHOUT_MODEL else ("--model", str(inputs / "model"))
        flags += () if job in _WITHOUT_WORKERS else _WORKERS
        script = str(checkout / "jobs" / f"{job}.py")
        sys.argv = [script, *flags]
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise


def make_tables(checkout: Path, inputs: Path, tables: Path, names: list[str]) -> None:
    """Run `run_commands` with the code and interpreter of `checkout`; exit if it fails."""
    own = checkout / ".venv" / "bin" / "python"
    python = str(own) if own.exists() else sys.executable
    arguments = (str(checkout), str(inputs), str(tables), *names)
    ended = subprocess.run(
        [python, str(Path(__file__).resolve()), "--run", *arguments],
        check=False,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if ended.returncode:
        sys.exit(f"{checkout}: {ended.stderr}")


def digests(table: Path) -> dict[str, str]:
    """Return the SHA-256 of every file that has to be byte-equal, by its path in the table."""
    folders = ("latents", "rejects", "_shards")
    files = [path for folder in folders for path in sorted((table / folder).rglob("*"))]
    return {
        str(path.relative_to(table)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, table / "_table.json"]
        if path.is_file()
    }


def lost_keys(old: Path, new: Path) -> set[str]:
    """Return the keys of the old table's run documents that the new one's lack."""

    def keys(table: Path) -> set[str]:
        documents = [json.loads(path.read_bytes()) for path in (table / "_runs").glob("*.json")]
        inner = ("found", "stage_seconds", "versions", "imported")
        return {
            *(key for document in documents for key in document),
            *(
                f"{name}.{key}"
                for document in documents
                for name in inner
                for key in document.get(name) or ()
            ),
        }

    return keys(old) - keys(new)


def differences(old: Path, new: Path) -> Iterator[str]:
    """Yield what differs between the new table and the old one."""
    before, after = digests(old), digests(new)
    if not any(name.startswith("latents/") for name in before):
        yield "the old table has no latents"
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield name
    yield from (f"_runs: no '{key}'" for key in sorted(lost_keys(old, new)))


def main(arguments: argparse.Namespace) -> int:
    """Write all tables twice and compare them; return the exit code."""
    names = arguments.table or list(COMMANDS)
    with tempfile.TemporaryDirectory() as folder:
        inputs, old, new = (Path(folder) / name for name in ("inputs", "old", "tables"))
        inputs.mkdir()
        write_inputs(inputs)
        # Both are written to one path, because `_table.json` contains the output.
        make_tables(arguments.old.resolve(), inputs, new, names)
        new.rename(old)
        make_tables(HERE, inputs, new, names)
        failed = False
        for name in names:
            differing = list(differences(old / name, new / name))
            failed |= bool(differing)
            files = len(digests(new / name))
            result = f"differs: {', '.join(differing)}" if differing else f"{files} files equal"
            print(f"{name}: {result}")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        checkout, inputs, tables, *names = sys.argv[2:]
        run_commands(Path(checkout), Path(inputs), Path(tables), names)
    else:
        parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
        parser.add_argument("--old", type=Path, required=True, help="checkout to compare with")
        parser.add_argument("--table", action="append", choices=COMMANDS, help="only this table")
        sys.exit(main(parser.parse_args()))
