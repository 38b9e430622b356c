import math

import pytest
import torch

from pipeline.reports.coarse_to_fine import band_names, laplacian_bands


def energies(image: torch.Tensor) -> list[float]:
    return [float(band.square().mean()) for band in laplacian_bands(image)]


def wave(cycles: int, side: int = 64) -> torch.Tensor:
    phase = (torch.arange(side) + 0.5) * (2 * math.pi * cycles / side)
    return phase.sin().expand(1, 3, side, side)


@pytest.mark.parametrize(("cycles", "band"), [(28, 0), (14, 1), (7, 2), (1, 4)])
def test_wave_has_most_energy_in_its_band(cycles, band):
    measured = energies(wave(cycles))
    low, high = map(int, band_names(64)[band].split("–"))
    assert low <= cycles <= high
    assert measured.index(max(measured)) == band


def test_constant_image_is_only_in_the_last_band():
    *fine, rest = energies(torch.full((1, 3, 64, 64), 0.5))
    assert max(fine) < 1e-12
    assert rest == pytest.approx(0.25)


def test_every_band_has_a_name():
    assert len(band_names(64)) == len(laplacian_bands(torch.zeros(1, 3, 64, 64))) == 5
    assert band_names(64) == ["16–32", "8–16", "4–8", "2–4", "0–2"]
    assert len(band_names(384)) == len(laplacian_bands(torch.zeros(1, 3, 384, 512)))
