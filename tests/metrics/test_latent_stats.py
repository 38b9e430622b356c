import pytest
import torch

from pipeline.metrics.latent_stats import residual_norm, w_avg_distance, w_plus_variance


def test_residuals_start_at_the_average():
    average = torch.full((10, 512), 2.0)
    codes = torch.stack([average + 3, average + 2.5])[None]
    assert residual_norm(codes, average).tolist() == [[3.0, 0.5]]


def test_the_norm_is_independent_of_n_styles():
    for n_styles in (10, 18):
        average = torch.zeros(n_styles, 512)
        assert residual_norm(average + torch.ones(1, 1, n_styles, 512), average).item() == 1


def test_equal_rows_have_no_variance():
    row = torch.randn(2, 1, 512)
    assert w_plus_variance(row.expand(2, 14, 512)).tolist() == pytest.approx([0, 0], abs=1e-12)


def test_variance_is_between_rows():
    codes = torch.zeros(1, 2, 512)
    codes[0, 1, :256] = 4.0
    assert w_plus_variance(codes).tolist() == [2.0]


def test_distance_is_a_root_mean_square():
    average = torch.ones(4, 512)
    codes = average.clone()
    codes[:, :128] += 2
    assert w_avg_distance(codes[None], average).tolist() == [1.0]


def test_residuals_start_at_given_codes():
    codes = torch.ones(2, 1, 10, 512)
    start = torch.stack([torch.zeros(10, 512), torch.full((10, 512), 3.0)])
    assert residual_norm(codes, start).tolist() == [[1.0], [2.0]]
