"""Faces are looked for in real child processes; they are told to on the CPU here."""

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
from pipeline.metrics.face_child import Order, cut_face
from pipeline.metrics.face_cutter import FaceCutter, landmark_file, views
from pipeline.metrics.face_pool import FacePool, face_processes
from tests.child_processes import is_running, wait_until

ROOT = Path(__file__).parents[2]
CHIP = (150, 0.25)


def order(side: int = 64, landmarks: str | None = None) -> Order:
    (view,) = views(torch.zeros(1, 3, side, side))
    return (landmarks or landmark_file(5), CHIP, *view)


@pytest.mark.parametrize("side", [64, 256, 300])
@pytest.mark.parametrize("points_and_chip", [(5, CHIP), (68, None)])
def test_children_cut_exactly_what_this_process_cuts(people, side, points_and_chip):
    images = F.interpolate(torch.cat([people, torch.zeros_like(people[:1])]), side, mode="area")
    here = FaceCutter(*points_and_chip).begin(images)()
    there = FaceCutter(*points_and_chip, processes=2).begin(images)()
    assert [cut is None for cut in here] == [cut is None for cut in there]
    assert here[3] is None
    for left, right in zip(here, there, strict=True):
        if left is not None:
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)


def test_descriptors_are_the_same_with_children_and_without(people):
    assert torch.equal(DlibIdentity(processes=2).embed(people), DlibIdentity().embed(people))
    torch.manual_seed(0)
    network = CurricularFace().eval().requires_grad_(False)
    identities = (CurricularFaceIdentity(network, "random", processes) for processes in (0, 1))
    alone, beside = (identity.embed(people[:1]) for identity in identities)
    assert torch.equal(alone, beside)


def test_several_batches_may_be_under_way(people):
    cutter = FaceCutter(5, CHIP, processes=1)
    begun = [cutter.begin(images) for images in (people, people.flip(0))]
    second, first = begun[1](), begun[0]()
    np.testing.assert_array_equal(np.stack(first), np.stack(second[::-1]))


def test_a_child_has_one_thread_and_no_torch():
    pool = FacePool(1)
    pool.submit(order()).result()
    (pid,) = pool.pids
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    libraries = Path(f"/proc/{pid}/maps").read_text()
    assert "dlib" in libraries
    assert "torch" not in libraries


def test_no_child_is_started_before_there_is_an_image():
    assert DlibIdentity(processes=2).cutter.pool.pids == []


def test_a_child_that_was_killed_between_images_is_replaced():
    pool = FacePool(1)
    pool.submit(order()).result()
    before = pool.pids
    os.kill(before[0], signal.SIGKILL)
    assert pool.submit(order()).result() is None
    assert pool.pids != before


def test_an_image_whose_child_is_killed_is_tried_once_more(people):
    pool = FacePool(1)
    pool.submit(order()).result()
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    (view,) = views(people[:1])
    face = (landmark_file(5), CHIP, *view)
    answer = pool.submit(face)
    time.sleep(0.2)
    assert not answer.done()
    os.kill(pid, signal.SIGKILL)
    np.testing.assert_array_equal(answer.result(), cut_face(face))


def test_an_image_whose_child_dies_twice_is_an_error_and_the_next_is_not(people):
    pool = FacePool(2)
    (view,) = views(people[:1])
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
        (b"", 2000, 300, "lived on, 2 times"),  # more than a socket holds of what is not taken
    ],
)
def test_a_child_that_hangs_is_an_error_and_the_next_image_is_not(
    monkeypatch, tmp_path, answer, side, seconds, says
):
    pool, script, started = FacePool(1), tmp_path / "hangs.py", []
    script.write_text(HANGS.format(answer=answer))

    def impatient(arguments, _):
        """A child whose messages may not stand still for 2 s, however long one is awaited."""
        started.append(Child(arguments, patience_s=2))
        return started[-1]

    with monkeypatch.context() as patched:
        patched.setattr(face_child, "__file__", str(script))
        patched.setattr(face_pool, "_ANSWER_TIMEOUT_S", seconds)
        patched.setattr(face_pool, "Child", impatient)
        patched.setattr(child_process, "_END_TIMEOUT_S", 0.5)
        with pytest.raises(PipelineError, match=says):
            pool.submit(order(side)).result()
    assert started
    assert not any(is_running(child.pid) for child in started)
    assert pool.pids == []
    assert pool.submit(order()).result() is None


def test_children_end_with_their_pool():
    pool = FacePool(2)
    for answer in [pool.submit(order()) for _ in range(4)]:
        answer.result()
    pids = pool.pids
    assert len(pids) == 2
    del pool, answer
    gc.collect()
    assert wait_until(lambda: not any(map(is_running, pids)))


PARENT = """
import sys
from pipeline.metrics.face_pool import FacePool
from tests.metrics.test_face_pool import order
pool = FacePool(2)
for answer in [pool.submit(order()) for _ in range(4)]:
    answer.result()
large = order(2000)
busy = [pool.submit(large) for _ in range(int(sys.argv[1]))]
print(*pool.pids, flush=True)
{end}
"""


@pytest.mark.parametrize("orders", ["0", "400"])
def test_kill_9_of_the_parent_leaves_no_orphan(orders):
    script = PARENT.format(end="sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", script, orders],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_running, pids))
        parent.kill()
        assert parent.stderr.read() == b"", "a child says nothing of it either"
    assert wait_until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)"])
def test_a_parent_that_ends_leaves_no_orphan_and_says_nothing(end):
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
def test_a_gpu_has_a_child_for_each_cpu_but_one(monkeypatch, cpus, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)))
    assert face_processes("cuda") == face_processes("cuda:1") == expected
    assert face_processes("cpu") == 0
