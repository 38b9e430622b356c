import pytest
import torch

from pipeline.metrics.lpips import Lpips, load_lpips
from pipeline.metrics.pixel import enlarge, mean_squared_error


def test_each_layer_reproduces_the_published_script(seeded_lpips, inputs, golden):
    left, right = seeded_lpips.embed(inputs[:1]), seeded_lpips.embed(inputs[1:])
    shapes = [list(map_.shape) for map_ in left]
    assert shapes == golden["lpips_unit"]["feature_shapes"]
    for index, expected in enumerate(golden["lpips_unit"]["per_layer"]):
        head = seeded_lpips.get_submodule(f"lin{index}.model.1")
        layer = head((left[index] - right[index]).square()).mean()
        torch.testing.assert_close(layer.item(), expected, rtol=1e-5, atol=0)


def test_scores_reproduce_the_published_script_symmetrically(seeded_lpips, inputs, golden):
    scores = seeded_lpips(inputs, inputs.flip(0))
    expected = golden["lpips_unit"]["sine_vs_astronaut"]
    torch.testing.assert_close(scores, torch.tensor([expected] * 2), rtol=1e-5, atol=0)


def test_l2_reproduces_the_published_script(inputs, golden):
    error = mean_squared_error(inputs[:1], inputs[1:])
    torch.testing.assert_close(error.item(), golden["lpips_unit"]["mse"], rtol=1e-6, atol=0)


def test_equal_images_have_distance_zero():
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert load_lpips()(image, image).item() == 0


def test_blur_is_farther_than_a_shade():
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    shade = (image + 0.05).clamp(-1, 1)
    blur = torch.nn.functional.avg_pool2d(image, 5, stride=1, padding=2)
    network = load_lpips()
    assert network(image, blur) > 5 * network(image, shade)


@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
def test_an_enlarged_image_needs_no_enlargement(size):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Lpips().double().requires_grad_(False)
    images = torch.rand(2, 3, *size, dtype=torch.float64) * 2 - 1
    for made, expected in zip(
        network.embed_enlarged(images), network.embed(enlarge(images)), strict=True
    ):
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
