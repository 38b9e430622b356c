"""Card of a fitted direction: what it was fitted to, how, and how well it orders faces held out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.editing.direction_fit import Fit, FitSettings
from pipeline.editing.labels import Labels
from pipeline.editing.w_space import WSpace
from pipeline.errors import printable

_SCORES = {
    "r2": "R²",
    "correlation": "correlation",
    "accuracy": "accuracy",
    "auc": "area under the ROC curve",
}


def card_of(labels: Labels, settings: FitSettings, fit: Fit) -> dict[str, Any]:
    """Return the facts of a fit as plain JSON values."""
    table = labels.selection.table
    return {
        **fit.facts,
        "label": labels.description,
        "labels_file": labels.file or None,
        "where": labels.selection.where or None,
        "split_by": labels.split_by,
        "seed": labels.seed,
        "orthogonal_to": [other.name for other in settings.orthogonal_to],
        "table": table.store.root,
        "table_fingerprint": table.spec.fingerprint,
        "licence": str(table.spec.model.get("licence", "unknown")),
    }


def card_text(name: str, space: WSpace, facts: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    between = []
    if "strength_between_classes" in facts:
        strength = f"{facts['strength_between_classes']:.3g}"
        between = [f"* from the mean of class 0 to that of class 1: strength {strength}"]
    score = [f"* {_SCORES[name]}: {value:.4f}" for name, value in facts["score"].items()]
    lines = [
        f"# Direction {_code(name)}",
        "",
        f"Fitted to {_code(facts['label'])} of {facts['faces']:,} faces by the method "
        f"{facts['method']}, in {facts['space'].upper()} of the model {_code(space.model)}.",
        "",
        f"## Score on {facts['held_out']:,} faces held out",
        "",
        *score,
        "",
        f"They were chosen by a hash of {_code(facts['split_by'])} and the seed {facts['seed']}, "
        "and the fit that is scored here does not know them. The direction is fitted to all faces.",
        "",
        "## Use",
        "",
        f"* one standard deviation of these faces: strength "
        f"{facts['strength_of_one_deviation']:.3g}",
        f"* change of the label per strength: {facts['label_per_strength']:.3g}",
        *between,
        f"* orthogonal to: {', '.join(map(_code, facts['orthogonal_to'])) or 'nothing'}",
        f"* licence of the model: {_plain(facts['licence'])}",
        f"* W space: {_code(space.w_space)}",
        "",
    ]
    return "\n".join(lines)


def _code(text: str) -> str:
    return f"`{_plain(text)}`"


def _plain(text: str) -> str:
    return printable(text[:300]).replace("`", "'")
