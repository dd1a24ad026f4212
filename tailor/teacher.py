"""Teacher: a finished network whose outputs a student learns from.

It runs in evaluation mode and without gradient. Where the images of a split are always seen the
same way, its outputs can be remembered instead of computed in every epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tailor.errors import BadInput


class Taught(NamedTuple):
    """What a teacher says about a batch: (B, K) logits and the output of every block."""

    logits: Tensor
    block_outputs: tuple[Tensor, ...]


class Teacher:
    """A frozen network with a head, and the blocks to listen to.

    Args:
        network: (B, C, H, W) images to (B, K) logits; put into evaluation mode.
        blocks: names of its blocks, as in ``Backbone.blocks``.

    Raises:
        BadInput: it has no such block.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[str]) -> None:
        self.network = network.eval().requires_grad_(False)
        self._heard: dict[str, Tensor] = {}
        self._blocks = tuple(blocks)
        self._memory: list[Tensor] = []
        self._known = torch.zeros(0, dtype=torch.bool)
        modules = dict(network.named_modules())
        for name in blocks:
            if name not in modules:
                raise BadInput(
                    f"the teacher has no block {name!r}, so it is another architecture than the "
                    f"student's backbone; give the --teacher RUN of the same --backbone"
                )
            modules[name].register_forward_hook(self._listen(name))

    def _listen(self, name: str):  # type: ignore[no-untyped-def]
        def hook(_: nn.Module, __: object, result: Tensor) -> None:
            self._heard[name] = result

        return hook

    def to(self, device: torch.device) -> Teacher:
        """Move the network; a no-op where it already is."""
        self.network.to(device)
        return self

    def remember(self, images: int) -> None:
        """From now on keep what was said about each of ``images`` training images."""
        self._memory, self._known = [], torch.zeros(images, dtype=torch.bool)

    def bytes_per_image(self, input_size: tuple[int, int, int]) -> int:
        """What remembering one image takes."""
        some = next(self.network.parameters())
        said = self._say(torch.zeros(1, *input_size, device=some.device, dtype=some.dtype))
        return sum(t.nbytes for t in (said.logits, *said.block_outputs))

    def __call__(self, images: Tensor, indices: Tensor | None = None) -> Taught:
        """Logits and block outputs for (B, C, H, W) images.

        Args:
            images: as the network expects them.
            indices: (B,) places of the images in the split that is remembered.
        """
        if indices is None or not len(self._known):
            return self._say(images)
        if bool(self._known[indices].all()):
            logits, *outputs = (m[indices.to(m.device)] for m in self._memory)
            return Taught(logits, tuple(outputs))
        said = self._say(images)
        tensors = [said.logits, *said.block_outputs]
        if not self._memory:
            self._memory = [t.new_empty(len(self._known), *t.shape[1:]) for t in tensors]
        for kept, tensor in zip(self._memory, tensors, strict=True):
            kept[indices.to(kept.device)] = tensor
        self._known[indices] = True
        return said

    @torch.no_grad()
    def _say(self, images: Tensor) -> Taught:
        self._heard.clear()
        logits: Tensor = self.network(images)
        said = Taught(logits, tuple(self._heard[name] for name in self._blocks))
        self._heard.clear()
        return said
