import os
import subprocess
import sys

import torch
from torch import nn

from pipeline.training.distributed import Group, join_group

WORKER = """
import torch
from torch import nn
from pipeline.training.distributed import join_group, leave_group
group = join_group()
model = nn.Linear(3, 1)
for number, parameter in enumerate(model.parameters()):
    parameter.grad = torch.full_like(parameter, 2.0 * group.rank + number)
group.average_gradients(model)
assert all((p.grad == 1.0 + n).all() for n, p in enumerate(model.parameters()))
assert group.all_reduce_any(group.rank == 1, model)
assert not group.all_reduce_any(False, model)
assert group.share(torch.arange(6)).tolist() == list(range(group.rank, 6, 2))
leave_group()
"""


def test_single_process_forms_a_group_of_one():
    assert join_group() == Group(rank=0, size=1)
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    Group().average_gradients(model)
    assert torch.equal(model.weight.grad, before)
    assert Group().all_reduce_any(True, model)
    assert not Group().all_reduce_any(False, model)


def test_two_processes_average_their_gradients(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-2000:]
