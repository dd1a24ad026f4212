"""Progressive networks: every task adds a column that reads the frozen base and all columns before.

    y = head( norm( fuse( base(x), column_1(x) ... column_t(x) ) ) )

A column has the four layers of side-tuning's side network, small where the paper's columns are all
of one size; each layer also reads a map of the base and the layer before in every earlier column,
through adapters (``tailor/column.py``). ``fuse`` blends base and columns with learned shares;
``norm`` is side-tuning's, of eight groups. Earlier columns are frozen and read without gradient:
nothing is forgotten, and the cost grows with the square of the number of tasks.

Sources: Rusu et al., Progressive neural networks, 2016, https://arxiv.org/abs/1606.04671; layout
and sizes, Zhang et al., Side-tuning, ECCV 2020 (its fourth version of this baseline).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tailor.adapters import new_head
from tailor.backbone import Backbone, norm_tensors
from tailor.base_maps import read_base, taps_of
from tailor.column import Column, shaped
from tailor.errors import BadInput
from tailor.fusion import new_fusion
from tailor.side import Fcn4
from tailor.student import LayerState, Output, layer_states

PAPER = "Progressive neural networks, Rusu et al., 2016"
KIND = "student"
PLAIN = False  # merging gives networks side by side, not one of the backbone's type
GROUPS = 8  # of the norm before the head
SMALLEST = 15  # px that a column can see


@dataclass(frozen=True, kw_only=True)
class Config:
    """What progressive networks need beside the training settings."""

    published: bool = False
    """The published program's settings: a column reads the base but no earlier column, and only
    base and its own column are blended, so that nothing passes from task to task."""


class Progressive(nn.Module):
    """A frozen base, the frozen columns of earlier tasks, a column and a head.

    Args:
        backbone: the base, shared and never copied.
        num_classes: K of the head.
        config: whether earlier columns are read.
        earlier: the columns of all earlier tasks, in order; no part of this task.
        seed: of the start of column and head.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        earlier: Sequence[Column] = (),
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "progressive"
        self.taps = taps_of(backbone)
        self._earlier = () if config.published else tuple(earlier)  # in a tuple: not this task's
        self.task: Any = nn.Module()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            shape = backbone.feature_shape
            side = Fcn4(shape[0], backbone.input_size[0])
            channels = [tap.node.channels for tap in self.taps]
            self.task.column = Column(side, channels, len(self._earlier))
        joining = None if config.published else len(self._earlier)
        self.task.fusion = new_fusion("alpha", shape, earlier=joining, seed=seed)
        self.task.head = new_head(backbone, num_classes, seed)

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits."""
        model = self.universal.model
        features, maps = read_base(self.universal, model, self.taps, images)
        columns = [*self._earlier, self.task.column]
        return Output(_logits(features, maps, columns, self.task.fusion, self.task.head, images))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Progressive:
        """Earlier columns go where this student goes."""
        for column in self._earlier:
            column._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """The column as an adapter, its norms apart."""
        norms = set(norm_tensors(self.task.column)[0])
        named = list(self.task.column.named_parameters())
        return {
            "adapters": [p for n, p in named if n not in norms],
            "norms": [p for n, p in named if n in norms],
            "fusion": list(self.task.fusion.parameters()),
            "head": list(self.task.head.parameters()),
        }

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: ordinary weight decay."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """None: everything moves."""
        return []

    def price(self, epoch: float) -> None:
        """Nothing has a price."""

    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone is universal."""
        return layer_states(self.universal)

    def merge(self) -> nn.Module:
        """Base, columns and head as one module, images to logits, in evaluation mode."""
        return Merged(self).eval().requires_grad_(False)


def _logits(
    features: Tensor,
    maps: Sequence[Tensor],
    columns: Sequence[Column],
    fusion: nn.Module,
    head: nn.Module,
    images: Tensor,
) -> Tensor:
    """Run the columns, each on those before it; only the last has a gradient."""
    said: list[list[Tensor]] = []
    with torch.no_grad():
        for number, column in enumerate(columns[:-1]):
            said.append(column(images, maps, said[:number]))
        earlier = [shaped(outputs[-1], features) for outputs in said]
    own = shaped(columns[-1](images, maps, said)[-1], features)
    logits: Tensor = head(F.group_norm(fusion(features, own, earlier), GROUPS))
    return logits


class Merged(nn.Module):
    """The networks of a student side by side, copied: (B, C, H, W) images to logits."""

    def __init__(self, student: Progressive) -> None:
        super().__init__()
        self.base, self.taps = copy.deepcopy(student.universal.model), student.taps
        self.columns = nn.ModuleList(copy.deepcopy([*student._earlier, student.task.column]))
        self.fusion = copy.deepcopy(student.task.fusion)
        self.head = copy.deepcopy(student.task.head)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        features, maps = read_base(self.base, self.base, self.taps, images)
        columns = cast("list[Column]", list(self.columns))
        return _logits(features, maps, columns, self.fusion, self.head, images)


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> Progressive:
    """The first task's student: a column that reads the base.

    Raises:
        BadInput: images too small for a column, a base whose blocks return neither maps nor tokens,
            or features that do not fall into eight groups.
    """
    return sequel((), backbone, num_classes, config, seed=seed)


def sequel(
    before: Sequence[Progressive],
    backbone: Backbone,
    num_classes: int,
    config: Config | None = None,
    *,
    seed: int = 0,
) -> Progressive:
    """The next task's student: a column that reads the base and all columns before.

    Raises:
        BadInput: see ``build``.
    """
    _check(backbone)
    earlier = [student.task.column for student in before]
    return Progressive(backbone, num_classes, config or Config(), earlier, seed=seed)


def _check(backbone: Backbone) -> None:
    shape, px = backbone.feature_shape, min(backbone.input_size[1:])
    if px < SMALLEST:
        raise BadInput(
            f"a column of progressive networks cannot see images of {px} px; give --px "
            f"{SMALLEST} or more"
        )
    if shape[0] % GROUPS or shape == (GROUPS,):
        raise BadInput(
            f"progressive networks put features into {GROUPS} groups, and backbone "
            f"{backbone.name!r} has {shape[0]}, which do not make groups of two or more; give "
            f"another --backbone"
        )
