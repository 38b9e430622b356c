"""Write a table as a Hugging Face dataset: Parquet files of one split, and its card.

The columns are the table's. Pictures are `Image` features, which `datasets` decodes, stored as
{bytes, path}; codes are lists of fixed lengths, which `with_format("numpy")` and `"torch"` give as
[n, n_styles, 512]. The features are in the files' metadata (`huggingface`), for readers of single
files, and in the card, for the hub's viewer. `README.md` is written last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import yaml

from pipeline.errors import ConfigError
from pipeline.interop.file_series import Render, Series
from pipeline.interop.parquet_files import metadata_of, write_files
from pipeline.interop.row_order import page_bytes
from pipeline.storage import OutputKind, Store
from pipeline.storage.file_types import without_image_suffix
from pipeline.table.card import (
    CARD_NAME,
    CITING,
    escape_markdown,
    features,
    has_other_readme,
    signed,
)
from pipeline.table.parts import read_footer
from pipeline.table.reader import Table
from pipeline.table.schema import codes_of

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
RENDERED = "reconstruction"  # column of pictures that the model rendered
_START = "data/train"
_JPEGS = ("aligned_jpeg", "reconstruction_jpeg")
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")

_CARD = """# W+ codes of {rows} faces

One row per face: its code, `w_plus`, `[{n_styles}][512]`, in the W+ space of the StyleGAN2 model
{model}, with its metrics{pictures}.

```python
from datasets import load_dataset
rows = load_dataset("name or path of this dataset", split="train").with_format("torch")
codes = rows[:8]["w_plus"]  # [8, n_styles, 512]
```

## Licence

The model's licence: {licence}. The rights in the photos, and of the people in them, are those of
the photos' source, which this card does not know: state them in `license` above before you publish.

## Metrics

{metrics}
"""


def _is_export(_: Store, names: Sequence[str]) -> bool:
    return set(names) <= {"data/", CARD_NAME, ".gitattributes", ".git/", ".cache/"}


HUB_OUTPUT = OutputKind("a Hugging Face dataset of an export", _is_export)


def export_hub(series: Series, uri: str, render: Render | None = None) -> dict[str, Any]:
    """Write `data/train-<number>-of-<count>.parquet` and `README.md` below `uri`.

    Files of the same export are kept, and so is a README.md that was edited; then `card` is false
    in the returned counts. Raises `ConfigError` for files of another export.
    """
    store = Store(uri)
    if not store.names(f"{_START}-") and has_other_readme(store):
        raise ConfigError(
            f"'{store.uri(CARD_NAME)}' is not the card of an export: choose a folder that is new "
            "or empty"
        )
    schema = _schema(series.rows.table, rendered=render is not None)
    metadata = {**metadata_of(series), "huggingface": _metadata(schema)}
    counts = write_files(
        series,
        store,
        _START,
        schema.with_metadata(metadata),
        lambda rows: _converted(rows, schema, render),
    )
    has_card = not has_other_readme(store)
    if has_card:
        store.put(CARD_NAME, _card(series, schema, store).encode())
    return {**counts, "card": has_card}


def _schema(table: Table, *, rendered: bool) -> pa.Schema:
    """Return the columns of the files: pictures as {bytes, path}."""
    fields = [
        pa.field(field.name, IMAGE if field.name in _JPEGS else field.type, field.nullable)
        for field in table.spec.columns.latents_schema()
        if not (rendered and field.name == "reconstruction_jpeg")
    ]
    if rendered:
        fields.append(pa.field(RENDERED, IMAGE))
    return pa.schema(fields)


def _converted(rows: pa.Table, schema: pa.Schema, render: Render | None) -> pa.Table:
    stems = [without_image_suffix(PurePosixPath(key).name) for key in rows["key"].to_pylist()]
    columns = []
    for field in schema:
        if field.name == RENDERED and render is not None:
            columns.append(_images(render(codes_of(rows["w_plus"])), stems, "png"))
        elif field.type == IMAGE:
            columns.append(_images(rows[field.name].to_pylist(), stems, "jpg"))
        else:
            columns.append(rows[field.name])
    return pa.Table.from_arrays(columns, schema=schema)


def _images(contents: Sequence[bytes | None], stems: Sequence[str], suffix: str) -> pa.Array:
    values = [
        content and {"bytes": content, "path": f"{stem}.{suffix}"}
        for content, stem in zip(contents, stems, strict=True)
    ]
    return pa.array(values, IMAGE)


def _features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Return the columns in the form of a card's `features`."""
    return [
        {"name": field.name, "dtype": "image"} if field.type == IMAGE else feature
        for field, feature in zip(schema, features(schema), strict=True)
    ]


def _metadata(schema: pa.Schema) -> str:
    """Return the features as `datasets` writes them into the metadata of Parquet files."""
    typed = {
        feature["name"]: _typed({name: feature[name] for name in feature if name != "name"})
        for feature in _features(schema)
    }
    return json.dumps({"info": {"features": typed}})


def _typed(feature: Any) -> Any:
    """Convert a feature of a card to one of `datasets`' metadata."""
    if isinstance(feature, str):
        return {"dtype": feature, "_type": "Value"}
    if isinstance(feature, list):
        return {item["name"]: _typed({**item, "name": None}) for item in feature}
    if "struct" in feature:
        return _typed(feature["struct"])
    if "list" in feature:
        # Versions of `datasets` before 4 know this name alone; later ones take it for `List`.
        length = feature.get("length", -1)
        return {"feature": _typed(feature["list"]), "length": length, "_type": "Sequence"}
    if feature["dtype"] == "image":
        return {"_type": "Image"}
    return {"dtype": feature["dtype"], "_type": "Value"}


def _card(series: Series, schema: pa.Schema, store: Store) -> str:
    """Return the card: front matter for the hub, and what the rows are."""
    spec, rows = series.rows.table.spec, f"{len(series.positions):,}"
    pictures = ", ".join(f"`{field.name}`" for field in schema if field.type == IMAGE)
    about = "\n".join(
        f"* {escape_markdown(name)}: {escape_markdown(str(text))}"
        for name, text in spec.metrics.items()
    )
    text = _CARD.format(
        rows=rows,
        n_styles=spec.columns.n_styles,
        model=escape_markdown(str(spec.model.get("name", "unnamed"))),
        pictures=f" and the pictures {pictures}" if pictures else "",
        licence=escape_markdown(str(spec.model.get("licence", "not stated"))),
        metrics=about or "Nothing was measured.",
    )
    document: dict[str, Any] = {
        "license": "other",
        "pretty_name": f"W+ codes of {rows} faces",
        "size_categories": [_size_category(len(series.positions))],
        "task_categories": ["image-to-image"],
        "tags": ["gan-inversion", "stylegan2", "w-plus", "restyle"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
            }
        ],
        "dataset_info": {"features": _features(schema), **_sizes(series, store)},
    }
    front: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    return signed(f"---\n{front}---\n\n{text}\n{CITING}\n")


def _sizes(series: Series, store: Store) -> dict[str, Any]:
    """Return the size of the split: its rows, and bytes of files and of uncompressed pages."""
    names = series.names(_START, ".parquet")
    pages = sum(page_bytes(read_footer(store, name)) for name in names)
    return {
        "splits": [{"name": "train", "num_bytes": pages, "num_examples": len(series.positions)}],
        "download_size": sum(store.info(name).size for name in names),
        "dataset_size": pages,
    }


def _size_category(rows: int) -> str:
    """Return the hub's word for a number of rows."""
    bounds = [1_000 * 10**power for power in range(len(_SIZES))]
    place = next((index for index, bound in enumerate(bounds) if rows < bound), len(_SIZES))
    if place == 0:
        return "n<1K"
    if place == len(_SIZES):
        return "n>1T"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}"
