import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from pipeline.metrics.arcface import ArcFaceIRSE50
from pipeline.metrics.identity import load_identity
from pipeline.training.losses import central_crop, load_face_features


@pytest.fixture(scope="module")
def faces():
    """Render faces [4, 3, 256, 256] in [-1, 1] with the demo model's generator."""
    from pipeline.models import load_model

    model = load_model("demo")
    torch.manual_seed(2)
    codes = model.latent_avg + 0.25 * torch.randn(4, 1, 512)
    with torch.no_grad():
        images = model.generator(codes.expand(-1, model.n_styles, -1)).clamp(-1, 1)
    return torch.nn.functional.interpolate(images, size=256, mode="bilinear")


def test_central_crop_matches_the_published_rows():
    rows = torch.arange(256.0)[:, None].expand(1, 3, 256, 256)
    crop = central_crop(rows)
    assert crop.shape == (1, 3, 188, 188)
    assert (crop[0, 0, 0, 0], crop[0, 0, -1, 0]) == (35, 222)


def test_fixed_window_similarity_agrees_with_the_metric(faces):
    features = load_face_features("dlib").embed(faces)
    metric = load_identity("dlib").embed(faces)
    detected = metric.isfinite().all(dim=1)
    assert detected.sum() >= 3
    fixed, measured = (
        features[detected] @ features[detected].T,
        metric[detected] @ metric[detected].T,
    )
    upper = torch.triu_indices(len(fixed), len(fixed), 1)
    assert (fixed - measured)[upper[0], upper[1]].abs().max() < 0.08


def test_identity_loss_has_gradients_at_the_pixels(faces):
    images = faces[:1].clone().requires_grad_()
    load_face_features("dlib").embed(images).sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_weight_file_loads_its_own_network(tmp_path, faces):
    torch.manual_seed(0)
    state = ArcFaceIRSE50().state_dict()
    save_file(state, tmp_path / "ir_se50.safetensors")
    features = load_face_features(str(tmp_path / "ir_se50.safetensors"))
    assert features.side == 112
    assert torch.allclose(features.embed(faces[:1]).norm(dim=1), torch.ones(1))
    # The published loss pools rows 35 to 222 and columns 32 to 219 of a crop of 256 px.
    inner = torch.nn.AdaptiveAvgPool2d((112, 112))(faces[:1, :, 35:223, 32:220])
    network = ArcFaceIRSE50().eval()
    network.load_state_dict(state)
    assert torch.allclose(features.embed(faces[:1]), network(inner), atol=1e-5)


def test_only_dlibs_network_needs_dlib(tmp_path):
    save_file(ArcFaceIRSE50().state_dict(), tmp_path / "ir_se50.safetensors")
    code = f"""
import sys
sys.modules["dlib"] = None
from pipeline.errors import ModelError
from pipeline.training.losses import load_face_features
print(load_face_features({str(tmp_path / "ir_se50.safetensors")!r}).side)
try:
    load_face_features("dlib")
except ModelError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    side, refusal = run.stdout.splitlines()
    assert side == "112"
    assert "needs dlib: pip install dlib-bin" in refusal
