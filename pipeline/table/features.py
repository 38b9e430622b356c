"""Front matter of the dataset card: which files and which columns Hugging Face datasets finds.

The features are those that `datasets` would infer of the Arrow schema, but for the bytes of
JPEG files, which it then decodes to PIL images.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import yaml

_FLOATS = {pa.float16(): "float16", pa.float32(): "float32", pa.float64(): "float64"}
_PICTURE_SUFFIX = "_jpeg"


def front_matter(latents: pa.Schema, rejects: pa.Schema) -> str:
    """Return the YAML block of a card, its `---` lines included.

    Without it the hub takes all Parquet files for one data set. `latents` is what is loaded where
    nobody names a configuration.
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
    """Return the columns as a card's `features` has them."""
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
    """The feature of a list's items: of plain numbers and texts the name of the type alone."""
    item = _of_type(kind)
    return item["dtype"] if list(item) == ["dtype"] else item.get("struct", item)
