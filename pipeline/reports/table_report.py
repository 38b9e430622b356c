"""Write the report of a table: one HTML file that needs no network.

Texts of the table are escaped, and the file's content security policy allows only its own script
and style sheet, so that a hostile name can neither run code nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.errors import printable
from pipeline.metrics.registry import BY_NAME, METRICS
from pipeline.redaction import without_secrets
from pipeline.reports.face_sample import (
    DEFAULT_ROWS,
    code_map,
    extreme_rows,
    reject_reasons,
    same_images,
    sampled_rows,
)
from pipeline.reports.faces import columns_of, compared_metrics
from pipeline.reports.report_extras import ReportExtras
from pipeline.reports.svg_charts import curve, decimals_of, histogram, number, scatter, share_bar
from pipeline.reports.table_numbers import (
    TRAIT_LABELS,
    TRAIT_TEXTS,
    Curve,
    Distribution,
    Numbers,
    table_numbers,
)
from pipeline.table.selection import Selection

EXTREMES = 12  # best faces, and as many worst ones
MOST_MAPPED = 5_000  # faces: their inner products take 200 MB
_SAME_ROWS = 20
_RUNS = 10
_LONGEST_TEXT = 120
_LONGEST_NAME = 30
_LONGEST_TITLE = 300
_MOST_SETTINGS = 80
_TEMPLATES = Path(__file__).parent / "templates"
_TABLE_COLUMNS = ("face_px", "yaw", "sharpness", "steps", "best_step")
_RUN_COLUMNS = ("started", "samples", "faces", "rejects", "seconds", "images_per_second", "errors")
_WITHOUT_PICTURES = (
    "This file holds no pictures of people, but names of their files and numbers about their "
    "faces: treat it as personal data."
)
_WITH_PICTURES = (
    "This file holds pictures of people: share it only with those who may see them, and delete it "
    "when a person asks for that. The codes, and the faces rendered from them, are personal data "
    "too."
)


@dataclass
class ReportData:
    """Numbers and chosen faces of a selection, read from the table."""

    selection: Selection
    numbers: Numbers
    compared: tuple[str, ...]  # metrics of quality
    rank: str  # the one by which faces are the best and the worst; "" without a metric
    columns: tuple[str, ...]  # of `rows`
    rows: list[dict[str, Any]]
    pictured: dict[str, list[dict[str, Any]]]  # Best and Worst faces, or Examples without a rank

    @property
    def pictured_ids(self) -> list[str]:
        """Return the image ids of the faces whose pictures the report may have."""
        return [str(row["image_id"]) for rows in self.pictured.values() for row in rows]


def read_report_data(selection: Selection, rows: int = DEFAULT_ROWS) -> ReportData:
    """Read the numbers of the selected faces, and at most `rows` faces.

    Raises `RequestError` if no face is selected.
    """
    selection.require_rows()
    numbers = table_numbers(selection)
    compared = [name for name in compared_metrics(selection.table) if numbers.distribution(name)]
    rank = "lpips" if "lpips" in compared else (compared or [""])[0]
    present = columns_of(selection.table)
    metrics = [each.name for each in METRICS if numbers.distribution(each.name)]
    columns = tuple(name for name in (*_TABLE_COLUMNS, *metrics) if name in present)
    chosen = ("image_id", *columns)
    sample = sampled_rows(selection, chosen, numbers.faces, rows)
    if rank:
        count = min(EXTREMES, (numbers.faces + 1) // 2)
        rising = BY_NAME[rank].higher_is_better
        pictured = {
            name: extreme_rows(selection, chosen, rank, count, highest=highest)
            for name, highest in (("Best", rising), ("Worst", not rising))
        }
    else:
        count = min(2 * EXTREMES, len(sample))
        pictured = {"Examples": [sample[i * len(sample) // count] for i in range(count)]}
    return ReportData(selection, numbers, tuple(compared), rank, columns, sample, pictured)


def report_html(data: ReportData, extras: ReportExtras | None = None) -> str:
    """Return the report as one HTML page."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    return template.render(_context(data, extras or ReportExtras()))


def _context(data: ReportData, extras: ReportExtras) -> dict[str, Any]:
    from pipeline import __version__

    style = (_TEMPLATES / "report.css").read_text()
    script = (_TEMPLATES / "report.js").read_text()
    selection, numbers = data.selection, data.numbers
    same_count, same = same_images(selection, _SAME_ROWS)
    context: dict[str, Any] = {
        "version": __version__,
        "style": Markup(style),
        "script": Markup(script),
        "policy": (
            f"default-src 'none'; img-src data:; style-src '{_sha256(style)}'; script-src "
            f"'{_sha256(script)}'; base-uri 'none'; form-action 'none'"
        ),
        "title": f"W+ codes of {numbers.faces:,} face{'s' * (numbers.faces != 1)}",
        "root": _text(without_secrets(selection.table.store.root)),
        "where": _text(selection.where),
        "tiles": _tiles(data),
        "privacy": _privacy(data, extras),
        **_rejects_and_runs(data),
        **_charts(numbers, selection.table.spec.metrics),
        **_extremes(data, extras),
        **_faces(data),
        "same": [
            {"copies": f"{row['copies']:,}", "first": _text(row["first_key"]),
             "last": _text(row["last_key"])}
            for row in same
        ],
        "same_text": f"{len(same):,} of {same_count:,} images whose bytes occur more than once.",
        "near": _near(extras),
        "settings": _settings(data),
    }  # fmt: skip
    context["sections"] = [
        (anchor, name)
        for anchor, name, key in (
            ("overview", "Overview", "tiles"),
            ("steps", "Steps", "steps"),
            ("metrics", "Distributions", "histograms"),
            ("traits", "Kinds of face", "traits"),
            ("extremes", context["extremes_title"], "extremes"),
            ("codes", "Map", "map"),
            ("duplicates", "Duplicates", "tiles"),
            ("faces", "Faces", "tiles"),
            ("made", "How it was made", "tiles"),
        )
        if context[key]
    ]
    return context


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _text(value: object, longest: int = _LONGEST_TEXT) -> str:
    """Return a text of the table in one printable line; the middle of a long one is left out."""
    text = printable(str(value))
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2 - 1]}…{text[-(longest - longest // 2) :]}"


def _end(image_id: str) -> str:
    """Return the end of an image id without the shard: the part that tells faces apart."""
    text = printable(image_id.partition("/")[2])
    return text if len(text) <= _LONGEST_NAME else f"…{text[1 - _LONGEST_NAME :]}"


def _tiles(data: ReportData) -> list[dict[str, str]]:
    numbers = data.numbers
    tiles = [{"label": "faces", "value": f"{numbers.faces:,}", "more": "with a code"}]
    counts = data.selection.table.arrow(
        "SELECT count(*) AS rejects, (SELECT count(*) FROM latents) AS faces FROM rejects"
    ).to_pylist()[0]
    rejects, rows = counts["rejects"], counts["rejects"] + counts["faces"]
    share = f"{100 * rejects / rows:.1f} % of {rows:,} rows" if rows else ""
    tiles.append({"label": "rejects", "value": f"{rejects:,}", "more": share})
    for each in numbers.distributions:
        if each.higher_is_better is not None:
            tiles.append(
                {
                    "label": f"median {each.label}",
                    "value": number(each.median),
                    "more": f"80 %: {number(each.low)}–{number(each.high)}",
                }
            )
    spec = data.selection.table.spec
    tiles.append(
        {
            "label": "model",
            "value": _text(spec.model.get("name", "–"), 24),
            "more": f"codes of {spec.columns.n_styles} × 512",
        }
    )
    return tiles


def _privacy(data: ReportData, extras: ReportExtras) -> str:
    text = _WITH_PICTURES if extras.pictures else _WITHOUT_PICTURES
    licence = data.selection.table.spec.model.get("licence")
    return f"{text} Licence of the model: {_text(licence, 400)}." if licence else text


def _rejects_and_runs(data: ReportData) -> dict[str, Any]:
    reasons = reject_reasons(data.selection)
    most = max((int(row["n"]) for row in reasons), default=1)
    runs = data.selection.table.arrow(
        f"SELECT {', '.join(_RUN_COLUMNS)} FROM runs ORDER BY started DESC"
    ).to_pylist()
    names = ("started", "images", "faces", "rejects", "seconds", "images / s", "errors")
    return {
        "reasons": [
            {
                "name": _text(row["reason"]),
                "count": f"{row['n']:,}",
                "bar": share_bar(row["n"] / most),
                "key": _text(row["key"]),
                "detail": _text(row["detail"] or "", 300),
            }
            for row in reasons
        ],
        "run_columns": names,
        "runs": [[_cell(row[name]) for name in _RUN_COLUMNS] for row in runs[:_RUNS]],
        "more_runs": len(runs) if len(runs) > _RUNS else 0,
    }


def _cell(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "–" if value is None else _text(str(value).replace("T", " ").removesuffix("+00:00"))


def _better(higher: bool | None) -> str:
    if higher is None:
        return ""
    return "higher is better" if higher else "lower is better"


def _charts(numbers: Numbers, definitions: Mapping[str, str]) -> dict[str, Any]:
    steps = [
        {
            "label": each.label,
            "better": _better(each.higher_is_better) if each.name != "residual_norm" else "",
            "svg": curve(each, [number(point.x, 0) for point in each.points], "step"),
        }
        for each in numbers.per_step
    ]
    names = sorted(numbers.best_steps)
    best = [number(numbers.best_steps[step], 0) for step in names]
    quantiles = "" if numbers.exact else "Quantiles are approximate."
    return {
        "steps": steps,
        "step_names": names,
        "step_rows": [
            *((each.label, _by_step(each, names)) for each in numbers.per_step),
            ("faces whose best step it is", best),
        ],
        "histograms": [
            _histogram(each, definitions.get(each.name) or each.text)
            for each in numbers.distributions
        ],
        "quantiles": quantiles,
        "traits": [
            {
                "label": TRAIT_LABELS[name],
                "text": TRAIT_TEXTS[name],
                "charts": [_trait_chart(each, TRAIT_LABELS[name]) for each in curves],
            }
            for name, curves in numbers.by_trait.items()
        ],
    }


def _by_step(each: Curve, names: Sequence[int]) -> list[str]:
    means = {int(point.x): point.mean for point in each.points}
    return [number(means.get(step)) for step in names]


def _histogram(each: Distribution, definition: str) -> dict[str, Any]:
    outside = each.below + each.above
    return {
        "label": each.label,
        "better": _better(each.higher_is_better),
        "svg": histogram(each),
        "mean": number(each.mean),
        "low": number(each.low),
        "high": number(each.high),
        "outside": f"{outside:,} outside the chart" if outside else "",
        "missing": f"{each.missing:,} without a number" if each.missing else "",
        "text": _text(definition, 1000),
    }


def _trait_chart(each: Curve, label: str) -> dict[str, Any]:
    return {
        "label": each.label,
        "better": _better(each.higher_is_better),
        "svg": curve(each, [number(point.x) for point in each.points], label),
    }


def _extremes(data: ReportData, extras: ReportExtras) -> dict[str, Any]:
    rank = BY_NAME[data.rank] if data.rank else None
    groups = [
        {"name": name, "faces": [_face(data, extras, row) for row in rows]}
        for name, rows in data.pictured.items()
        if rows
    ]
    return {
        # Examples without pictures and metrics would be names alone.
        "extremes": groups if rank or extras.pictures else [],
        "extremes_title": "Best and worst" if rank else "Examples",
        "rank": f"{rank.label}, {_better(rank.higher_is_better)}" if rank else "",
        "rank_name": data.rank,
        "has_pictures": bool(extras.pictures),
        "no_targets": _text(extras.no_targets, 400),
    }


def _face(data: ReportData, extras: ReportExtras, row: Mapping[str, Any]) -> dict[str, Any]:
    image_id = str(row["image_id"])
    picture = extras.pictures.get(image_id)
    names = [name for name in data.compared if row.get(name) is not None]
    return {
        "id": _end(image_id),
        "full": _text(image_id, _LONGEST_TITLE),
        "facts": [(BY_NAME[name].label, number(row[name])) for name in names],
        "target": _data_uri(picture.target) if picture and picture.target else "",
        "reconstruction": _data_uri(picture.reconstruction) if picture else "",
    }


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _faces(data: ReportData) -> dict[str, Any]:
    """Return the table of faces, and the map of their codes."""
    decimals = {name: _decimals(data, name) for name in data.columns}
    labels = {name: BY_NAME[name].label for name in data.columns if name in BY_NAME}
    rows = [
        {
            "id": _text(str(row["image_id"]).partition("/")[2], 80),
            "full": _text(row["image_id"], _LONGEST_TITLE),
            "cells": [_value(row[name], decimals[name]) for name in data.columns],
        }
        for row in data.rows
    ]
    shown, faces = len(rows), data.numbers.faces
    text = f"All {faces:,} faces." if shown == faces else (
        f"{shown:,} of {faces:,} faces, evenly spread over the table; the best and worst ones are "
        "above. --rows sets their number, --where and --order choose others."
    )  # fmt: skip
    if shown > MOST_MAPPED:
        text += f" The map of codes is left out: it has at most {MOST_MAPPED:,} faces."
    return {
        "columns": [
            {"name": name, "label": labels.get(name, name.replace("_", " "))}
            for name in data.columns
        ],
        "rows": rows,
        "faces_text": text,
        "map": _map(data),
    }


def _decimals(data: ReportData, name: str) -> int:
    values = sorted(abs(row[name]) for row in data.rows if isinstance(row[name], float))
    return decimals_of(values[len(values) // 2]) if values else 0


def _value(value: float | None, decimals: int) -> tuple[str | None, str]:
    if value is None or value != value:
        return None, "–"
    if value in (float("inf"), float("-inf")):
        return None, "∞"
    return f"{value:.6g}", number(value, decimals)


def _map(data: ReportData) -> dict[str, Any] | None:
    selection = data.selection
    ids = [str(row["image_id"]) for row in data.rows]
    plane = code_map(selection.table.w_plus(ids)) if 2 < len(ids) <= MOST_MAPPED else None
    if plane is None:
        return None
    values = [row.get(data.rank) for row in data.rows] if data.rank else [None] * len(ids)
    first, second = (f"{100 * share:.0f} %" for share in plane.shares)
    faces = data.numbers.faces
    which = f"all {faces:,} faces" if len(ids) == faces else f"{len(ids):,} of {faces:,} faces"
    return {
        "text": (
            f"First two principal components of the W+ codes of {which}, which hold {first} and "
            f"{second} of their variance. Colours go by rank. Near points need not be similar "
            "faces: the other components are not shown."
        ),
        "svg": scatter(plane.points, values, f"Map of {len(ids):,} codes; use the arrow keys"),
    }


def _near(extras: ReportExtras) -> dict[str, Any] | None:
    similar = extras.similar
    if similar is None:
        return None
    return {
        "text": similar.text,
        "groups": [
            {
                "size": f"{group.size:,}",
                "similarity": number(group.similarity, 3),
                "ids": [_end(image_id) for image_id in group.ids],
                "more": f"{group.size - len(group.ids):,}" if group.size > len(group.ids) else "",
                "pictures": [
                    {"source": _data_uri(picture.target), "id": _end(image_id)}
                    for image_id in group.ids
                    if (picture := extras.pictures.get(image_id)) and picture.target
                ],
            }
            for group in similar.groups
        ],
    }


def _settings(data: ReportData) -> Iterator[tuple[str, str]]:
    """Yield facts about the report, model, settings and metrics, each in one line."""
    yield "report written", f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    spec = data.selection.table.spec
    facts = [
        ("fingerprint", spec.fingerprint),
        *((f"model {name}", value) for name, value in spec.model.items() if name != "notes"),
        *spec.config.items(),
        *((f"metric {name}", value) for name, value in spec.metrics.items()),
    ]
    for name, value in facts[:_MOST_SETTINGS]:
        yield _text(name, 60), _text(without_secrets(str(value)), 500)
