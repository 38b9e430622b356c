"""Files that `ray job submit --working-dir .` sends to every node."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_ignored_files_are_not_sent() -> None:
    ignored, not_sent = (
        {line.rstrip("/").removeprefix("/") for line in (ROOT / name).read_text().splitlines()}
        for name in (".gitignore", ".rayignore")
    )
    caches = {name for name in ignored if name.startswith(".") and name.endswith("_cache")}
    assert ignored - caches <= not_sent
    assert caches <= {".mypy_cache", ".ruff_cache", ".pytest_cache"}
    assert ".*_cache" in not_sent
