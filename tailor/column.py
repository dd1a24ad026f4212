"""Column: the four-layer network that progressive networks add for a task.

    h_l = relu( norm( conv_l(h_{l-1}) + a_l(base_l) + Σ_k c_kl(h^k_{l-1}) ) )      l = 1 to 4

It is the four-layer side network with more to read: a_l are adapters from four maps of the base,
c_kl those from the layer before in each earlier column k (from the second layer on): a learned
scale, a convolution, a norm of two groups, ReLU, and a 1x1 convolution. With base maps of 16, 16,
32 and 64 channels and 64 features, a column has 25,904 + 11,524 numbers, and 30,947 more for each
earlier one.

Sources: Rusu et al., Progressive neural networks, 2016, https://arxiv.org/abs/1606.04671; sizes,
Zhang et al., Side-tuning, ECCV 2020. Left out: where base maps come from (``base_maps.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from tailor.fusion import Scale
from tailor.side import Fcn4


class Column(nn.Module):
    """The network of one task.

    Args:
        side: four layers.
        base: channels of the four maps of the base.
        earlier: how many columns it reads.
    """

    def __init__(self, side: Fcn4, base: Sequence[int], earlier: int) -> None:
        super().__init__()
        self.side = side
        convs = [cast(nn.Conv2d, layer[0]) for layer in self._layers()]
        self.adapters = nn.ModuleList(
            _adapter(nn.Conv2d(c, conv.out_channels, 1, bias=False))
            for c, conv in zip(base, convs, strict=True)
        )
        self.laterals = nn.ModuleList(
            nn.ModuleList(_adapter(_like(conv)) for conv in convs[1:]) for _ in range(earlier)
        )

    def _layers(self) -> list[nn.Sequential]:
        return [cast(nn.Sequential, getattr(self.side, name)) for name in self.side.stage_names]

    def forward(
        self, images: Tensor, maps: Sequence[Tensor], earlier: Sequence[Sequence[Tensor]]
    ) -> list[Tensor]:
        """The outputs of the four layers, maps.

        Args:
            images: (B, C, H, W).
            maps: four of the base.
            earlier: the four outputs of each earlier column.
        """
        x, outputs = images, []
        for at, (conv, *rest) in enumerate(self._layers()):
            y = conv(x)
            y = y + self.adapters[at](fitted(maps[at], y.shape[2:]))
            if at:
                for laterals, theirs in zip(self.laterals, earlier, strict=True):
                    y = y + cast(nn.ModuleList, laterals)[at - 1](theirs[at - 1])
            for module in rest:
                y = module(y)
            x = y
            outputs.append(x)
        return outputs


def shaped(output: Tensor, features: Tensor) -> Tensor:
    """A column's last output averaged to the shape of what the base returns, for fusing.

    Args:
        output: (B, D, h, w).
        features: (B, D), or a map (B, D, H, W) of any sides.
    """
    if features.ndim == 2:
        return output.mean((2, 3))
    return F.adaptive_avg_pool2d(output, (features.shape[2], features.shape[3]))


def _adapter(first: nn.Conv2d) -> nn.Sequential:
    channels = first.out_channels
    last = nn.Conv2d(channels, channels, 1, bias=False)
    return nn.Sequential(Scale(), first, nn.GroupNorm(2, channels), nn.ReLU(), last)


def _like(conv: nn.Conv2d) -> nn.Conv2d:
    """A new convolution of the same sizes."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        cast("tuple[int, int]", conv.kernel_size),
        cast("tuple[int, int]", conv.stride),
        cast("tuple[int, int]", conv.padding),
        bias=False,
    )


def fitted(x: Tensor, sides: Sequence[int]) -> Tensor:
    """(B, C, H, W) max-pooled, then cut at the right and the bottom; a smaller map is enlarged."""
    height, width = sides
    kernel = max(x.shape[2] // height, 1), max(x.shape[3] // width, 1)
    if kernel != (1, 1):
        x = F.max_pool2d(x, kernel)
    if x.shape[2] < height or x.shape[3] < width:
        return F.interpolate(x, (height, width))
    return x[:, :, :height, :width]
