"""What `ray job submit --working-dir .` sends to every node."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_what_git_ignores_is_not_sent() -> None:
    ours, sent_not = (
        {line.rstrip("/").removeprefix("/") for line in (ROOT / name).read_text().splitlines()}
        for name in (".gitignore", ".rayignore")
    )
    caches = {name for name in ours if name.startswith(".") and name.endswith("_cache")}
    assert ours - caches <= sent_not
    assert caches <= {".mypy_cache", ".ruff_cache", ".pytest_cache"}
    assert ".*_cache" in sent_not
