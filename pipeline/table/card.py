"""README.md of a table: a dataset card that says what is in it, generated from it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from pipeline.errors import printable
from pipeline.metrics.registry import PER_STEP
from pipeline.storage import LeftOut, Store
from pipeline.table.features import front_matter
from pipeline.table.reader import Table
from pipeline.table.runs import listed_left_out
from pipeline.table.schema import rejects_schema
from pipeline.table.shard_index import table_stats
from pipeline.table.spec import NOT_MEASURED, TableSpec
from pipeline.table.stats import Counts, Stats

CARD_NAME = "README.md"
# The card's last line. A README.md without it, or one that was edited since, is somebody's own.
_SIGNATURE = "<!-- written by restyle-pipeline, which leaves it alone once it is edited: {} -->\n"
# What all cards have that were made before they were signed: how they begin, and each line.
_EARLIER_BEGIN = """---
license: other
configs:
  - config_name: latents
    data_files: latents/*.parquet
  - config_name: rejects
    data_files: rejects/*.parquet
---

# W+ codes of """
_LONGEST_TEXT = 300
_MOST_FACTS = 100
_DEEPEST = 4
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Underscores inside a word are none of emphasis.
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


def write_card(
    table: Table, stats: Stats | None = None, listed: LeftOut | None = None
) -> str | None:
    """Put the card into the table and return its text. The same table gives the same card.

    None where a README.md is there that is not the card: it stays as it is. `stats` are those of
    the table, and `listed` is what the listing of its input passed over, where they are known; else
    the latest run's account tells the latter. No rows are read.
    """
    if has_other_readme(table.store):
        return None
    text = card_text(table, stats, listed)
    table.store.put(CARD_NAME, text.encode())
    return text


def kept_readme(table: Table) -> str:
    """Return the sentence for people about a card that `write_card` did not write."""
    return (
        f"'{table.store.uri(CARD_NAME)}' is not the card that this job writes, or was edited: it "
        "stays as it is, and the table has no new card (to get one, rename that file and run again)"
    )


def has_other_readme(store: Store) -> bool:
    """Return whether the table's README.md is not the card, or was edited."""
    return store.exists(CARD_NAME) and not is_card(store.get(CARD_NAME))


def is_card(content: bytes) -> bool:
    """Return whether this is a card as `write_card`, or an earlier version of it, left it."""
    text = content.decode(errors="replace")
    return _is_signed(text) or _is_earlier_card(text)


def _is_signed(text: str) -> bool:
    body, newline, last = text.rstrip("\n").rpartition("\n")
    return f"{last}\n" == _signature(body + newline)


def _is_earlier_card(text: str) -> bool:
    if not (text.startswith(_EARLIER_BEGIN) and text.endswith(_READING)):
        return False
    lines = text[len(_EARLIER_BEGIN) : -len(_READING)].split("\n")
    return all(map(_EARLIER_LINE.fullmatch, lines[1:]))  # the first is the end of a title


def _signature(text: str) -> str:
    return _SIGNATURE.format(hashlib.sha256(text.encode()).hexdigest()[:16])


def is_card_current(table: Table, listed: LeftOut | None = None) -> bool:
    """Whether there is a card of as many shards as are committed, put after each of them.

    By the storage's clock. A shard that was committed is removed where its input is shorter. A card
    of an earlier version is not current, a README.md that is not the card has nothing to become so.
    Nor is a card current whose listing of the input passed over other files than `listed`.
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
    said = _SHARDS.search(content)
    shards = 0
    for _, info in table.store.infos("_shards/"):
        if not 0 < info.modified <= written:
            return False
        shards += 1
    return said is not None and int(said[1].replace(b",", b"")) == shards


def card_text(table: Table, stats: Stats | None = None, listed: LeftOut | None = None) -> str:
    """The card: model and licence, counts, rejects by reason, metrics, and how to read it."""
    stats = stats or table_stats(table.store)
    spec = table.spec
    parts = (
        front_matter(spec.columns.latents_schema(), rejects_schema()),
        _summary(spec, stats.counts),
        _rejects(stats.counts),
        _left_out(stats.counts, listed_left_out(table.store) if listed is None else listed),
        _metrics(spec, stats),
        _READING,
    )
    text = "\n".join(parts) + "\n"
    return text + _signature(text)


def _summary(spec: TableSpec, counts: Counts) -> str:
    columns = spec.columns
    lines = [
        f"# W+ codes of {counts.faces:,} faces",
        "",
        f"{counts.samples:,} images in {counts.shards:,} shard{'s' * (counts.shards != 1)} gave "
        f"{counts.faces:,} codes and "
        f"{counts.rejects:,} rejects. A code is `[{columns.n_styles}][512]` of "
        f"{card_words(columns.w_plus_dtype)} in the column `w_plus`.",
        "",
        *(line for name, value in spec.model.items() for line in _about(name, value)),
        f"* fingerprint of weights and settings: `{spec.fingerprint}`",
        "",
    ]
    return "\n".join(lines)


def _rejects(counts: Counts) -> str:
    most_first = sorted(counts.reasons.items(), key=lambda item: (-item[1], item[0]))
    listed = [(card_words(reason), f"{rows:,}") for reason, rows in most_first]
    return _section("Rejects", ("reason", "rows"), listed, "Nothing was rejected.")


def _left_out(counts: Counts, listed: LeftOut) -> str:
    """What is not in the table: files that are no images, and shards without any."""
    lines = ["## Left out", "", _in_listing(listed), f"* inside shards: {_counts(counts.left_out)}"]
    if counts.empty_shards:
        lines.append(f"* shards without an image: {counts.empty_shards:,}")
    return "\n".join([*lines, ""])


def _in_listing(listed: LeftOut) -> str:
    return f"* by the listing of the input: {_counts(listed)}"


def _code(text: str) -> str:
    """A text as it stands between backticks, where nothing is escaped."""
    return printable(text[:_LONGEST_TEXT]).replace("`", "'")


def _counts(left_out: LeftOut) -> str:
    """Most first, in one line; the label is what the names end in."""
    counts = [f"{count:,} `{_code(label)}`" for label, count in left_out.ordered().items()]
    return ", ".join(counts) or "nothing"


def _metrics(spec: TableSpec, stats: Stats) -> str:
    """Mean of each metric by step, counting only the faces that it could be measured on."""
    steps, means = stats.sums.steps, stats.sums.means()
    rows = [
        (name, *("" if mean is None else f"{mean:.4f}" for mean in means[name]))
        for name in PER_STEP
        if steps
    ]
    header = ("mean", *(f"step {step + 1}" for step in range(steps)))
    measured = [line for name, meaning in spec.metrics.items() for line in _about(name, meaning)]
    section = _section("Metrics", header, rows, "No face was measured.")
    which = [_COLUMNS] if rows else []
    return "\n".join([section, *which, *_unidentified(spec, stats), *measured, ""])


def _unidentified(spec: TableSpec, stats: Stats) -> list[str]:
    """How many faces are missing from the mean identity, where there is one."""
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
    """A line, or for several facts, such as a model's notes, a list of them below it."""
    if isinstance(value, dict) and value:
        facts = [f"  * {card_words(each)}: {_text(fact)}" for each, fact in value.items()]
        left_out = [f"  * ... and {len(facts) - _MOST_FACTS} more"][: len(facts) > _MOST_FACTS]
        return [f"* {card_words(name)}:", *facts[:_MOST_FACTS], *left_out]
    return [f"* {card_words(name)}: {_text(value)}"]


def _text(value: object, depth: int = 0) -> str:
    """A fact in one line: what JSON gives, without its quotes and braces."""
    if isinstance(value, dict | list) and (depth == _DEEPEST or len(value) > _MOST_FACTS):
        return f"{len(value)} entries"
    if isinstance(value, dict):
        facts = (f"{card_words(name)} {_text(fact, depth + 1)}" for name, fact in value.items())
        return "; ".join(facts) or "none"
    if isinstance(value, list):
        return ", ".join(_text(item, depth + 1) for item in value) or "none"
    return card_words(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def card_words(text: str) -> str:
    """A text of others as words of the card: one line of at most 300 characters, in which nothing
    is taken for Markdown, HTML or a formula.
    """
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}..."
    return _MARKUP.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), printable(text))
