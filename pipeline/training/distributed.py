"""Several processes on one batch: each takes its share, gradients are averaged.

Started by torchrun (`torchrun --nproc-per-node 2 jobs/build_demo_model.py ...`) or by Ray Train,
which joins its workers itself; a single process needs nothing. One process a core with one thread
each beats one process with many threads where other programs share the cores: threads meet at every
operation, processes once a batch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Group:
    """This process's place among `size` processes."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, logs and writes checkpoints."""
        return self.rank == 0

    def share(self, index: Tensor) -> Tensor:
        """This process's part of a batch of indices."""
        return index[self.rank :: self.size]

    @torch.no_grad()
    def share_weights(self, model: nn.Module) -> None:
        """Give every process the weights and buffers of the first."""
        if self.size == 1:
            return
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor, src=0)

    def average_gradients(self, model: nn.Module) -> None:
        """Replace each gradient by its mean over the processes, in one exchange."""
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

    def anywhere(self, found: bool, model: nn.Module) -> bool:
        """Whether `found` holds in any process, the same answer for all.

        `model` is where they compute: NCCL exchanges what lies on a GPU.
        """
        if self.size == 1:
            return found
        device = next(model.parameters()).device
        flag = torch.tensor(float(found), device=device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)


def join_group() -> Group:
    """The group already joined, or the one in torchrun's environment, or a group of one."""
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return Group()
        dist.init_process_group("gloo")
    return Group(dist.get_rank(), dist.get_world_size())


def leave_group() -> None:
    """Wait for the other processes and part: one that just exits can abort its neighbours."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
