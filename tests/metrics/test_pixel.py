import math

import pytest
import torch

from pipeline.metrics.pixel import enlarge, mean_squared_error, peak_signal_to_noise


def test_l2_is_the_mean_square_per_image():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -1.0)])
    assert mean_squared_error(a, b).tolist() == [0.25, 1.0]


def test_black_against_white_is_0_db():
    assert peak_signal_to_noise(torch.tensor(4.0)).item() == pytest.approx(0, abs=1e-6)


def test_a_hundredth_of_the_peak_is_40_db():
    assert peak_signal_to_noise(torch.tensor((2 / 100) ** 2)).item() == pytest.approx(40)


def test_equal_images_have_infinite_psnr():
    assert peak_signal_to_noise(torch.tensor(0.0)).item() == math.inf


def test_enlarging_keeps_proportions():
    assert enlarge(torch.zeros(1, 3, 48, 64)).shape == (1, 3, 192, 256)


def test_a_large_image_is_unchanged():
    image = torch.zeros(1, 3, 300, 200)
    assert enlarge(image) is image
