from __future__ import annotations

import subprocess
import sys

import pytest

import pipeline.engine


@pytest.mark.parametrize("stage", ["read", "align", "invert", "write"])
def test_a_stage_without_networks_does_not_import_them(stage: str) -> None:
    """Every reader, aligner and writer is a process that imports its stage."""
    code = f"import sys, pipeline.engine.stages.{stage}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


def test_the_door_opens_all_the_same() -> None:
    assert callable(pipeline.engine.run_job)
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = pipeline.engine.walk
