"""A long run: the processes that share it under ``torchrun``, and its progress bar."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

Result = TypeVar("Result")


class Team:
    """The processes that share a run; a single one unless torchrun started several."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def first(self, work: Callable[[], Result]) -> Result:
        """Let rank 0 do it; all get its result, or its error."""
        if self.size == 1:
            return work()
        from torch import distributed

        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:  # raised again below, on every rank
                outcome[1] = error
        distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def total(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, in one message."""
        if self.size > 1:
            from torch import distributed

            joined = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(joined)
            for tensor, part in zip(
                tensors, joined.split([t.numel() for t in tensors]), strict=True
            ):
                tensor.copy_(part.view_as(tensor))

    def same(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        if self.size > 1:
            from torch import distributed

            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def everyones(self, value: Result) -> list[Result]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until all have come here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


def team() -> Team:
    """The processes of ``torchrun --nproc-per-node=2 ...``; of an ordinary call, itself.

    Uses the process group of the caller if there is one, else a gloo group of its own.

    >>> alone = team()
    >>> alone.rank, alone.size
    (0, 1)
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team()
    from torch import distributed

    # It stays until the process ends: a second group would find the addresses of the first.
    if not distributed.is_initialized():
        # An image may take minutes, and one rank may finish long before another.
        distributed.init_process_group("gloo", timeout=timedelta(days=30))
    return Team(distributed.get_rank(), distributed.get_world_size())


def keep_freed_memory() -> None:
    """Let this process keep the memory of large tensors that it frees, for the next ones.

    glibc gives blocks above some size back to the system at once, and every forward pass of a
    network for large images asks for them anew: on a CPU that can take as long as the arithmetic.
    Only the speed changes. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(parameter, 2**30)


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of glibc's malloc.h


def progress_bar(show: bool) -> Callable[..., Any]:
    """tqdm's bar, which vanishes when done; silent if not shown or if TQDM_DISABLE is set."""
    # tqdm reads the variable for its text bar, but not for the one it shows in a notebook.
    if show and not os.environ.get("TQDM_DISABLE"):
        return partial(tqdm, leave=False)
    return partial(tqdm, disable=True)
