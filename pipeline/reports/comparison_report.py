"""Write the report of an evaluation: Markdown, CSV files and plots in one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import printable
from pipeline.reports.coarse_to_fine import Change, change_by_step, detail_tables, groups_table
from pipeline.reports.evaluation import (
    Method,
    check_same_definitions,
    comparison,
    metrics_of,
    notes,
    paired,
    per_bucket,
    per_step,
    same_faces,
)
from pipeline.reports.faces import Faces, label, read_face_scalars
from pipeline.reports.ground_truth import DEFINITION, METRIC, GroundTruth, with_distances
from pipeline.reports.plots import change_in_steps, quality_against_time
from pipeline.reports.requirements import ComparisonOptions
from pipeline.reports.sheets import REPORT_NAME, REPORT_TITLE, ReportTable, number
from pipeline.storage import Store
from pipeline.table import Table


@dataclass(frozen=True)
class Report:
    """Files of a report by name, and its first table as Markdown."""

    files: Mapping[str, bytes]
    headline: str

    def write(self, folder: str) -> None:
        """Write all files to a folder, a path or fsspec URI; the Markdown file last."""
        store = Store(folder)
        for name in sorted(self.files, key=lambda name: name == REPORT_NAME):
            store.put(name, self.files[name])


def compare_tables(
    tables: Sequence[Table], options: ComparisonOptions, device: str = "cpu"
) -> Report:
    """Compare tables over the same faces; `device` renders images for their frequencies.

    Call `check_comparison` first. Raises `RequestError` if the tables have different faces or
    metric definitions.
    """
    everything = [read_face_scalars(table) for table in tables]
    labels = _labels(tables, everything, options.labels)
    check_same_definitions(tables, labels)
    faces = same_faces(everything, labels, common=options.common)
    remarks = _left_out(labels, everything, faces)
    if options.ground_truth is not None:
        measured = [
            with_distances(table, each, options.ground_truth)
            for table, each in zip(tables, faces, strict=True)
        ]
        faces = [each for each, _ in measured]
        remarks += _about_truth(tables, labels, [truth for _, truth in measured])
    methods = [
        Method(name, each, table.seconds_per_face())
        for table, name, each in zip(tables, labels, faces, strict=True)
    ]
    changes = {}
    if options.coarse_to_fine:
        changes = {
            name: change_by_step(table, images=options.images, device=device)
            for table, name in zip(tables, labels, strict=True)
        }
    return _report(tables, methods, changes, remarks, plots=options.plots)


def _report(
    tables: Sequence[Table],
    methods: Sequence[Method],
    changes: Mapping[str, Change],
    remarks: Sequence[str],
    *,
    plots: bool,
) -> Report:
    sheets = [comparison(methods), *([paired(methods)] if len(methods) > 1 else [])]
    sheets += [per_step(methods), per_bucket(methods)]
    details: Sequence[ReportTable] = ()
    files: dict[str, bytes] = {}
    if plots and metrics_of(methods):
        files["quality_against_time.png"] = quality_against_time(methods)
    if changes:
        sheets.append(groups_table(changes))
        details = detail_tables(changes)
        if plots:
            files["coarse_to_fine.png"] = change_in_steps(changes)
    remarks = [*(note for method in methods for note in notes(method)), *remarks]
    text = _text(tables, methods, sheets, remarks, list(files))
    files |= {f"{sheet.name}.csv": sheet.to_csv().encode() for sheet in (*sheets, *details)}
    return Report({**files, REPORT_NAME: text.encode()}, sheets[0].to_markdown())


def _left_out(
    labels: Sequence[str], everything: Sequence[Faces], compared: Sequence[Faces]
) -> list[str]:
    return [
        f"{name}: {len(chosen):,} of its {len(each):,} faces, those that all tables have."
        for name, each, chosen in zip(labels, everything, compared, strict=True)
        if len(chosen) < len(each)
    ]


def _about_truth(
    tables: Sequence[Table], labels: Sequence[str], truths: Sequence[GroundTruth]
) -> list[str]:
    remarks = [
        f"W+ distance: the true codes have a root mean square distance of "
        f"{number(truths[0].spread)} to their mean, the best result of one code for all faces."
    ]
    for table, name, truth in zip(tables, labels, truths, strict=True):
        rows = ", ".join(number(error) for error in truth.by_row)
        remarks.append(f"{name}: W+ distance of each row of the code, coarse to fine: {rows}.")
        if not table.spec.columns.all_steps:
            remarks.append(f"{name}: W+ distance of single steps needs a table with --keep-steps.")
    return remarks


def _labels(tables: Sequence[Table], faces: Sequence[Faces], given: Sequence[str]) -> list[str]:
    """Return a different name for each table, in one printable line."""
    if given:
        return list(map(printable, given))
    models = [str(table.spec.model.get("name", "")) for table in tables]
    names = []
    for table, model, each in zip(tables, models, faces, strict=True):
        words = [model] if len(set(models)) > 1 else []
        words += [printable("+".join(each.methods)) or "table"]
        if each.methods == ("restyle",):
            auto = table.spec.config.get("steps") == "auto"
            words.append("auto" if auto else f"N={each.max_steps}")
        names.append(" ".join(words))
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} ({table.store.root.rsplit('/', 1)[-1]}, {position})"
        for position, (name, table) in enumerate(zip(names, tables, strict=True), 1)
    ]


def _text(
    tables: Sequence[Table],
    methods: Sequence[Method],
    sheets: Sequence[ReportTable],
    remarks: Sequence[str],
    pictures: Sequence[str],
) -> str:
    lines = [f"{REPORT_TITLE} {len(methods[0].faces):,} faces", ""]
    for table, method in zip(tables, methods, strict=True):
        model = table.spec.model.get("name", "unknown")
        lines.append(
            f"* {method.label}: `{table.store.root}`, model {model}, "
            f"fingerprint `{table.spec.fingerprint[:12]}`"
        )
    sections = ["\n".join(lines) + "\n", sheets[0].to_markdown()]
    sections += [f"![{name.split('.')[0].replace('_', ' ')}]({name})\n" for name in pictures]
    sections += [sheet.to_markdown() for sheet in sheets[1:]]
    if remarks:
        sections.append("## Notes\n\n" + "\n".join(f"* {remark}" for remark in remarks) + "\n")
    return "\n".join([*sections, _definitions(tables, methods)])


def _definitions(tables: Sequence[Table], methods: Sequence[Method]) -> str:
    definitions = {METRIC: DEFINITION}
    for table in reversed(tables):
        definitions |= {name: text for name, text in table.spec.metrics.items() if text}
    shown = {**{name: label(name) for name in metrics_of(methods)}, "best_step": "best step"}
    lines = [
        f"* {text}: {definitions[name]}" for name, text in shown.items() if name in definitions
    ]
    return "## What was measured\n\n" + "\n".join(lines) + "\n"
