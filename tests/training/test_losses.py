import torch

from pipeline.metrics.lpips import load_lpips
from pipeline.training.losses import ShiftedLpips, block_means


def test_block_means_are_exact_means():
    images = torch.arange(64.0).reshape(1, 1, 8, 8).expand(1, 3, 8, 8)
    assert block_means(images, 2)[0, 0, 0, 0] == images[0, 0, :4, :4].mean()


def test_lpips_of_equal_images_is_zero_and_has_a_finite_gradient():
    target = torch.rand(2, 3, 32, 32) * 2 - 1
    made = target.clone().requires_grad_()
    loss = ShiftedLpips(load_lpips(), target)(made)
    assert loss.abs().max() < 1e-6
    loss.sum().backward()
    assert made.grad is not None
    assert made.grad.isfinite().all()
