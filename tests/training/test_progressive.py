import pytest
import torch

from pipeline.training.e4e import Stages, delta_norms, staged, w_norm


def test_stages_free_one_row_at_a_time():
    stages = Stages(start=100, every=10)
    assert [stages.at(images, 4) for images in (0, 99, 100, 110, 125, 999)] == [0, 0, 1, 2, 3, 3]


def test_held_rows_equal_the_first_row():
    residual = torch.arange(4.0)[None, :, None].expand(2, 4, 512)
    held = staged(residual, 1)
    assert held[0, :, 0].tolist() == [0, 1, 0, 0]


def test_held_rows_pass_gradients_to_the_first():
    residual = torch.zeros(1, 4, 512, requires_grad=True)
    staged(residual, 1).sum().backward()
    assert residual.grad is not None
    assert residual.grad[0, :, 0].tolist() == [3, 1, 0, 0]


def test_delta_norms_sum_lengths_of_free_offsets():
    codes = torch.zeros(2, 4, 512)
    codes[:, 1, 0], codes[:, 2, 0] = 3.0, 4.0
    assert delta_norms(codes, 0) == 0
    assert delta_norms(codes, 1) == pytest.approx(3.0)
    assert delta_norms(codes, 2) == pytest.approx(7.0)


def test_w_norm_is_the_distance_from_the_average():
    codes = torch.zeros(1, 2, 512)
    codes[0, :, 0] = torch.tensor([3.0, 4.0])
    assert w_norm(codes, torch.zeros(2, 512)) == pytest.approx(5.0)
