"""The task-specific parts that two or more methods share.

``NamedTensors`` and ``NamedModules`` hold tensors and modules under the dotted names of the layers
that they stand in for; ``task_norms`` and ``own_norms`` copy the norms of a backbone; ``new_head``
is the task's own head; ``with_head`` turns a body and a head into the plain network that
``merge`` returns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from tailor.backbone import Backbone, norm_tensors
from tailor.pixel_head import pixel_head
from tailor.taskonomy_decoder import taskonomy_head


class NamedTensors(nn.Module):
    """Parameters and buffers under dotted names, as a map.

    ``nn.ParameterDict`` refuses dots, so "/" stands for "." inside; a layer's name never holds a
    "/".

    Args:
        params: trained tensors by name; cloned.
        buffers: tensors that move without gradient (running statistics); cloned.
    """

    def __init__(self, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor] | None = None):
        super().__init__()
        for name, tensor in params.items():
            self.register_parameter(_inside(name), nn.Parameter(tensor.detach().clone()))
        for name, tensor in (buffers or {}).items():
            self.register_buffer(_inside(name), tensor.detach().clone())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, _inside(name))
        return tensor

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (
            _inside(name) in self._parameters or _inside(name) in self._buffers
        )

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor), parameters first."""
        for inside, tensor in [*self._parameters.items(), *self._buffers.items()]:
            if tensor is not None:
                yield inside.replace("/", "."), tensor


class NamedModules(nn.Module):
    """Modules under dotted names, as a map.

    Args:
        modules: by name; taken as they are.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(_inside(name), module)

    def __getitem__(self, name: str) -> nn.Module:
        module: nn.Module = getattr(self, _inside(name))
        return module

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _inside(name) in self._modules

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """(dotted name, module)."""
        for inside, module in self.named_children():
            yield inside.replace("/", "."), module


def _inside(name: str) -> str:
    return name.replace(".", "/")


def task_norms(model: nn.Module) -> NamedTensors:
    """This task's own normalisation: affine parameters and running statistics, as in ``model``.

    Source: TAPS trains affine and statistics of every layer whatever its gate (taps_net.py);
    Bilen & Vedaldi, Universal representations, 2017, for domain-specific norms.
    """
    params, buffers = norm_tensors(model)
    own_params, own_buffers = dict(model.named_parameters()), dict(model.named_buffers())
    return NamedTensors({n: own_params[n] for n in params}, {n: own_buffers[n] for n in buffers})


def own_norms(model: nn.Module) -> NamedModules:
    """The same as modules, to be grafted into a copy of the network; see ``task_norms``."""
    params, buffers = norm_tensors(model)
    owners = dict.fromkeys(name.rpartition(".")[0] for name in [*params, *buffers])
    return NamedModules(
        {n: copy.deepcopy(model.get_submodule(n)).requires_grad_(True) for n in owners}
    )


@torch.no_grad()
def copy_into(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the parameters and buffers of ``model`` that have these dotted names."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in tensors.items():
        places[name].copy_(tensor)


def new_head(backbone: Backbone, outputs: int, seed: int) -> nn.Module:
    """The task's own head on what ``backbone`` returns.

    Pooled features (B, D) have a linear classifier to (B, K), maps (B, C, h, w) a light decoder to
    (B, K, H, W). With the decoder of Taskonomy, maps have that one, for images and for pixels.

    Args:
        backbone: whose output it takes, and which knows what is predicted.
        outputs: K.
        seed: of its initialisation, which depends on nothing else.

    Returns:
        A module whose ``out_features`` is K.

    Raises:
        BadInput: a decoder that does not fit the map.
    """
    target, shape = backbone.target, backbone.feature_shape
    if backbone.decoder == "taskonomy":
        head = taskonomy_head(shape, outputs, seed, dense=target.dense, bounded=target.numeric)
        head.out_features = outputs  # type: ignore[assignment]
        return head
    if backbone.dense:
        return pixel_head(shape, outputs, backbone.input_size[1:], seed)
    return linear_head(backbone.num_features, outputs, seed)


def linear_head(num_features: int, num_classes: int, seed: int) -> nn.Linear:
    """A linear classifier (D -> K), its initialisation a function of ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(num_features, num_classes)


def with_head(body: nn.Module, head: nn.Module) -> nn.Module:
    """The plain network: ``body`` with ``head`` where the architecture has its classifier.

    For timm models that is a plain timm model; ``nn.Sequential`` where the classifier or ``head``
    is no linear layer on the pooled features.
    """
    if not isinstance(head, nn.Linear):
        return nn.Sequential(body, head)
    reset = cast("Callable[[int], None] | None", getattr(body, "reset_classifier", None))
    if reset is None:
        return nn.Sequential(body, head)
    reset(head.out_features)
    classifier = cast("Callable[[], nn.Module]", body.get_classifier)()
    if not isinstance(classifier, nn.Linear) or classifier.weight.shape != head.weight.shape:
        reset(0)
        return nn.Sequential(body, head)
    classifier.to(head.weight.device, head.weight.dtype)
    with torch.no_grad():
        classifier.weight.copy_(head.weight)
        if classifier.bias is not None and head.bias is not None:
            classifier.bias.copy_(head.bias)
    return body
