"""The jobs that build what the package brings along: what is missing is told in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jobs import build_demo_model, build_samples


def test_a_folder_without_pairs_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert build_demo_model.main(["--pairs", str(folder)]) == 2
        assert capsys.readouterr().err == f"InputError: '{folder}' holds no pairs-*.tar\n"


def test_samples_need_a_wheel_and_openvino(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "random_face.whl"
    assert build_samples.main(["--wheel", str(wheel)]) == 2
    assert capsys.readouterr().err == f"InputError: the wheel '{wheel}' does not exist\n"
    wheel.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert build_samples.main(["--wheel", str(wheel)]) == 2
    assert capsys.readouterr().err.endswith("needs openvino: pip install openvino\n")
