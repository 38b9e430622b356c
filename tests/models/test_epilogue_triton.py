"""Triton kernel of the style layers without a GPU: interpreted, and compiled for two kinds."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch

from pipeline.models.epilogue import convolve_and_finish

pytest.importorskip("triton", reason="Triton has wheels for Linux alone")
pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")


INTERPRETED = """
import torch
from pipeline.models.epilogue import check_passes
from pipeline.models.epilogue_triton import PASSES
check_passes(PASSES, torch.device("cpu"))
"""


def test_the_interpreted_kernel_gives_the_plain_pass() -> None:
    """In a process of its own: Triton reads the variable when it is imported."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRETED]
    subprocess.run(command, env=environment, check=True, timeout=200)


def test_a_wrong_kernel_is_noticed() -> None:
    from pipeline.models.epilogue import Factors, Finished, check_finish, check_last, finish

    def wrong(y: torch.Tensor, factors: Factors, *, blurred: bool) -> Finished:
        return finish(y, factors._replace(bias=factors.bias + 0.1), blurred=blurred)

    with pytest.raises(ValueError, match="other features"):
        check_finish(wrong, torch.device("cpu"))
    with pytest.raises(ValueError, match="another image"):
        check_last(partial(convolve_and_finish, wrong), torch.device("cpu"))


FLOATS = dict.fromkeys(("image", "factor", "bias", "noise", "style", "rgb"), "*fp32")


def compiled(kernel: Any, tensors: dict[str, str], sizes: str, chosen: dict[str, Any]) -> Any:
    """Compile for each kind of GPU as a launch on bfloat16 features does."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from pipeline.models.epilogue_triton import WARPS

    names = tensors | dict.fromkeys(sizes.split(), "i32")
    source = ASTSource(
        fn=kernel,
        signature=names | dict.fromkeys(chosen, "constexpr"),
        constexprs=chosen,
        attrs={(index,): [["tt.divisibility", 16]] for index in range(len(names))},
    )
    for capability in (80, 90):
        target = GPUTarget("cuda", capability, 32)
        yield triton.compile(source, target=target, options={"num_warps": WARPS})


# Triton's own compiler, on Python 3.13.
@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")
@pytest.mark.parametrize("blurred", [True, False])
def test_the_pass_compiles_without_a_gpu(blurred: bool) -> None:
    from pipeline.models.epilogue_triton import finish_kernel, pixels_of

    padded, pixels = pixels_of(64)
    chosen = {"blurred": blurred, "styled": True, "mixed": not blurred, "pool": 1}
    chosen |= {"padded": padded, "pixels": pixels}
    tensors = {"y": "*bf16", "x": "*bf16", **FLOATS}
    sizes = "factor_stride style_stride height width channels"
    for built in compiled(finish_kernel, tensors, sizes, chosen):
        assert len(built.asm["cubin"]) > 0
        assert "ld.global.v4" in built.asm["ptx"].replace(".b32", ""), "loads are 128 bits wide"


@pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")
def test_the_last_layer_compiles_without_a_gpu() -> None:
    from pipeline.models.epilogue_triton import MOST_PIXELS, last_kernel

    tensors = {"x": "*bf16", "weight": "*bf16", **FLOATS}
    del tensors["style"]
    chosen = {"pool": 4, "wide_inputs": 32, "wide_outputs": 32, "pixels": MOST_PIXELS}
    sizes = "factor_stride height width inputs outputs"
    for built in compiled(last_kernel, tensors, sizes, chosen):
        assert len(built.asm["cubin"]) > 0
        assert "mma" in built.asm["ptx"], "products are those of tensor cores"
