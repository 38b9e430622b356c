"""README.md of a table: a dataset card that says what is in it, generated from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pipeline.table.index import shard_entries
from pipeline.table.means import METRICS, means_per_step
from pipeline.table.reader import Table

if TYPE_CHECKING:
    import pandas as pd  # type: ignore[import-untyped]

CARD_NAME = "README.md"
NOT_MEASURED = "not measured"  # what a description says of a metric that no network measures
# What the Hugging Face hub reads; without it the hub would take all files for one data set.
_FRONT_MATTER = """---
license: other
configs:
  - config_name: latents
    data_files: latents/*.parquet
  - config_name: rejects
    data_files: rejects/*.parquet
---
"""
_READING = """## Reading

```python
from pipeline.table import open_table
table = open_table("path or URI of this folder")
table.sql("SELECT image_id, l2 FROM latents ORDER BY l2 LIMIT 10")
```

Without this library: `read_parquet('latents/*.parquet')` in DuckDB, pandas, polars or datasets.
"""


def write_card(table: Table, means: pd.DataFrame | None = None) -> str:
    """Put the card into the table; its text. The same table gives the same card.

    `means` are those of `means_per_step`, where they are known.
    """
    text = card_text(table, means)
    table.store.put(CARD_NAME, text.encode())
    return text


def is_card_current(table: Table) -> bool:
    """Whether there is a card, and no shard was committed after it, by the storage's clock."""
    if not table.store.exists(CARD_NAME):
        return False
    written = table.store.info(CARD_NAME).modified
    commits = (info.modified for _, info in table.store.infos("_shards/"))
    return all(0 < commit <= written for commit in commits)


def card_text(table: Table, means: pd.DataFrame | None = None) -> str:
    """The card: model and licence, counts, rejects by reason, metrics, and how to read it."""
    means = means_per_step(table) if means is None else means
    parts = (_FRONT_MATTER, _summary(table), _rejects(table), _metrics(table, means), _READING)
    return "\n".join(parts)


def _summary(table: Table) -> str:
    description = table.description
    shards = samples = faces = rejects = 0
    for entry in shard_entries(table.store):
        shards += 1
        samples += entry.samples
        faces += entry.faces
        rejects += entry.rejects
    columns = description.columns
    lines = [
        f"# W+ codes of {faces:,} faces",
        "",
        f"{samples:,} images in {shards:,} shards gave {faces:,} codes and {rejects:,} rejects. "
        f"A code is `[{columns.n_styles}][512]` of {columns.w_plus_dtype} in the column `w_plus`.",
        "",
        *(line for name, value in description.model.items() for line in _about(name, value)),
        f"* fingerprint of weights and settings: `{description.fingerprint}`",
        "",
    ]
    return "\n".join(lines)


def _rejects(table: Table) -> str:
    rows = table.sql(
        "SELECT reason, count(*) AS rows FROM rejects GROUP BY reason ORDER BY rows DESC, reason"
    )
    listed = [(str(row.reason), f"{row.rows:,}") for row in rows.itertuples()]
    return _section("Rejects", ("reason", "rows"), listed, "Nothing was rejected.")


def _metrics(table: Table, means: pd.DataFrame) -> str:
    """Mean of each metric by step, counting only the faces that it could be measured on."""
    rows = [
        (name, *("" if mean != mean else f"{mean:.4f}" for mean in means[name]))
        for name in METRICS
        if len(means)
    ]
    header = ("mean", *(f"step {step}" for step in means["step"]))
    measured = [f"* {name}: {meaning}" for name, meaning in table.description.metrics.items()]
    section = _section("Metrics", header, rows, "No face was measured.")
    return "\n".join([section, *_unidentified(table), *measured, ""])


def _unidentified(table: Table) -> list[str]:
    """How many faces are missing from the mean identity, where there is one."""
    if table.description.metrics.get("id_similarity", NOT_MEASURED) == NOT_MEASURED:
        return []
    count = table.sql(
        "SELECT count(*) AS faces, count(*) - count(id_similarity) AS missed FROM latents"
    ).iloc[0]
    return [
        f"* id_similarity is null for {int(count.missed):,} of {int(count.faces):,} faces: the "
        "identity network found no face in the crop or in the best step's image"
    ]


def _section(
    title: str, header: Sequence[str], rows: Sequence[Iterable[str]], otherwise: str
) -> str:
    if not rows:
        return f"## {title}\n\n{otherwise}\n"
    lines = [header, ["---"] * len(header), *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _about(name: str, value: object) -> list[str]:
    """A line, or for several facts, such as a model's notes, a list of them below it."""
    if isinstance(value, dict) and value:
        return [f"* {name}:", *(f"  * {each}: {_text(fact)}" for each, fact in value.items())]
    return [f"* {name}: {_text(value)}"]


def _text(value: object) -> str:
    """A fact in one line: what JSON gives, without its quotes and braces."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {_text(fact)}" for name, fact in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
