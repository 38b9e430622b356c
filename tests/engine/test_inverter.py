from __future__ import annotations

import io
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.choices import MethodName
from pipeline.engine.inverter import (
    Inverter,
    InvertSettings,
    jpeg_of,
    split_evenly,
    stopwatch,
    to_tensor,
)
from pipeline.errors import ConfigError
from pipeline.inversion import OptimizeSettings, StopRule, invert, restyle_loop
from pipeline.inversion.methods import Method
from pipeline.models import load_model, save_bundle
from pipeline.models.pixels import to_pixels
from tests.engine.faces import face, start_of
from tests.tiny_bundle import write_tiny_bundle


@pytest.fixture(scope="module")
def other_bundle(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model over the same codes whose every weight is a little different."""
    model = load_model(tiny_bundle)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.9)
    folder = str(tmp_path_factory.mktemp("other"))
    save_bundle(model, folder)
    return folder


@pytest.fixture(scope="module")
def larger_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 128 px whose codes have two rows more than the tiny model's."""
    folder = str(tmp_path_factory.mktemp("larger"))
    return write_tiny_bundle(folder, size=128)


@pytest.mark.parametrize(
    ("count", "lengths"), [(0, []), (1, [1]), (16, [16]), (17, [8, 9]), (33, [11, 11, 11])]
)
def test_batches_are_few_and_nearly_equal(count: int, lengths: list[int]) -> None:
    batches = split_evenly(count, 16)
    assert sorted(batch.stop - batch.start for batch in batches) == lengths
    rows = list(range(count))
    assert [row for batch in batches for row in rows[batch]] == rows


def test_crops_become_tensors_in_order_and_range() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 1] = (255, 0, 51)
    tensor = to_tensor([pixels.tobytes()], (2, 2))
    assert tensor.shape == (1, 3, 2, 2)
    np.testing.assert_allclose(tensor[0, :, 0, 1], [1, -1, -0.6], atol=1e-6)


def test_a_stored_picture_is_rounded_not_cut() -> None:
    image = torch.full((3, 8, 8), 100.6 / 127.5 - 1)
    assert np.asarray(Image.open(io.BytesIO(jpeg_of(to_pixels(image))))).mean() == 101


def test_a_code_does_not_depend_on_neighbours(settings: InvertSettings) -> None:
    faces = [face(number) for number in range(5)]
    together = Inverter(settings).rows(faces).latents
    alone = Inverter(replace(settings, batch_size=1)).rows(faces).latents
    for item, other in zip(together, alone, strict=True):
        assert (item["key"], item["best_step"]) == (other["key"], other["best_step"])
        np.testing.assert_allclose(item["w_plus"], other["w_plus"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(item["lpips_per_step"], other["lpips_per_step"], atol=1e-5)


def test_code_and_metrics_are_of_the_best_step(settings: InvertSettings) -> None:
    (row,) = Inverter(replace(settings, keep_steps=True)).rows([face(0)]).latents
    best = row["best_step"] - 1
    assert row["lpips"] == min(row["lpips_per_step"]) == row["lpips_per_step"][best]
    assert row["l2"] == row["l2_per_step"][best]
    np.testing.assert_array_equal(row["w_plus"], row["w_plus_per_step"][best])
    assert len(row["residual_norm_per_step"]) == row["steps"] == 3
    assert row["id_similarity"] is None
    assert row["id_similarity_per_step"] == [None] * 3


def test_a_target_changes_the_measures_alone(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, keep_crops=True))
    source, other = face(0), face(1)["pixels"]
    (plain,) = inverter.rows([source]).latents
    (same,) = inverter.rows([source | {"target": source["pixels"]}]).latents
    (paired,) = inverter.rows([source | {"target": other}]).latents
    assert (same["l2_per_step"], same["lpips"]) == (plain["l2_per_step"], plain["lpips"])
    assert paired["l2_per_step"] != plain["l2_per_step"]
    assert paired["aligned_jpeg"] == plain["aligned_jpeg"]
    assert paired.keys() == plain.keys(), "a target is not a column of the table"


def test_pictures_are_kept_on_request(settings: InvertSettings) -> None:
    expected = replace(settings, keep_crops=True, keep_reconstructions=True)
    (row,) = Inverter(expected).rows([face(0)]).latents
    for name in ("aligned_jpeg", "reconstruction_jpeg"):
        assert Image.open(io.BytesIO(row[name])).size == (64, 64)


def test_the_reconstruction_matches_the_rows_code(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, keep_reconstructions=True))
    begin, best = inverter.meter.begin, np.array([1, 3, 2], np.int32)
    inverter.meter.begin = lambda *a, **k: lambda: replace(begin(*a, **k)(), best_step=best)  # type: ignore[method-assign]
    rows = inverter.rows([face(number) for number in range(3)]).latents
    assert [row["best_step"] for row in rows] == [1, 3, 2]
    for row in rows:
        frame = inverter.model.generator(torch.from_numpy(row["w_plus"])[None])[0]
        kept = np.asarray(Image.open(io.BytesIO(row["reconstruction_jpeg"])), np.float32)
        expected = np.asarray(
            Image.open(io.BytesIO(jpeg_of(to_pixels(frame.detach())))), np.float32
        )
        assert np.abs(kept - expected).mean() < 0.5


@pytest.mark.parametrize("keep_steps", [False, True])
def test_a_diverged_later_step_costs_no_face(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch, keep_steps: bool
) -> None:
    inverter = Inverter(replace(settings, keep_steps=keep_steps))
    whole = inverter.rows([face(0), face(1)]).latents
    step, calls = restyle_loop.restyle_step, itertools.count(1)

    def astray(*inputs: Any) -> tuple[Tensor, Tensor]:
        codes, observed = step(*inputs)
        if next(calls) == 3:  # the last step
            codes[0], observed[0] = float("inf"), float("nan")
        return codes, observed

    monkeypatch.setattr(restyle_loop, "restyle_step", astray)
    account = inverter.rows([face(0), face(1)])
    if keep_steps:
        assert [reject["reason"] for reject in account.rejects] == ["not_finite"]
        return
    assert account.rejects == []
    first = account.latents[0]
    assert first["best_step"] < 3
    assert first["lpips_per_step"] == [*whole[0]["lpips_per_step"][:2], None]
    assert first["residual_norm_per_step"][2] is None
    np.testing.assert_array_equal(
        account.latents[1]["w_plus"], whole[1]["w_plus"], "its neighbour is as it was"
    )


def test_a_code_beyond_float16_is_a_reject(settings: InvertSettings) -> None:
    account = Inverter(replace(settings, largest_code=1e-6)).rows([face(0)])
    reasons = [reject["reason"] for reject in account.rejects]
    assert (account.latents, reasons) == ([], ["not_finite"])


def test_the_cpu_is_used_when_requested(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Inverter(replace(settings, device="cpu")).device == "cpu"


def test_a_missing_gpu_is_an_error_when_requested(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda: PyTorch .* finds no GPU here"):
        Inverter(replace(settings, device="cuda"))
    assert Inverter(replace(settings, device="auto")).device == "cpu"


def test_a_gpu_measures_its_own_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[str]()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def synchronize(self) -> None:
            calls.append("wait")

        def elapsed_time(self, _: Event) -> float:
            return 250.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert stopwatch("cpu")()() < 1
    assert calls == [], "a machine without a GPU has nothing to wait for"
    seconds = stopwatch("cuda")()
    assert calls == ["record", "record"], "the inversion is not waited for until its rows are made"
    assert seconds() == 0.25
    assert calls[2:] == ["wait"]


def test_faces_start_from_their_own_codes(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, initial_codes="all", method=Method(steps=1)))
    codes = start_of(2, 0)
    rows = inverter.rows([face(0), face(2)], "s", codes).latents
    assert [row["refined_from"] for row in rows] == ["s/0#0", "s/2#0"]
    for row in rows:
        moved = row["w_plus"] - codes[row["refined_from"]]
        expected = float(np.sqrt(np.square(moved).mean()))
        assert row["residual_norm_per_step"] == [pytest.approx(expected, rel=1e-4)]
        assert row["generator_passes"] == 2  # the start's image, and the step's


def test_a_face_without_initial_code_is_a_reject(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, initial_codes="all"))
    account = inverter.rows([face(0), face(1)], "s", start_of(1))
    assert [row["key"] for row in account.latents] == ["1"]
    assert [(r["key"], r["face_index"], r["reason"]) for r in account.rejects] == [
        ("0", 0, "no_start")
    ]


def test_other_faces_of_a_chosen_image_are_skipped(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, initial_codes="chosen"))
    other = face(0) | {"face_index": 1}
    account = inverter.rows([face(0), other], "s", start_of(0))
    assert [(row["key"], row["face_index"]) for row in account.latents] == [("0", 0)]
    assert account.rejects == []


def test_a_missing_chosen_face_is_a_reject(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, initial_codes="chosen"))
    gone = {"s/0#1": np.zeros((10, 512), np.float32)}
    account = inverter.rows([face(0)], "s", gone)
    assert account.latents == []
    assert [(r["key"], r["face_index"], r["reason"]) for r in account.rejects] == [
        ("0", 1, "no_start")
    ]


def test_lists_have_one_entry_per_step(settings: InvertSettings) -> None:
    rule = StopRule(improvement=0.01, residual=10.0, min_steps=1, max_steps=6)
    inverter = Inverter(replace(settings, method=Method(stop=rule), keep_steps=True, batch_size=2))
    rows = inverter.rows([face(number) for number in range(6)]).latents
    steps = {row["steps"] for row in rows}
    assert max(steps) <= 6
    for row in rows:
        assert row["converged"] is (row["steps"] < 6) or row["steps"] == 6
        assert row["best_step"] <= row["steps"] == row["generator_passes"]
        for name in ("l2_per_step", "lpips_per_step", "residual_norm_per_step", "w_plus_per_step"):
            assert len(row[name]) == row["steps"]
        assert not np.isnan(row["l2_per_step"]).any()


@pytest.fixture(scope="module")
def in_full(settings: InvertSettings) -> tuple[StopRule, list[dict[str, Any]]]:
    """A rule that ends six faces at different steps, and their rows where it has room for it."""
    longest = Method(stop=StopRule(improvement=-4.0, max_steps=6))
    faces = [face(number) for number in range(6)]
    plain = Inverter(replace(settings, method=longest)).rows(faces).latents
    falls = np.array([-np.diff(row["l2_per_step"]) for row in plain])
    rule = StopRule(improvement=float(np.median(falls)), residual=1e6, min_steps=2, max_steps=40)
    rows = Inverter(replace(settings, method=Method(stop=rule))).rows(faces).latents
    assert len({row["steps"] for row in rows}) > 1
    return rule, rows


@pytest.mark.parametrize("most", [2, 3, 4])
def test_faces_at_the_step_limit_did_not_converge(
    settings: InvertSettings, in_full: tuple[StopRule, list[dict[str, Any]]], most: int
) -> None:
    rule, unbounded = in_full
    method = Method(stop=replace(rule, max_steps=most))
    rows = Inverter(replace(settings, method=method)).rows([face(n) for n in range(6)]).latents
    for row, free in zip(rows, unbounded, strict=True):
        assert row["steps"] == min(most, free["steps"])
        assert row["converged"] is (free["steps"] <= most)


@pytest.mark.parametrize("name", ["optimize", "hybrid"])
def test_optimised_rows_say_what_they_cost(settings: InvertSettings, name: MethodName) -> None:
    method = Method(name, steps=2, optimisation=OptimizeSettings(iterations=4, spread=0.5))
    rows = Inverter(replace(settings, method=method)).rows([face(0), face(1)], "s").latents
    again = Inverter(replace(settings, method=method)).rows([face(0), face(1)], "s").latents
    for row, same in zip(rows, again, strict=True):
        np.testing.assert_array_equal(row["w_plus"], same["w_plus"])
        assert (row["method"], row["steps"], row["converged"]) == (name, 2, None)
        assert row["generator_passes"] >= 4 + (2 if name == "hybrid" else 0)


def test_two_threads_may_invert_at_once(settings: InvertSettings) -> None:
    inverter, parts = Inverter(settings), [[face(0), face(1)], [face(2)]]
    expected = [inverter.rows(part).latents for part in parts]
    with ThreadPoolExecutor(2) as threads:
        made = list(threads.map(inverter.rows, parts))
    for result, rows in zip(made, expected, strict=True):
        assert [row["key"] for row in result.latents] == [row["key"] for row in rows]
        for row, other in zip(result.latents, rows, strict=True):
            np.testing.assert_allclose(row["w_plus"], other["w_plus"], rtol=0, atol=1e-6)


def test_bootstrapping_continues_from_another_models_codes(
    settings: InvertSettings, tiny_bundle: str, other_bundle: str
) -> None:
    method = Method(steps=2, bootstrap_steps=1)
    expected = replace(settings, model=other_bundle, first=tiny_bundle, method=method)
    (row,) = Inverter(replace(expected, keep_steps=True)).rows([face(0)]).latents
    images = to_tensor([face(0)["pixels"]], (64, 64))
    first = invert(load_model(tiny_bundle), images, steps=1)
    start = {"start": first.w_plus[:, -1], "start_images": first.step_images[:, -1]}
    second = invert(load_model(other_bundle), images, steps=2, **start)
    np.testing.assert_allclose(row["w_plus_per_step"], second.w_plus[0], rtol=0, atol=1e-6)
    assert (row["steps"], row["generator_passes"], row["refined_from"]) == (2, 3, None)


@pytest.mark.parametrize("first", ["tiny_bundle", "larger_bundle"])
def test_bootstrapping_from_a_table_equals_direct_bootstrapping(
    settings: InvertSettings, other_bundle: str, first: str, request: pytest.FixtureRequest
) -> None:
    before = replace(settings, model=request.getfixturevalue(first), method=Method(steps=1))
    (initial,) = Inverter(before).rows([face(0)], "s").latents
    going_on = replace(settings, model=other_bundle, first=before.model, keep_steps=True)
    from_table = Inverter(replace(going_on, method=Method(steps=2), initial_codes="all"))
    (row,) = from_table.rows([face(0)], "s", {"s/0#0": initial["w_plus"]}).latents
    in_one_job = Inverter(replace(going_on, method=Method(steps=2, bootstrap_steps=1)))
    (same,) = in_one_job.rows([face(0)], "s").latents
    np.testing.assert_allclose(row["w_plus_per_step"], same["w_plus_per_step"], atol=1e-5)
    assert row["refined_from"] == "s/0#0"
