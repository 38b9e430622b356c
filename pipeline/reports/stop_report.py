"""The curve of a stop rule (bound on the gain → steps → L2) as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inversion import StopRule
from pipeline.reports.requirements import require_matplotlib
from pipeline.reports.stop_calibration import Point, Trace

# Okabe and Ito's colours, as in the other plots.
TRIED, FIXED, CHOSEN, GREY = "#0072B2", "#D55E00", "#009E73", "#6e7278"


@dataclass(frozen=True)
class StopCurve:
    """A chosen rule on a set that it was not chosen on, beside its neighbours and fixed steps."""

    traced: Trace
    chosen: Point
    points: Sequence[Point]
    like_steps: int

    def relative(self, point: Point) -> float:
        """A point's L2 beside that of the fixed steps, 0.01 for one per cent more."""
        return point.l2 / self.traced.fixed(self.like_steps).l2 - 1

    @property
    def most(self) -> int:
        """Steps of the longest loop."""
        return self.traced.l2.shape[1]

    @property
    def fixed(self) -> list[Point]:
        """The same number of steps for all, from 1 to the most."""
        return [self.traced.fixed(steps) for steps in range(1, self.most + 1)]


def stop_flags(rule: StopRule) -> str:
    """The flags by which jobs/invert_dataset.py follows `rule`.

    With `=`, as argparse takes the -1e-05 of a gain below nothing for another flag.
    """
    bounds = f"--stop-gain={rule.improvement!r} --stop-residual={rule.residual!r}"
    return f"--steps=auto --max-steps={rule.max_steps} {bounds}"


def stop_files(curve: StopCurve) -> dict[str, bytes]:
    """The files of a report by name, the text last."""
    return {
        "stop_curve.csv": stop_csv(curve).encode(),
        "stop_curve.png": stop_plot(curve),
        "stop_curve.md": stop_markdown(curve).encode(),
    }


def stop_markdown(curve: StopCurve) -> str:
    """The curve as a table, the chosen rule and the fixed loops for comparison."""
    rule, like, most = curve.chosen.rule, curve.like_steps, curve.most
    lines = [
        f"{len(curve.traced.l2)} faces. L2 is the table's: of each face's best step by LPIPS. A "
        f"face stops after a step with a gain and a residual below the bounds; the residual's is "
        f"{rule.residual:g}. The bounds are of this model alone; to stop by them:",
        "",
        f"    python jobs/invert_dataset.py --model MODEL {stop_flags(rule)} ...",
        "",
        f"| bound on gain | mean steps | mean L2 | to N={like} | to N={most} "
        f"| last step's, to N={like} |",
        "|---|---|---|---|---|---|",
    ]
    for point in curve.points:
        lines.append(_row(f"{point.rule.improvement:.3g}", point, curve))
    lines.append(_row(f"**{rule.improvement:.3g}** (chosen)", curve.chosen, curve))
    for steps, point in enumerate(curve.fixed, start=1):
        lines.append(_row(f"N={steps} for all", point, curve))
    return "\n".join(lines) + "\n"


def _row(name: str, point: Point, curve: StopCurve) -> str:
    like, most = curve.traced.fixed(curve.like_steps), curve.traced.fixed(curve.most)
    shares = (point.l2 / like.l2, point.l2 / most.l2, point.last_l2 / like.last_l2)
    text = " | ".join(f"{share - 1:+.1%}" for share in shares)
    return f"| {name} | {point.steps:.2f} | {point.l2:.5f} | {text} |"


def stop_csv(curve: StopCurve) -> str:
    """The same numbers for a program, one line a point; no bounds where the steps are fixed."""
    sink = io.StringIO()
    lines = csv.writer(sink, lineterminator="\n")
    lines.writerow(["gain", "residual", "mean_steps", "mean_l2", "mean_last_l2", "relative_l2"])
    for point in [*curve.points, curve.chosen]:
        numbers = (point.steps, point.l2, point.last_l2, curve.relative(point))
        lines.writerow([point.rule.improvement, point.rule.residual, *numbers])
    for point in curve.fixed:
        lines.writerow(["", "", point.steps, point.l2, point.last_l2, curve.relative(point)])
    return sink.getvalue()


def stop_plot(curve: StopCurve) -> bytes:
    """Mean steps against mean L2 as PNG: adaptive curve, chosen rule, fixed numbers of steps.

    Raises `RequestError` where matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # The first step is so far above that it would flatten all the rest.
    fixed = [(point.steps, point.l2) for point in curve.fixed[1:]]
    tried = sorted((point.steps, point.l2) for point in curve.points if point.steps >= 2)
    axes.plot(*zip(*fixed, strict=True), marker="o", color=FIXED, label="the same steps for all")
    if tried:
        axes.plot(*zip(*tried, strict=True), marker=".", color=TRIED, label="adaptive")
    name = f"chosen: gain < {curve.chosen.rule.improvement:.3g}"
    axes.plot(curve.chosen.steps, curve.chosen.l2, "s", color=CHOSEN, label=name)
    allowed = 1.01 * curve.traced.fixed(curve.like_steps).l2
    axes.axhline(allowed, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(f"N={curve.like_steps} + 1 %", (curve.most, allowed), color=GREY, size=8,
                  ha="right", va="bottom")  # fmt: skip
    axes.set_xlabel("mean steps a face")
    axes.set_title("mean L2", loc="left", size=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    sink = io.BytesIO()
    figure.savefig(sink, format="png", metadata={"Software": None})
    return sink.getvalue()
