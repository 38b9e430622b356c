import torch

from pipeline.demo.cartoon import cartoon, flatten_areas, lines, soft_tones, warp


def test_cartoon_keeps_size_and_range():
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    drawn = cartoon(images)
    assert drawn.shape == images.shape
    assert drawn.abs().max() <= 1


def test_warp_enlarges_eyes_and_keeps_the_border():
    dot = torch.full((1, 3, 64, 64), -1.0)
    dot[:, :, 29:32, 23:26] = 1  # position of an eye in aligned faces
    grown = warp(dot)
    assert (grown > 0).sum() > 1.5 * (dot > 0).sum()
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    assert torch.allclose(warp(ramp)[:, :, :8], ramp[:, :, :8], atol=0.02)


def test_flat_areas_lose_noise_and_keep_edges():
    torch.manual_seed(0)
    halves = torch.cat([torch.full((1, 3, 32, 16), -0.6), torch.full((1, 3, 32, 16), 0.6)], dim=3)
    flat = flatten_areas(halves + 0.05 * torch.randn_like(halves))
    assert flat[..., :12].std() < 0.02
    assert (flat[..., 17:].mean() - flat[..., :15].mean()) > 1.1


def test_brightness_is_quantised_to_tones():
    ramp = torch.linspace(-1, 1, 256).expand(1, 3, 4, 256)
    levels = soft_tones(ramp)[0, 0, 0]
    slopes = levels.diff() / ramp[0, 0, 0].diff()
    assert slopes.min() > 0
    assert (slopes < 0.5).float().mean() > 0.3  # plateaus with soft steps between
    assert slopes.max() < 2.5


def test_lines_follow_edges_between_dark_and_light():
    halves = torch.cat([torch.full((1, 3, 32, 16), -0.6), torch.full((1, 3, 32, 16), 0.6)], dim=3)
    ink = lines(halves)[0, 0, 16]
    assert ink[12:16].max() > 0.5
    assert ink[24:].max() == 0
