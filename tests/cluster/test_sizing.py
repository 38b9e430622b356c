"""Sizing in the guide: results follow from its inputs and the engine's constants."""

from __future__ import annotations

import math
import re

import pytest

from pipeline.engine.capacity import CLUSTER_READERS
from pipeline.engine.resolve import SAMPLES_PER_PART
from pipeline.engine.stages import Align, Read, Write
from tests.cluster.configurations import FOLDER, load

TEXT = (FOLDER / "README.md").read_text()
PART = SAMPLES_PER_PART["cuda"]
DRIVER_S, ENGINE_S = 0.03, 0.25  # of a core per part: pipeline/engine/README.md, Numbers
READER_MBPS = 100


def inputs() -> dict[str, float]:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([\d.]+) \|", TEXT, re.M)
    return {name: float(value) for name, value in rows}


def number(text: str) -> float:
    return float(text.strip("* ").replace(",", ""))


@pytest.mark.parametrize("peak", ["P", "T"])
def test_cost_of_dlib_identity_follows_from_one_image(peak: str) -> None:
    i = inputs()
    rate = i["o"] * i[peak] / i["F"]
    image, images, children = 5.5, 6, 7
    face_ms = image * images / (children * i["v"])
    worst = 1e3 / (1e3 / rate + face_ms)
    for said in (
        f"takes {image:g} ms of a core there",
        f"a face {image * images:g} ms",
        f"{children} children have `7·v` = {children * i['v']:.1f} cores",
        f"so {face_ms:.1f} ms a face, {1e3 / face_ms:.0f} faces a second",
        f"`1/R` + {face_ms:.1f} ms",
        f"{worst:.0f} instead of {rate:.1f}" if peak == "T" else f"{worst:.0f} a second\n",
    ):
        assert said in TEXT


def section(title: str) -> str:
    return TEXT.split(title)[1].split("\n#")[0]


def column(text: str, index: int, skipped: int) -> dict[str, str]:
    """Map the first cell to cell `index` after `skipped` others, for rows with numbers."""
    cells_by_name = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        values = cells[1 + skipped :]
        if len(values) > index and re.fullmatch(r"\**[\d.,]+\**", values[index]):
            cells_by_name[cells[0]] = values[index]
    return cells_by_name


def cpu_nodes(rate: float, i: dict[str, float], readers: int = CLUSTER_READERS) -> int:
    """Return the nodes for everything that uses Ray's CPUs: aligners, readers and writers."""
    aligners = math.ceil(rate * i["a"] / i["v"])
    writers = math.ceil(rate / PART * i["p"] / Write.resources.parts_at_once)
    cpus = (
        aligners * Align.resources.cpus
        + readers * Read.resources.cpus
        + writers * Write.resources.cpus
    )
    return math.ceil(cpus / i["V"])


def same(said: dict[str, str], meant: dict[str, float]) -> None:
    """Check that each number in the text equals the computed one, rounded as it is written."""
    assert said.keys() == meant.keys()
    for name, text in said.items():
        digits = len(text.strip("*").partition(".")[2])
        assert number(text) == pytest.approx(round(meant[name], digits)), name


@pytest.mark.parametrize(("index", "peak"), [(0, "P"), (1, "T")])
def test_results_follow_from_inputs_and_engine(index: int, peak: str) -> None:
    i = inputs()
    each = i["o"] * i[peak] / i["F"]
    rate = i["G"] * each
    nodes = cpu_nodes(rate, i)
    hours = 1e6 / rate / 3600
    gpus = i["G"] * i["pg"]
    said = column(section("| result | arithmetic |"), index, 1)
    same(
        {name.partition(",")[0]: value for name, value in said.items() if "MB/s" not in name},
        {
            "images a second that one GPU inverts": each,
            "images a second": rate,
            "aligners": math.ceil(rate * i["a"] / i["v"]),
            "CPUs of Ray for up to 16 readers": CLUSTER_READERS * Read.resources.cpus,
            "CPUs of Ray for writers": math.ceil(
                rate / PART * i["p"] / Write.resources.parts_at_once
            )
            * Write.resources.cpus,
            "CPU nodes": nodes,
            "hours for a million images": hours,
            "$ a million faces": (gpus + nodes * i["pc"] + i["ph"]) * hours,
            "$ for starting the nodes": (gpus + nodes * i["pc"]) * i["b"] / 60,
            "table": 1000 * i["w"],
        },
    )
    same(
        {name: value for name, value in said.items() if "MB/s" in name},
        {
            "read from storage, MB/s": rate * i["s"],
            "from CPU to GPU nodes, MB/s": rate * i["c"],
            "written, MB/s": rate * i["w"],
        },
    )


@pytest.mark.parametrize(("index", "peak", "faster"), [(0, "P", 1), (1, "T", 1), (2, "P", 10)])
def test_results_of_sixty_four_nodes_follow(index: int, peak: str, faster: int) -> None:
    i = inputs()
    rate = 64 * faster * i["o"] * i[peak] / i["F"]
    parts = rate / PART
    needed = math.ceil(rate * i["s"] / READER_MBPS)
    same(
        column(section("### Sixty-four nodes, on paper"), index, 0),
        {
            "images a second": rate,
            "parts of 256 a second": parts,
            "driver's cores, of one that it has": parts * DRIVER_S,
            "cores for aligning (`G·R·a`)": rate * i["a"],
            "readers of 100 MB/s that the input needs, of 16": needed,
            "CPU nodes": cpu_nodes(rate, i, max(needed, CLUSTER_READERS)),
            "cores for the engine and Ray (0.25 s a part)": parts * ENGINE_S,
            "read from storage, GB/s": rate * i["s"] / 1000,
            "hours for 10⁹ images": 1e9 / rate / 3600,
        },
    )


def test_printed_formulas_use_the_engines_constants() -> None:
    for term in (
        f"`{CLUSTER_READERS} · {Read.resources.cpus}`",
        f"`⌈G·R/{PART} · p / {Write.resources.parts_at_once}⌉ · {Write.resources.cpus}`",
        f"bound of {CLUSTER_READERS} tasks",
        f"{CLUSTER_READERS * READER_MBPS / inputs()['s']:,.0f} images of 0.5 MB a second",
    ):
        assert term in TEXT
    assert Align.resources.cpus == 1, "one CPU of Ray each"


def test_gpu_speed_is_below_half_of_the_peak() -> None:
    """IEEE float32 is the default, and no convolution reaches the peak."""
    i = inputs()
    assert i["o"] <= 0.5
    assert "not measured: no GPU was at hand" in TEXT


def test_nodes_equal_those_of_the_cluster_file() -> None:
    i = inputs()
    kinds = load("aws.yaml")["available_node_types"]
    assert i["V"] == kinds["cpu"]["resources"]["CPU"]
    assert i["G"] == kinds["gpu"]["max_workers"]
    for peak in ("P", "T"):
        rate = i["G"] * i["o"] * i[peak] / i["F"]
        assert cpu_nodes(rate, i) <= kinds["cpu"]["max_workers"]
