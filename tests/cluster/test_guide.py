"""Commands in the guide do what it says, as far as a shell can check."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.configurations import FOLDER, load

GUIDE = (FOLDER / "README.md").read_text()
COMMANDS = [
    line.replace("\\\n", " ")
    for block in re.findall(r"```(?:ba)?sh\n(.*?)```", GUIDE, re.S)
    for line in re.split(r"(?<!\\)\n", block)
]
CODES = {"done": 0, "failed": 1, "wrong": 2}


def test_a_trial_has_its_own_table() -> None:
    trials = [line for line in COMMANDS if "--limit" in line]
    assert trials
    for line in trials:
        (output,) = re.findall(r"--output (\S+)", line)
        assert output != load("run.yaml")["output"], (
            "a table with a limit can only be continued with it"
        )


def test_jobs_are_submitted_after_the_dashboard_answers() -> None:
    opened = [
        number
        for number, line in enumerate(COMMANDS)
        if line.startswith("ray dashboard") and "--port" not in line
    ]
    assert opened
    for number in opened:
        assert "&" not in COMMANDS[number].split("#")[0], "ssh needs the terminal"
        after = [line.split()[0] for line in COMMANDS[number + 1 :] if line.strip()]
        assert "until" in after[: after.index("ray")]


def test_guide_lists_every_file() -> None:
    table = GUIDE.split("\n## ")[0]
    names = [str(path.relative_to(FOLDER)) for path in sorted(FOLDER.rglob("*")) if path.is_file()]
    assert [name for name in names if f"`{name}`" not in table and name != "README.md"] == []


def run_the_loop(folder: Path, *answers: str) -> tuple[int, str]:
    """Run the guide's loop with `answers` of the jobs; return the submissions and the output."""
    (loop,) = [
        block
        for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.S)
        if "until ray job submit" in block
    ]
    for number, answer in enumerate(answers):
        line = json.dumps({"exit_code": CODES[answer]}) if answer in CODES else answer
        (folder / f"{number}.said").write_text(f'{{"event": "planned"}}\n{line}\nJob ended\n')
        (folder / f"{number}.code").write_text(str(int(answer != "done")))
    (folder / "ray").write_text(
        '#!/bin/sh\ncd "$(dirname "$0")"; n=$(ls | grep -c called); touch $n.called\n'
        "cat $n.said; exit $(cat $n.code)\n"
    )
    (folder / "sleep").write_text("#!/bin/sh\n")
    for name in ("ray", "sleep"):
        (folder / name).chmod(0o755)
    run = subprocess.run(
        ["bash", "-c", loop],
        cwd=folder,
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return len(list(folder.glob("*.called"))), run.stdout


@pytest.mark.parametrize(
    ("answers", "submitted"),
    [
        (("done",), 1),
        (("failed", "failed", "done"), 3),
        (("connection lost", "done"), 2),
        (("failed", "wrong", "done"), 2),
    ],
)
def test_guide_repeats_failed_jobs_only(
    answers: tuple[str, ...], submitted: int, tmp_path: Path
) -> None:
    times, said = run_the_loop(tmp_path, *answers)
    assert times == submitted
    assert said.count("planned") == submitted, "the log is shown"
