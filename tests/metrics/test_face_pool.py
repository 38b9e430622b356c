"""Face crops in real child processes, used here on the CPU too."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import child_process
from pipeline.child_process import Child
from pipeline.errors import PipelineError
from pipeline.metrics import face_child, face_pool
from pipeline.metrics.arcface import CurricularFace
from pipeline.metrics.arcface_identity import CurricularFaceIdentity
from pipeline.metrics.dlib_identity import DlibIdentity
from pipeline.metrics.face_child import Request, crop_face
from pipeline.metrics.face_pool import (
    FaceCropper,
    FacePool,
    begin_views,
    face_processes,
    landmark_file,
)
from tests.child_processes import is_running, wait_until

ROOT = Path(__file__).parents[2]
CHIP = (150, 0.25)


def request(side: int = 64, landmarks: str | None = None) -> Request:
    (view,) = begin_views(torch.zeros(1, 3, side, side))()
    return (landmarks or landmark_file(5), CHIP, *view)


@pytest.mark.parametrize("side", [64, 256, 300])
@pytest.mark.parametrize("points_and_chip", [(5, CHIP), (68, None)])
def test_children_make_the_same_crops(people, side, points_and_chip):
    images = F.interpolate(torch.cat([people, torch.zeros_like(people[:1])]), side, mode="area")
    local = FaceCropper(*points_and_chip).begin(images)()
    remote = FaceCropper(*points_and_chip, processes=2).begin(images)()
    assert [crop is None for crop in local] == [crop is None for crop in remote]
    assert local[3] is None
    for left, right in zip(local, remote, strict=True):
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def test_children_give_the_same_descriptors(people):
    assert torch.equal(DlibIdentity(processes=2).embed(people), DlibIdentity().embed(people))
    torch.manual_seed(0)
    network = CurricularFace().eval().requires_grad_(False)
    identities = (CurricularFaceIdentity(network, "random", processes) for processes in (0, 1))
    local, remote = (identity.embed(people[:1]) for identity in identities)
    assert torch.equal(local, remote)


def test_batches_can_overlap(people):
    cropper = FaceCropper(5, CHIP, processes=1)
    pending = [cropper.begin(images) for images in (people, people.flip(0))]
    second, first = pending[1](), pending[0]()
    np.testing.assert_array_equal(np.stack(first), np.stack(second[::-1]))


def test_a_child_has_one_thread_and_no_torch():
    pool = FacePool(1)
    pool.submit(request()).result()
    (pid,) = pool.pids
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    libraries = Path(f"/proc/{pid}/maps").read_text()
    assert "dlib" in libraries
    assert "torch" not in libraries


def test_children_start_with_the_first_image():
    assert DlibIdentity(processes=2).cropper.pool.pids == []


def test_a_child_killed_between_images_is_replaced():
    pool = FacePool(1)
    pool.submit(request()).result()
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert pool.submit(request()).result() is None
    assert pool.pids != before


def test_an_image_of_a_killed_child_is_retried(people):
    pool = FacePool(1)
    pool.submit(request()).result()
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    (view,) = begin_views(people[:1])()
    face = (landmark_file(5), CHIP, *view)
    answer = pool.submit(face)
    time.sleep(0.2)
    assert not answer.done()
    os.kill(pid, signal.SIGKILL)
    np.testing.assert_array_equal(answer.result(), crop_face(face))


def test_two_deaths_of_a_child_are_an_error(people):
    pool = FacePool(2)
    (view,) = begin_views(people[:1])()
    with pytest.raises(PipelineError, match="looks for faces ended with exit code 1, 2 times"):
        pool.submit(("/nowhere.dat", CHIP, *view)).result()
    assert pool.submit((landmark_file(5), CHIP, *view)).result() is not None


HANGS = """
import os, sys, time
os.write(int(sys.argv[1]), {answer})
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("answer", "side", "seconds", "says"),
    [
        (b"", 64, 2, "took over 2 s"),
        (b"\0\0\1\0half", 64, 300, "broke off its answer and lived on, 2 times"),
        (b"", 2000, 300, "lived on, 2 times"),  # more than the socket's buffer holds
    ],
)
def test_a_child_that_hangs_is_an_error(monkeypatch, tmp_path, answer, side, seconds, says):
    pool, script, started = FacePool(1), tmp_path / "hangs.py", []
    script.write_text(HANGS.format(answer=answer))

    def impatient(arguments, _):
        """Start a child that fails if a message stalls for 2 s."""
        started.append(Child(arguments, patience_s=2))
        return started[-1]

    with monkeypatch.context() as patched:
        patched.setattr(face_child, "__file__", str(script))
        patched.setattr(face_pool, "_ANSWER_TIMEOUT_S", seconds)
        patched.setattr(face_pool, "Child", impatient)
        patched.setattr(child_process, "_END_TIMEOUT_S", 0.5)
        with pytest.raises(PipelineError, match=says):
            pool.submit(request(side)).result()
    assert started
    assert not any(is_running(child.pid) for child in started)
    assert pool.pids == []
    assert pool.submit(request()).result() is None


def test_children_end_with_their_pool():
    pool = FacePool(2)
    for answer in [pool.submit(request()) for _ in range(4)]:
        answer.result()
    pids = pool.pids
    assert len(pids) == 2
    del pool, answer
    gc.collect()
    assert wait_until(lambda: not any(map(is_running, pids)))


PARENT = """
import sys
from pipeline.metrics.face_pool import FacePool
from tests.metrics.test_face_pool import request
pool = FacePool(2)
for answer in [pool.submit(request()) for _ in range(4)]:
    answer.result()
large = request(2000)
busy = [pool.submit(large) for _ in range(int(sys.argv[1]))]
print(*pool.pids, flush=True)
{end}
"""


@pytest.mark.parametrize("requests", ["0", "400"])
def test_a_killed_parent_leaves_no_orphan(requests):
    script = PARENT.format(end="sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", script, requests],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
        assert parent.stderr.read() == b"", "a child prints nothing either"
    assert wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_a_parent_that_ends_leaves_no_orphan(end):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PARENT.format(end=end), "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stderr == ""
    assert wait_until(lambda: not any(is_running(int(pid)) for pid in run.stdout.split()))


@pytest.mark.parametrize(("cpus", "expected"), [(1, 1), (2, 1), (8, 7), (96, 8)])
def test_a_gpu_gets_one_child_per_spare_cpu(monkeypatch, cpus, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert face_processes("cuda") == face_processes("cuda:1") == expected
    assert face_processes("cpu") == 0
