"""Check the benchmark job, not its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import benchmark
from pipeline.errors import ConfigError


def ended(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code, and the error on the last line of stdout."""
    try:
        code = benchmark.main(list(map(str, arguments)))
    except SystemExit as exited:
        code = exited.code
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["exit_code"] == code
    return code, line["errors"][0]


@pytest.mark.parametrize("flag", ["--gpus", "--images", "--speed", "--part-size", "--skew"])
@pytest.mark.parametrize("value", ["x", "-5", "0", "1.5", ""])
def test_what_is_no_number_of_anything_is_refused(
    capsys: pytest.CaptureFixture[str], flag: str, value: str
) -> None:
    told = f"argument {flag}: '{value}' is not a whole number above 0"
    assert ended(capsys, "--simulate", f"{flag}={value}") == (2, told)


def test_a_setting_out_of_range_is_a_wrong_request() -> None:
    request = {"gpus": 1, "speed": 100, "input": "in", "output": "out", "model": "demo"}
    with pytest.raises(ConfigError, match="--part-size: input should be less than"):
        benchmark.run_once({**request, "part_size": 200_000})


def test_lists_are_numbers_with_commas() -> None:
    args = benchmark.parse_arguments(["--simulate", "--images", "1000, 20000"])
    assert (args.images, args.gpus, args.speed) == ([1000, 20_000], [1], [100])


def test_a_refused_run_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, error = ended(capfd, "--input", tmp_path / "nowhere")
    assert code == 2
    assert "does not exist" in error
