"""Write the curve of a stop rule (bound on the gain, steps, L2) as Markdown, CSV and a plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.inversion import StopRule
from pipeline.reports.plots import COLOURS, GREY, new_figure, png_of
from pipeline.reports.stop_calibration import Point, Trace

ADAPTIVE, FIXED, CHOSEN = COLOURS[:3]


@dataclass(frozen=True)
class StopCurve:
    """Results of a chosen rule, of other bounds and of fixed steps on a separate set of faces."""

    traced: Trace
    chosen: Point
    points: Sequence[Point]
    like_steps: int
    tolerance: float = 0.01  # relative loss of L2 that was allowed

    def relative(self, point: Point) -> float:
        """Return a point's L2 relative to the fixed steps, 0.01 for 1 % more."""
        return point.l2 / self.traced.with_steps(self.like_steps).l2 - 1

    @property
    def max_steps(self) -> int:
        """Number of steps of the traces."""
        return self.traced.l2.shape[1]

    @property
    def fixed(self) -> list[Point]:
        """Results of 1 to `max_steps` steps for all faces."""
        return [self.traced.with_steps(steps) for steps in range(1, self.max_steps + 1)]


def stop_flags(rule: StopRule) -> str:
    """Return the flags of jobs/invert_dataset.py for `rule`.

    They have `=`, because argparse takes a negative gain such as -1e-05 for another flag.
    """
    bounds = f"--stop-gain={rule.improvement!r} --stop-residual={rule.residual!r}"
    return f"--steps=auto --max-steps={rule.max_steps} {bounds}"


def stop_files(curve: StopCurve) -> dict[str, bytes]:
    """Return the files of a report by name, the Markdown file last."""
    return {
        "stop_curve.csv": stop_csv(curve).encode(),
        "stop_curve.png": stop_plot(curve),
        "stop_curve.md": stop_markdown(curve).encode(),
    }


def stop_markdown(curve: StopCurve) -> str:
    """Return a Markdown table of the curve, the chosen rule and fixed steps."""
    rule, like, most = curve.chosen.rule, curve.like_steps, curve.max_steps
    lines = [
        f"{len(curve.traced.l2)} faces. L2 is of each face's best step by LPIPS, as in a table. A "
        f"face stops after a step whose gain and residual are below the bounds; the bound of the "
        f"residual is {rule.residual:g}. The bounds are for this model only; to use them:",
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
    like, most = curve.traced.with_steps(curve.like_steps), curve.traced.with_steps(curve.max_steps)
    shares = (point.l2 / like.l2, point.l2 / most.l2, point.last_l2 / like.last_l2)
    text = " | ".join(f"{share - 1:+.1%}" for share in shares)
    return f"| {name} | {point.steps:.2f} | {point.l2:.5f} | {text} |"


def stop_csv(curve: StopCurve) -> str:
    """Return the curve as CSV, one line per point; fixed steps have no bounds."""
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
    """Plot mean steps against mean L2 as PNG: adaptive curve, chosen rule, fixed steps."""
    figure, (axes,) = new_figure(1, 1, width=5.6, height=3.8)
    # Without the first step, whose high L2 would flatten the curve.
    fixed = [(point.steps, point.l2) for point in curve.fixed[1:]]
    adaptive = sorted((point.steps, point.l2) for point in curve.points if point.steps >= 2)
    axes.plot(*zip(*fixed, strict=True), marker="o", color=FIXED, label="fixed steps")
    if adaptive:
        axes.plot(*zip(*adaptive, strict=True), marker=".", color=ADAPTIVE, label="adaptive")
    name = f"chosen: gain < {curve.chosen.rule.improvement:.3g}"
    axes.plot(curve.chosen.steps, curve.chosen.l2, "s", color=CHOSEN, label=name)
    allowed = (1 + curve.tolerance) * curve.traced.with_steps(curve.like_steps).l2
    axes.axhline(allowed, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(f"N={curve.like_steps} + {100 * curve.tolerance:g} %",
                  (curve.max_steps, allowed), color=GREY, size=8,
                  ha="right", va="bottom")  # fmt: skip
    axes.set_xlabel("mean steps per face")
    axes.set_title("mean L2", loc="left", size=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return png_of(figure)
