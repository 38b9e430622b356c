from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.choices import MethodName
from pipeline.engine.align import FACES, REJECTS, reject_row
from pipeline.engine.invert import (
    Inverter,
    InvertSettings,
    InvertStage,
    even_batches,
    to_jpeg,
    to_tensor,
)
from pipeline.engine.rows import Row, blank_row, pack, unpack
from pipeline.errors import ConfigError
from pipeline.images import Rejection, RejectReason
from pipeline.inversion import OptimizeSettings, StopRule, bootstrap, restyle
from pipeline.inversion.methods import Method
from pipeline.models import load_model, save_bundle
from pipeline.table import Columns, starts_schema


def face(number: int) -> dict[str, Any]:
    """A row of `FACES` with a smooth picture of its own."""
    y, x = np.mgrid[0:64, 0:64] / 64
    waves = np.stack([np.sin((number + 2) * x + c * y) for c in range(3)], axis=-1)
    pixels = ((waves + 1) * 127.5).astype(np.uint8)
    known = {
        "key": str(number),
        "source_uri": f"/in/{number}",
        "source_sha256": "",
        "face_index": 0,
    }
    return dict.fromkeys(FACES.names) | known | {"n_faces": 1, "pixels": pixels.tobytes()}


def part(faces: list[dict[str, Any]]) -> Row:
    row = blank_row("part", "s", 0)
    row["payload"] = pack(FACES.empty_table().from_pylist(faces, schema=FACES))
    row["rejected"] = pack(REJECTS.empty_table())
    return row


@pytest.fixture(scope="module")
def settings(tiny_bundle: str) -> InvertSettings:
    return InvertSettings(tiny_bundle, Method(steps=3), identity="none")


@pytest.fixture(scope="module")
def broken_bundle(tiny_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose every code is infinite."""
    model = load_model(tiny_bundle)
    with torch.no_grad():
        model.encoder.heads.bias.fill_(float("inf"))  # type: ignore[union-attr, operator]
    folder = str(tmp_path_factory.mktemp("broken"))
    save_bundle(model, folder)
    return folder


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


@pytest.mark.parametrize(
    ("count", "lengths"), [(0, []), (1, [1]), (16, [16]), (17, [8, 9]), (33, [11, 11, 11])]
)
def test_batches_are_few_and_nearly_equal(count: int, lengths: list[int]) -> None:
    batches = even_batches(count, 16)
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
    assert np.asarray(Image.open(io.BytesIO(to_jpeg(image)))).mean() == 101


def test_a_face_gets_the_same_code_whatever_its_neighbours(settings: InvertSettings) -> None:
    faces = [face(number) for number in range(5)]
    together = Inverter(settings).rows(faces).latents
    alone = Inverter(replace(settings, batch_size=1)).rows(faces).latents
    for one, other in zip(together, alone, strict=True):
        assert (one["key"], one["best_step"]) == (other["key"], other["best_step"])
        np.testing.assert_allclose(one["w_plus"], other["w_plus"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(one["lpips_per_step"], other["lpips_per_step"], atol=1e-5)


def test_the_code_and_the_measures_are_of_the_best_step(settings: InvertSettings) -> None:
    (row,) = Inverter(replace(settings, keep_steps=True)).rows([face(0)]).latents
    best = row["best_step"] - 1
    assert row["lpips"] == min(row["lpips_per_step"]) == row["lpips_per_step"][best]
    assert row["l2"] == row["l2_per_step"][best]
    np.testing.assert_array_equal(row["w_plus"], row["w_plus_per_step"][best])
    assert len(row["residual_norm_per_step"]) == row["steps"] == 3
    assert row["id_similarity"] is None
    assert row["id_similarity_per_step"] == [None] * 3


def test_pictures_are_kept_on_request(settings: InvertSettings) -> None:
    wanted = replace(settings, keep_crops=True, keep_reconstructions=True)
    (row,) = Inverter(wanted).rows([face(0)]).latents
    for name in ("aligned_jpeg", "reconstruction_jpeg"):
        assert Image.open(io.BytesIO(row[name])).size == (64, 64)


def test_the_kept_reconstruction_is_of_the_code_in_the_row(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, keep_reconstructions=True))
    measure, best = inverter.meter.measure, np.array([1, 3, 2], np.int32)
    inverter.meter.measure = lambda *a, **k: replace(measure(*a, **k), best_step=best)  # type: ignore[method-assign]
    rows = inverter.rows([face(number) for number in range(3)]).latents
    assert [row["best_step"] for row in rows] == [1, 3, 2]
    for row in rows:
        frame = inverter.model.generator(torch.from_numpy(row["w_plus"])[None])[0]
        kept = np.asarray(Image.open(io.BytesIO(row["reconstruction_jpeg"])), np.float32)
        wanted = np.asarray(Image.open(io.BytesIO(to_jpeg(frame.detach()))), np.float32)
        assert np.abs(kept - wanted).mean() < 0.5


def test_faces_whose_identity_is_not_found_are_counted(sample_images: dict[str, bytes]) -> None:
    picture = Image.open(io.BytesIO(sample_images["portraits/0001.jpg"])).convert("RGB")
    person = face(0) | {"pixels": picture.resize((64, 64), Image.Resampling.BOX).tobytes()}
    method = Method(steps=1)
    stage = InvertStage(InvertSettings("demo", method), Columns(n_styles=10))
    row = stage(part([person, face(1), face(2)]))
    similarities = unpack(row["payload"])["id_similarity"].to_pylist()
    assert [value is None for value in similarities] == [False, True, True]
    assert (row["faces"], row["rejects"], row["identity_missed"]) == (3, 0, 2)


def test_no_identity_is_missed_where_none_is_measured(settings: InvertSettings) -> None:
    row = InvertStage(settings, Columns(n_styles=10))(part([face(0)]))
    assert (row["faces"], row["identity_missed"]) == (1, 0)


def test_a_code_that_is_not_finite_is_a_reject(
    settings: InvertSettings, broken_bundle: str
) -> None:
    stage = InvertStage(replace(settings, model=broken_bundle), Columns(n_styles=10))
    row = stage(part([face(0), face(1)]))
    assert (row["kind"], row["faces"], row["rejects"]) == ("part", 0, 2)
    rejects = unpack(row["rejected"]).to_pylist()
    assert [(r["key"], r["face_index"], r["reason"]) for r in rejects] == [
        ("0", 0, "not_finite"),
        ("1", 0, "not_finite"),
    ]
    assert json.loads(row["reasons"]) == {"not_finite": 2}


@pytest.mark.parametrize("keep_steps", [False, True])
def test_a_step_that_goes_astray_costs_no_face_whose_best_step_is_kept(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch, keep_steps: bool
) -> None:
    inverter = Inverter(replace(settings, keep_steps=keep_steps))
    whole = inverter.rows([face(0), face(1)]).latents
    step = restyle.restyle_step

    def astray(*inputs: Any) -> tuple[Tensor, Tensor]:
        codes, seen = step(*inputs)
        if inputs[4] is not None:  # frames are asked for at the last step
            codes[0], seen[0] = float("inf"), float("nan")
        return codes, seen

    monkeypatch.setattr(restyle, "restyle_step", astray)
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


def test_a_code_beyond_float16_is_a_reject_and_not_a_failed_part(settings: InvertSettings) -> None:
    account = Inverter(replace(settings, largest_code=1e-6)).rows([face(0)])
    reasons = [reject["reason"] for reject in account.rejects]
    assert (account.latents, reasons) == ([], ["not_finite"])


def test_a_part_without_faces_stays_a_part(settings: InvertSettings) -> None:
    row = InvertStage(settings, Columns(n_styles=10))(part([]))
    assert (row["kind"], row["faces"], unpack(row["payload"]).num_rows) == ("part", 0, 0)


def test_a_failure_while_inverting_costs_its_part(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = InvertStage(settings, Columns(n_styles=10))

    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no memory for 3 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(stage.inverter.meter, "measure", out_of_memory)
        failed = stage(part([face(0)]))
    assert failed["kind"] == "failed"
    assert "invert: OutOfMemoryError: no memory for 3 GiB" in failed["error"]
    assert stage(part([face(0)]))["faces"] == 1, "the actor goes on"


def test_the_cpu_is_used_where_the_cpu_is_asked_for(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Inverter(replace(settings, device="cpu")).device == "cpu"


def test_a_gpu_that_is_asked_for_and_not_there_is_no_reason_to_use_the_cpu(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"--device cuda: PyTorch .* finds no GPU here"):
        Inverter(replace(settings, device="cuda"))
    assert Inverter(replace(settings, device="auto")).device == "cpu"


def test_a_gpu_is_waited_for_before_the_clock_is_read(
    settings: InvertSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    inverter, calls = Inverter(settings), list[str]()
    read = time.perf_counter
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(time, "perf_counter", lambda: calls.append("read") or read())
    inverter.device = "cpu"
    inverter._clock()
    assert calls == ["read"], "a machine without a GPU has nothing to wait for"
    inverter.device = "cuda"
    inverter._clock()
    assert calls == ["read", "wait", "read"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_work_is_left_on_a_gpu_whose_clock_was_read(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, device="cuda"))
    square = torch.ones(8192, 8192, device="cuda")
    for _ in range(50):
        square = square @ square
    inverter._clock()
    assert torch.cuda.current_stream().query()


def start_of(*numbers: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {f"s/{n}#0": rng.standard_normal((10, 512)).astype(np.float32) for n in numbers}


def test_faces_start_from_the_codes_of_their_own_ids(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, starts="all", method=Method(steps=1)))
    starts = start_of(2, 0)
    rows = inverter.rows([face(0), face(2)], "s", starts).latents
    assert [row["refined_from"] for row in rows] == ["s/0#0", "s/2#0"]
    for row in rows:
        moved = row["w_plus"] - starts[row["refined_from"]]
        wanted = float(np.sqrt(np.square(moved).mean()))
        assert row["residual_norm_per_step"] == [pytest.approx(wanted, rel=1e-4)]
        assert row["generator_passes"] == 2  # the start's image, and the step's


def test_a_face_without_a_code_to_start_from_is_a_reject(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, starts="all"))
    account = inverter.rows([face(0), face(1)], "s", start_of(1))
    assert [row["key"] for row in account.latents] == ["1"]
    assert [(r["key"], r["face_index"], r["reason"]) for r in account.rejects] == [
        ("0", 0, "no_start")
    ]


def test_of_an_image_of_chosen_faces_the_others_are_left_out(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, starts="chosen"))
    other = face(0) | {"face_index": 1}
    account = inverter.rows([face(0), other], "s", start_of(0))
    assert [(row["key"], row["face_index"]) for row in account.latents] == [("0", 0)]
    assert account.rejects == []


def test_a_chosen_face_that_is_not_found_again_is_a_reject(settings: InvertSettings) -> None:
    inverter = Inverter(replace(settings, starts="chosen"))
    gone = {"s/0#1": np.zeros((10, 512), np.float32)}
    account = inverter.rows([face(0)], "s", gone)
    assert account.latents == []
    assert [(r["key"], r["face_index"], r["reason"]) for r in account.rejects] == [
        ("0", 1, "no_start")
    ]


@pytest.mark.parametrize(("starts", "codes", "left"), [("all", 2, [1]), ("chosen", 1, [])])
def test_a_face_that_the_aligner_rejected_is_a_reject_once_and_only_where_it_is_wanted(
    settings: InvertSettings, starts: Any, codes: int, left: list[int]
) -> None:
    names = [f"s/0#{index}" for index in range(codes)]
    columns = {"image_id": names, "w_plus": np.zeros((codes, 10, 512), np.float32).tolist()}
    small = Rejection(RejectReason.FACE_TOO_SMALL, "the face is 20 pixels wide")
    row = part([face(0)])
    row["rejected"] = pack(pa.Table.from_pylist([reject_row("0", "", "", small, 1)], REJECTS))
    row["start"] = pack(pa.table(columns, schema=starts_schema(10)))
    done = InvertStage(replace(settings, starts=starts), Columns(n_styles=10))(row)
    rejects = unpack(done["rejected"]).to_pylist()
    assert [r["face_index"] for r in rejects] == left
    assert [r["reason"] for r in rejects] == ["face_too_small"] * len(left)
    assert (done["faces"], done["rejects"]) == (1, len(left))


def test_codes_to_start_from_travel_with_their_part(settings: InvertSettings) -> None:
    stage = InvertStage(replace(settings, starts="all"), Columns(n_styles=10))
    starts = start_of(0)
    columns = {"image_id": list(starts), "w_plus": [code.tolist() for code in starts.values()]}
    row = part([face(0)])
    row["start"] = pack(pa.table(columns, schema=starts_schema(10)))
    done = stage(row)
    assert (done["faces"], done["start"]) == (1, b"")
    assert done["inversion_seconds"] > 0
    assert unpack(done["payload"])["refined_from"].to_pylist() == ["s/0#0"]


def test_lists_are_as_long_as_the_steps_that_a_face_made(settings: InvertSettings) -> None:
    rule = StopRule(gain=0.01, residual=10.0, least=1, most=6)
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
    longest = Method(stop=StopRule(gain=-4.0, most=6))
    faces = [face(number) for number in range(6)]
    plain = Inverter(replace(settings, method=longest)).rows(faces).latents
    falls = np.array([-np.diff(row["l2_per_step"]) for row in plain])
    rule = StopRule(gain=float(np.median(falls)), residual=1e6, least=2, most=40)
    rows = Inverter(replace(settings, method=Method(stop=rule))).rows(faces).latents
    assert len({row["steps"] for row in rows}) > 1
    return rule, rows


@pytest.mark.parametrize("most", [2, 3, 4])
def test_of_faces_that_stop_alone_those_that_met_the_most_steps_did_not_converge(
    settings: InvertSettings, in_full: tuple[StopRule, list[dict[str, Any]]], most: int
) -> None:
    rule, unbounded = in_full
    method = Method(stop=replace(rule, most=most))
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


def test_a_bootstrapped_inversion_goes_on_from_another_models(
    settings: InvertSettings, tiny_bundle: str, other_bundle: str
) -> None:
    method = Method(steps=2, bootstrap_steps=1)
    wanted = replace(settings, model=other_bundle, first=tiny_bundle, method=method)
    (row,) = Inverter(replace(wanted, keep_steps=True)).rows([face(0)]).latents
    images = to_tensor([face(0)["pixels"]], (64, 64))
    _, second = bootstrap(load_model(tiny_bundle), load_model(other_bundle), images, steps=(1, 2))
    np.testing.assert_array_equal(row["w_plus_per_step"], second.w_plus[0].numpy())
    assert (row["steps"], row["generator_passes"], row["refined_from"]) == (2, 3, None)


def test_a_table_of_the_first_models_codes_starts_the_same_bootstrapping(
    settings: InvertSettings, tiny_bundle: str, other_bundle: str
) -> None:
    (begun,) = Inverter(replace(settings, method=Method(steps=1))).rows([face(0)], "s").latents
    going_on = replace(settings, model=other_bundle, first=tiny_bundle, keep_steps=True)
    from_table = Inverter(replace(going_on, method=Method(steps=2), starts="all"))
    (row,) = from_table.rows([face(0)], "s", {"s/0#0": begun["w_plus"]}).latents
    in_one_job = Inverter(replace(going_on, method=Method(steps=2, bootstrap_steps=1)))
    (same,) = in_one_job.rows([face(0)], "s").latents
    np.testing.assert_allclose(row["w_plus_per_step"], same["w_plus_per_step"], atol=1e-5)
    assert row["refined_from"] == "s/0#0"
