"""The README's sizing: its results are its arithmetic over its inputs."""

from __future__ import annotations

import math
import re

from tests.cluster.configurations import FOLDER

TEXT = (FOLDER / "README.md").read_text()


def inputs() -> dict[str, float]:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([\d.]+) \|", TEXT, re.M)
    return {name: float(value) for name, value in rows}


def results() -> dict[str, float]:
    rows = re.findall(r"^\| ([^|`]+) \| `[^|]*`[^|]* \| ([\d.]+) \|", TEXT, re.M)
    return {name: float(value) for name, value in rows}


def test_what_dlibs_identity_takes_follows_from_an_image() -> None:
    i = inputs()
    image, images, children = 5.5, 6, 7
    face_ms = image * images / (children * i["v"])
    worst = 1e3 / (1e3 / i["R"] + face_ms)
    for said in (
        f"takes {image:g} ms of a core there",
        f"a face {image * images:g} ms",
        f"{children} children have `7·v` = {children * i['v']:.1f} cores",
        f"so {face_ms:.1f} ms a face, {1e3 / face_ms:.0f} faces a second",
        f"`1/R` + {face_ms:.1f} ms, {worst:.0f} a second\ninstead of {i['R']:g}",
    ):
        assert said in TEXT


def test_the_results_follow_from_the_inputs() -> None:
    i = inputs()
    rate = i["G"] * i["R"]
    cores = rate * i["a"]
    nodes = math.ceil(cores / (i["v"] * i["V"]))
    hours = 1e6 / rate / 3600
    gpus = i["G"] * i["pg"]
    assert results() == {
        "images a second": rate,
        "cores for aligning": round(cores, 1),
        "CPU nodes": nodes,
        "read from storage, MB/s": rate * i["s"],
        "from CPU to GPU nodes, MB/s": round(rate * i["c"], 1),
        "written, MB/s": round(rate * i["w"], 1),
        "hours for a million images": round(hours, 3),
        "$ a million faces": round((gpus + nodes * i["pc"] + i["ph"]) * hours, 2),
        "$ for starting the nodes, once": round((gpus + nodes * i["pc"]) * i["b"] / 60, 2),
        "table, GB a million faces": 1000 * i["w"],
    }
