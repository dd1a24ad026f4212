"""Several processes on one batch: who am I, sums over all, and batch norm over the joined batch.

``torchrun`` starts the processes; DistributedDataParallel averages the gradients. With the batch
statistics of ``synced_batch_norm`` two processes compute what one computes on the joined batch.
torch.nn.SyncBatchNorm does the same for CUDA only, and by replacing modules, which a shared
trunk forbids.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from tailor.errors import BadInput


@dataclass(frozen=True)
class Group:
    """The processes that train together."""

    rank: int = 0
    world: int = 1

    @staticmethod
    def current() -> Group:
        """This process's place; alone where nothing was started."""
        if dist.is_available() and dist.is_initialized():
            return Group(dist.get_rank(), dist.get_world_size())
        return Group()

    def sum_(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by its sum over all processes."""
        if self.world > 1:
            dist.all_reduce(tensor)

    def broadcast_(self, tensor: Tensor) -> None:
        """Replace ``tensor`` by that of process 0."""
        if self.world > 1:
            dist.broadcast(tensor, 0)

    def agreed(self, value: bool) -> bool:
        """What process 0 found; of a file, another may see what process 0 has written since."""
        found = torch.tensor([float(value)])
        self.broadcast_(found)
        return bool(found)

    def wait(self) -> None:
        """Until all processes are here."""
        self.sum_(torch.zeros(1))  # dist.barrier() would guess a GPU and warn about it


@contextlib.contextmanager
def joined() -> Iterator[Group]:
    """Join the processes that ``torchrun`` started; alone without it.

    Raises:
        BadInput: they cannot meet, or another one ended early.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world <= 1 or dist.is_initialized():
        yield Group.current()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"  # gloo for what lies on the CPU, as with --device cpu
    if os.environ.get("MASTER_ADDR") in ("localhost", "127.0.0.1") and _loopback():
        # All processes are on this machine: nothing needs to listen on the network.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    try:
        dist.init_process_group(backend)
    except (ValueError, RuntimeError) as error:
        raise BadInput(
            f"WORLD_SIZE announces {world} processes, but they cannot meet "
            f"({str(error).splitlines()[0]}); start them with torchrun"
        ) from error
    try:
        yield Group.current()
    except RuntimeError as error:
        if "by peer" not in str(error):  # gloo's words for a connection closed or reset
            raise
        raise BadInput(
            f"another of the {world} processes ended; see what it says, mend that and repeat the "
            f"command"
        ) from error
    finally:
        dist.destroy_process_group()


def averaging(module: nn.Module) -> DistributedDataParallel:
    """``module``, its gradients averaged over all processes at every backward pass.

    Buffers are left alone: ``synced_batch_norm`` computes the same ones everywhere.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    # torch 2.15 renamed the option and warns about the old name
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(module, **options)


def _loopback() -> str:
    """Name of the loopback interface, empty where there is none."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "")


class _SumOverProcesses(torch.autograd.Function):
    """All-reduce; the gradient of a sum that everybody uses is the sum of everybody's gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class _JoinedStatistics(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm and _training(*args, **kwargs):
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _training(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> bool:
    return training


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """F.batch_norm in training mode, with mean and variance over all processes' images.

    Two passes (mean, then squared distance to it) because E[x^2] - E[x]^2 cancels.
    """
    axes = [0, *range(2, input.ndim)]
    shape = [1, -1] + [1] * (input.ndim - 2)
    x = input.to(torch.promote_types(input.dtype, torch.float32))  # bfloat16 sums poorly
    count = x.new_tensor([x.numel() / x.shape[1]])
    sums = _SumOverProcesses.apply(torch.cat([x.sum(axes), count]))
    mean, n = sums[:-1] / sums[-1], sums[-1].detach()
    centred = x - mean.view(shape)
    var = _SumOverProcesses.apply(centred.square().sum(axes)) / n
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * n / (n - 1)).to(running_var.dtype), momentum)
    result = centred * torch.rsqrt(var + eps).view(shape)
    if weight is not None:
        result = result * weight.view(shape)
    if bias is not None:
        result = result + bias.view(shape)
    output: Tensor = result.to(input.dtype)
    return output


@contextlib.contextmanager
def synced_batch_norm(group: Group) -> Iterator[None]:
    """Within, batch norm in training mode uses the statistics of the joined batch."""
    if group.world == 1:
        yield
        return
    with _JoinedStatistics():
        yield
