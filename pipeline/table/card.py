"""README.md of a table: the dataset card, generated from its spec, index and run records.

Its front matter names the files and columns that Hugging Face datasets loads. The features are
those that `datasets` would infer from the Arrow schema, except that bytes of JPEG files are
declared as images, so that they are decoded to PIL images.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import yaml

from pipeline.errors import printable
from pipeline.metrics.registry import PER_STEP
from pipeline.storage import LeftOut, Store
from pipeline.table.reader import Table
from pipeline.table.runs import listed_left_out
from pipeline.table.schema import rejects_schema
from pipeline.table.shard_index import table_stats
from pipeline.table.spec import NOT_MEASURED, TableSpec
from pipeline.table.stats import Counts, Stats

CARD_NAME = "README.md"
# The card's last line. A README.md without it, or edited since, was written by the user.
_SIGNATURE = "<!-- written by restyle-pipeline, which leaves it alone once it is edited: {} -->\n"
# Cards of versions that did not sign them: their beginning, and a pattern of every other line.
_EARLIER_BEGIN = """---
license: other
configs:
  - config_name: latents
    data_files: latents/*.parquet
  - config_name: rejects
    data_files: rejects/*.parquet
---

# W+ codes of """
_FLOATS = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
_PICTURE_SUFFIX = "_jpeg"
_LONGEST_TEXT = 300
_MAX_FACTS = 100
_MAX_DEPTH = 4
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# An underscore inside a word is not Markdown for emphasis.
_MARKUP = re.compile(r"[&<>\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_EARLIER_LINE = re.compile(
    r"|( {2})?\* .*|\| .* \||## (Rejects|Metrics)|Nothing was rejected\.|No face was measured\."
    r"|[\d,]+ images in [\d,]+ shards? gave [\d,]+ codes and [\d,]+ rejects\. A code is .*"
)
_SHARDS = re.compile(rb"^[\d,]+ images in ([\d,]+) shards? gave ", re.MULTILINE)
_COLUMNS = (
    "* these are means after each step, over all faces that have the metric; the columns `l2`, "
    "`psnr`, `lpips` and `id_similarity` are of each face's best step (`best_step`), and the lists "
    "`l2_per_step`, ... of every step"
)
_READING = """## Reading

```python
from pipeline.table import open_table
table = open_table("path or URI of this folder")
table.sql("SELECT image_id, l2 FROM latents ORDER BY l2 LIMIT 10")
```

Without this library: `read_parquet('latents/*.parquet')` in DuckDB, pandas, polars or datasets.
"""


# After `_READING`, with which unsigned cards end.
CITING = """## Citation

The method of the codes, and the software that made this table:

```bibtex
@inproceedings{alaluf2021restyle,
  author    = {Alaluf, Yuval and Patashnik, Or and Cohen-Or, Daniel},
  title     = {{ReStyle}: A Residual-Based {StyleGAN} Encoder via Iterative Refinement},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2021},
  eprint    = {2104.02699}
}
@software{restyle_pipeline,
  author = {{The restyle-pipeline authors}},
  title  = {restyle-pipeline: Dataset-scale {GAN} inversion},
  year   = {2026}
}
```
"""


def write_card(table: Table, stats: Stats | None = None, listed: LeftOut | None = None) -> str:
    """Write the card into the table. The same table gives the same card.

    Write nothing, and return why, if the table has a README.md that is not an unedited card;
    otherwise return "". `stats` are the table's counts and metric sums, read from its index by
    default. `listed` are the files that the listing of the input passed over, by default those of
    the latest complete run. No rows are read.
    """
    if has_other_readme(table.store):
        return (
            f"'{table.store.uri(CARD_NAME)}' is not the card that this job writes, or was edited: "
            "it stays as it is, and the table has no new card (to get one, rename that file and "
            "run again)"
        )
    table.store.put(CARD_NAME, card_text(table, stats, listed).encode())
    return ""


def has_other_readme(store: Store) -> bool:
    """Return whether the table has a README.md that is not the card, or was edited."""
    if not store.exists(CARD_NAME):
        return False
    text = store.get(CARD_NAME).decode(errors="replace")
    return not (_is_signed(text) or _is_earlier_card(text))


def _is_signed(text: str) -> bool:
    body, newline, last = text.rstrip("\n").rpartition("\n")
    return f"{last}\n" == _signature(body + newline)


def _is_earlier_card(text: str) -> bool:
    if not (text.startswith(_EARLIER_BEGIN) and text.endswith(_READING)):
        return False
    lines = text[len(_EARLIER_BEGIN) : -len(_READING)].split("\n")
    return all(map(_EARLIER_LINE.fullmatch, lines[1:]))  # the first is the end of a title


def signed(text: str) -> str:
    """Return a card with its signature, by which later runs know it."""
    return text + _signature(text)


def _signature(text: str) -> str:
    return _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def is_card_current(table: Table, listed: LeftOut | None = None) -> bool:
    """Return whether the card needs no update.

    The card is current if it states the number of committed shards and is not older than any
    manifest, by the storage's clock. The number matters because shards may be removed. The card is
    not current if an earlier version wrote it, or if the listing passed over other files than
    `listed`. A README.md that is not the card counts as current, because it is never replaced.
    """
    if not table.store.exists(CARD_NAME):
        return False
    written = table.store.info(CARD_NAME).modified
    content = table.store.get(CARD_NAME)
    text = content.decode(errors="replace")
    if not _is_signed(text):
        return not _is_earlier_card(text)
    if listed is not None and _in_listing(listed) not in text:
        return False
    stated = _SHARDS.search(content)
    shards = 0
    for _, info in table.store.infos("_shards/"):
        if not 0 < info.modified <= written:
            return False
        shards += 1
    return stated is not None and int(stated[1].replace(b",", b"")) == shards


def card_text(table: Table, stats: Stats | None = None, listed: LeftOut | None = None) -> str:
    """Return the card: model, licence, counts, rejects, metrics, how to read and cite the table."""
    stats = stats or table_stats(table.store)
    spec = table.spec
    parts = (
        front_matter(spec.columns.latents_schema(), rejects_schema()),
        _summary(spec, stats.counts),
        _rejects(stats.counts),
        _left_out(stats.counts, listed_left_out(table.store) if listed is None else listed),
        _metrics(spec, stats),
        _READING,
        CITING,
    )
    return signed("\n".join(parts) + "\n")


def _summary(spec: TableSpec, counts: Counts) -> str:
    columns = spec.columns
    lines = [
        f"# W+ codes of {counts.faces:,} faces",
        "",
        f"{counts.samples:,} images in {counts.shards:,} shard{'s' * (counts.shards != 1)} gave "
        f"{counts.faces:,} codes and "
        f"{counts.rejects:,} rejects. A code is `[{columns.n_styles}][512]` of "
        f"{escape_markdown(columns.w_plus_dtype)} in the column `w_plus`.",
        "",
        *(line for name, value in spec.model.items() for line in _about(name, value)),
        f"* fingerprint of weights and settings: `{spec.fingerprint}`",
        "",
    ]
    return "\n".join(lines)


def _rejects(counts: Counts) -> str:
    most_first = sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = [(escape_markdown(reason), f"{rows:,}") for reason, rows in most_first]
    return _section("Rejects", ("reason", "rows"), listed, "Nothing was rejected.")


def _left_out(counts: Counts, listed: LeftOut) -> str:
    """Return the section on files that are not images, and shards without an image."""
    lines = ["## Left out", "", _in_listing(listed), f"* inside shards: {_counts(counts.left_out)}"]
    if counts.empty_shards:
        lines.append(f"* shards without an image: {counts.empty_shards:,}")
    return "\n".join([*lines, ""])


def _in_listing(listed: LeftOut) -> str:
    return f"* by the listing of the input: {_counts(listed)}"


def _code(text: str) -> str:
    """Return a text for use between backticks, where Markdown has no escapes."""
    return printable(text[:_LONGEST_TEXT]).replace("`", "'")


def _counts(left_out: LeftOut) -> str:
    """Return the counts by file suffix in one line, the largest first."""
    counts = [f"{count:,} `{_code(label)}`" for label, count in left_out.ordered().items()]
    return ", ".join(counts) or "nothing"


def _metrics(spec: TableSpec, stats: Stats) -> str:
    """Return the mean of each metric by step, over the faces that have it, and its definition."""
    steps, means = stats.sums.steps, stats.sums.means(spec.best_alone)
    rows = [
        (name, *("" if mean is None else f"{mean:.4f}" for mean in means[name]))
        for name in PER_STEP
        if steps
    ]
    header = ("mean", *(f"step {step + 1}" for step in range(steps)))
    definitions = [line for name, text in spec.metrics.items() for line in _about(name, text)]
    section = _section("Metrics", header, rows, "No face was measured.")
    columns = [_COLUMNS] if rows else []
    return "\n".join([section, *columns, *_unidentified(spec, stats), *definitions, ""])


def _unidentified(spec: TableSpec, stats: Stats) -> list[str]:
    """Return the line on faces without an identity similarity; none if it is not measured."""
    if spec.metrics.get("id_similarity", NOT_MEASURED) == NOT_MEASURED:
        return []
    faces = stats.counts.faces
    missed = faces - stats.sums.identified
    return [
        f"* id_similarity is null for {missed:,} of {faces:,} faces: the "
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
    """Return one line, or for a dict (such as a model's notes) a line with a list below it."""
    if isinstance(value, dict) and value:
        facts = [f"  * {escape_markdown(each)}: {_text(fact)}" for each, fact in value.items()]
        omitted = [f"  * ... and {len(facts) - _MAX_FACTS} more"][: len(facts) > _MAX_FACTS]
        return [f"* {escape_markdown(name)}:", *facts[:_MAX_FACTS], *omitted]
    return [f"* {escape_markdown(name)}: {_text(value)}"]


def _text(value: object, depth: int = 0) -> str:
    """Return a fact in one line: its JSON form without quotes and braces."""
    if isinstance(value, dict | list) and (depth == _MAX_DEPTH or len(value) > _MAX_FACTS):
        return f"{len(value)} entries"
    if isinstance(value, dict):
        facts = (
            f"{escape_markdown(name)} {_text(fact, depth + 1)}" for name, fact in value.items()
        )
        return "; ".join(facts) or "none"
    if isinstance(value, list):
        return ", ".join(_text(item, depth + 1) for item in value) or "none"
    return escape_markdown(
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    )


def escape_markdown(text: str) -> str:
    """Return a text from outside as one line, without active Markdown, HTML or formulas.

    Longer texts are cut after 300 characters.
    """
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"\\{match[0]}"), printable(text))


def front_matter(latents: pa.Schema, rejects: pa.Schema) -> str:
    """Return the YAML block of a card, its `---` lines included.

    Without it the hub treats all Parquet files as one data set. `latents` is the configuration that
    is loaded by default.
    """
    schemas = {"latents": latents, "rejects": rejects}
    configs: list[dict[str, Any]] = [
        {"config_name": name, "data_files": f"{name}/*.parquet"} for name in schemas
    ]
    configs[0]["default"] = True
    info = [{"config_name": name, "features": features(schema)} for name, schema in schemas.items()]
    document = {"license": "other", "configs": configs, "dataset_info": info}
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{text}---\n"


def features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the columns in the form of a card's `features`."""
    return [{"name": column.name, **_feature(column)} for column in schema]


def _feature(column: pa.Field) -> dict[str, Any]:
    if _is_binary(column.type) and column.name.endswith(_PICTURE_SUFFIX):
        return {"dtype": "image"}
    return _of_type(column.type)


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _of_type(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_dictionary(kind):
        return _of_type(kind.value_type)
    if pa.types.is_struct(kind):
        return {"struct": features(pa.schema(list(kind)))}
    if pa.types.is_fixed_size_list(kind):
        return {"list": _of_items(kind.value_type), "length": kind.list_size}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return {"list": _of_items(kind.value_type)}
    name = "date32" if pa.types.is_date32(kind) else _FLOATS.get(kind, str(kind))
    return {"dtype": name}


def _of_items(kind: pa.DataType) -> Any:
    """Return the feature of a list's items; for plain numbers and texts only the type's name."""
    item = _of_type(kind)
    return item["dtype"] if list(item) == ["dtype"] else item.get("struct", item)
