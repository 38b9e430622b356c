"""The report of an evaluation: Markdown, CSV files and plots, for one folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import RequestError
from pipeline.reports.coarse_to_fine import GROUPS, Change, change_by_step, require_steps
from pipeline.reports.comparable import check_measured_alike, same_faces
from pipeline.reports.evaluation import (
    Method,
    comparison,
    metrics_of,
    notes,
    paired,
    per_bucket,
    per_step,
)
from pipeline.reports.faces import Faces, label, read_faces
from pipeline.reports.figures import change_in_steps, quality_against_time, require_matplotlib
from pipeline.reports.ground_truth import DEFINITION, METRIC, with_distances
from pipeline.reports.sheets import Cell, Sheet, number
from pipeline.storage import Store
from pipeline.table import Table

REPORT_NAME = "comparison.md"


@dataclass(frozen=True)
class Options:
    """What an evaluation is asked for besides its tables."""

    labels: Sequence[str] = ()  # one a table; by default what its rows say
    common: bool = False  # compare the faces that all tables hold
    ground_truth: str | None = None  # URI of pairs, the tables' input
    coarse_to_fine: bool = False
    images: int = 100  # that are rendered for image frequencies
    device: str = "cpu"  # that renders them
    plots: bool = True


@dataclass(frozen=True)
class Report:
    """Files by name, and the first table as Markdown."""

    files: Mapping[str, bytes]
    headline: str

    def write(self, folder: str) -> None:
        """Put every file into a folder, a path or fsspec URI; the text last."""
        store = Store(folder)
        for name in sorted(self.files, key=lambda name: name == REPORT_NAME):
            store.put(name, self.files[name])


def compare_tables(tables: Sequence[Table], options: Options) -> Report:
    """Compare tables over the same faces.

    Raises `RequestError` if they do not hold the same faces, are not measured alike, or do not
    have what `options` asks for.
    """
    if options.plots:
        require_matplotlib()
    if options.coarse_to_fine:
        for table in tables:
            require_steps(table)
    everything = [read_faces(table) for table in tables]
    labels = _labels(tables, everything, options.labels)
    check_measured_alike(tables, labels)
    faces = same_faces(everything, labels, common=options.common)
    spread = math.nan
    if options.ground_truth is not None:
        measured = [
            with_distances(table, each, options.ground_truth)
            for table, each in zip(tables, faces, strict=True)
        ]
        faces, spread = [each for each, _ in measured], measured[0][1]
    methods = [
        Method(name, each, table.seconds_per_face())
        for table, name, each in zip(tables, labels, faces, strict=True)
    ]
    changes = {}
    if options.coarse_to_fine:
        changes = {
            name: change_by_step(table, images=options.images, device=options.device)
            for table, name in zip(tables, labels, strict=True)
        }
    return _report(tables, methods, changes, spread, plots=options.plots)


def _report(
    tables: Sequence[Table],
    methods: Sequence[Method],
    changes: Mapping[str, Change],
    spread: float,
    *,
    plots: bool,
) -> Report:
    sheets = [comparison(methods), *([paired(methods)] if len(methods) > 1 else [])]
    sheets += [per_step(methods), per_bucket(methods)]
    details: list[Sheet] = []
    files: dict[str, bytes] = {}
    if plots:
        files["quality_against_time.png"] = quality_against_time(methods)
    if changes:
        sheets.append(_groups(changes))
        details = [_layers(changes), _bands(changes)]
        if plots:
            files["coarse_to_fine.png"] = change_in_steps(changes)
    text = _text(tables, methods, sheets, spread, list(files))
    files |= {f"{sheet.name}.csv": sheet.to_csv().encode() for sheet in (*sheets, *details)}
    return Report({**files, REPORT_NAME: text.encode()}, sheets[0].to_markdown())


def _labels(tables: Sequence[Table], faces: Sequence[Faces], given: Sequence[str]) -> list[str]:
    """A name for each table, no two the same."""
    if given:
        if len(given) != len(tables) or len(set(given)) != len(given):
            raise RequestError(
                f"{len(given)} labels for {len(tables)} tables: give each table one of its own"
            )
        return list(given)
    models = [str(table.description.model.get("name", "")) for table in tables]
    names = []
    for table, model, each in zip(tables, models, faces, strict=True):
        words = [model] if len(set(models)) > 1 else []
        words += ["+".join(each.methods) or "table"]
        if each.methods == ("restyle",):
            auto = table.description.config.get("steps") == "auto"
            words.append("auto" if auto else f"N={each.most_steps}")
        names.append(" ".join(words))
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} ({table.store.root.rsplit('/', 1)[-1]}, {place})"
        for place, (name, table) in enumerate(zip(names, tables, strict=True), 1)
    ]


def _text(
    tables: Sequence[Table],
    methods: Sequence[Method],
    sheets: Sequence[Sheet],
    spread: float,
    pictures: Sequence[str],
) -> str:
    lines = [f"# {len(tables)} tables over the same {len(methods[0].faces)} faces", ""]
    for table, method in zip(tables, methods, strict=True):
        about = table.description
        model = about.model.get("name", "unknown")
        lines.append(
            f"* {method.label}: `{table.store.root}`, model {model}, "
            f"fingerprint `{about.fingerprint[:12]}`"
        )
    remarks = notes(methods)
    if not math.isnan(spread):
        remarks.append(
            f"W+ distance: the true codes lie {number(spread)} from their own mean (root mean "
            "square), which is what one guess for all faces would reach."
        )
    sections = ["\n".join(lines) + "\n", sheets[0].to_markdown()]
    sections += [f"![{name.split('.')[0].replace('_', ' ')}]({name})\n" for name in pictures]
    sections += [sheet.to_markdown() for sheet in sheets[1:]]
    if remarks:
        sections.append("## Notes\n\n" + "\n".join(f"* {remark}" for remark in remarks) + "\n")
    return "\n".join([*sections, _definitions(tables, methods)])


def _definitions(tables: Sequence[Table], methods: Sequence[Method]) -> str:
    known = {METRIC: DEFINITION}
    for table in reversed(tables):
        known |= {name: text for name, text in table.description.metrics.items() if text}
    wanted = [*metrics_of(methods), "best_step"]
    lines = [f"* {_name(name)}: {known[name]}" for name in wanted if name in known]
    return "## What was measured\n\n" + "\n".join(lines) + "\n"


def _name(metric: str) -> str:
    return "best step" if metric == "best_step" else label(metric)


def _groups(changes: Mapping[str, Change]) -> Sheet:
    rows: list[list[Cell]] = [
        [name, step, *groups]
        for name, change in changes.items()
        for step, groups in enumerate(change.groups, 1)
    ]
    rendered = ", ".join(f"{name}: {each.rendered}" for name, each in changes.items())
    left_out = [f"{name}: {c.without_start}" for name, c in changes.items() if c.without_start]
    note = (
        "Mean absolute change of the code in each step, over the faces that made it: rows 1–4 "
        "(coarse), 5–8 (medium), 9 and up (fine). `coarse_to_fine_layers.csv` has each row; "
        "`coarse_to_fine_bands.csv` has octaves of a Laplacian pyramid of the images that the "
        f"model renders from the stored codes, faces: {rendered}."
    )
    if left_out:
        note += f" First steps left out, as they did not start from the average code: {left_out}."
    return Sheet("coarse_to_fine", "Coarse to fine", ["method", "step", *GROUPS], rows, note)


def _layers(changes: Mapping[str, Change]) -> Sheet:
    rows: list[list[Cell]] = [
        [name, step, layer, mean]
        for name, change in changes.items()
        for step, layers in enumerate(change.layers, 1)
        for layer, mean in enumerate(layers, 1)
    ]
    header = ["method", "step", "layer", "mean absolute change"]
    return Sheet("coarse_to_fine_layers", "Style layers", header, rows)


def _bands(changes: Mapping[str, Change]) -> Sheet:
    rows: list[list[Cell]] = [
        [name, step, band, mean]
        for name, change in changes.items()
        for step, bands in enumerate(change.bands, 1)
        for band, mean in zip(change.band_names, bands, strict=True)
    ]
    header = ["method", "step", "cycles an image side", "mean absolute change"]
    return Sheet("coarse_to_fine_bands", "Image frequencies", header, rows)
