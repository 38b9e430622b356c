"""Data-parallel training: each process takes a share of the batch, gradients are averaged.

The processes are started by torchrun (`torchrun --nproc-per-node 2 jobs/build_demo_model.py ...`)
or by Ray Train, which initializes the process group itself. When other programs use the same cores,
one single-threaded process per core is faster than one process with many threads: threads
synchronize in every operation, processes once per batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """Rank of this process among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def is_main_process(self) -> bool:
        """True in the process that validates, logs and writes checkpoints."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """Return this process's part of a batch of indices."""
        return index[self.rank :: self.size]

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Copy the main process's weights and buffers to every process."""
        if self.size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, src=0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its mean over the processes, with one all-reduce."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, mean in zip(
            gradients, flat.split([g.numel() for g in gradients]), strict=True
        ):
            gradient.copy_(mean.view_as(gradient))

    def all_reduce_any(self, value: bool, model: nn.Module) -> bool:
        """Return, in every process, whether `value` is true in any of them.

        `model` gives the device of the exchange: NCCL needs tensors on a GPU.
        """
        if self.size == 1:
            return value
        device = next(model.parameters()).device
        flag = torch.tensor(float(value), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)


def join_group() -> Group:
    """Return the initialized group, or torchrun's from the environment, or a group of one."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group()
        dist.init_process_group("gloo")
    return Group(dist.get_rank(), dist.get_world_size())


def leave_group() -> None:
    """Wait for the other processes and leave; exiting without this can abort the others."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
