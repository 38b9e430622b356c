"""Triton kernel of the style layers without a GPU: interpreted, and compiled for two kinds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from pipeline.models.epilogue import check_pass

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


INTERPRETED = """
import torch
from pipeline.models.epilogue import check_pass
from pipeline.models.epilogue_triton import finish_on_gpu
check_pass(finish_on_gpu, torch.device("cpu"))
"""


def test_the_interpreted_kernel_gives_the_plain_pass() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    subprocess.run(command, env=environment, check=True, timeout=200)


def test_a_wrong_kernel_is_noticed() -> None:
    from pipeline.models.epilogue import Factors, Finished, finish

    def wrong(y: torch.Tensor, factors: Factors, *, blurred: bool) -> Finished:
        return finish(y, factors._replace(bias=factors.bias + 0.1), blurred=blurred)

    with pytest.raises(ValueError, match="other features"):
        check_pass(wrong, torch.device("cpu"))


# Triton's own compiler, on Python 3.13.
@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("blurred", [True, False])
def test_the_kernel_compiles_without_a_gpu(capability: int, blurred: bool) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeline.models import epilogue_triton as module

    padded, pixels = module.pixels_of(64)
    chosen = {"blurred": blurred, "styled": True, "mixed": not blurred, "pool": 1}
    chosen |= {"padded": padded, "pixels": pixels}
    floats = dict.fromkeys(("image", "factor", "bias", "noise", "style", "rgb"), "*fp32")
    sizes = dict.fromkeys(("factor_stride", "style_stride", "height", "width", "channels"), "i32")
    names = {"y": "*bf16", "x": "*bf16", **floats, **sizes}
    source = ASTSource(
        fn=module.finish_kernel,
        signature=names | dict.fromkeys(chosen, "constexpr"),
        constexprs=chosen,
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(names))},
    )
    options = {"num_warps": module.WARPS}
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert len(built.asm["cubin"]) > 0
    assert "ld.global.v4" in built.asm["ptx"].replace(".b32", ""), "loads are 128 bits wide"
