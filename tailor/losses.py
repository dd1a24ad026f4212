"""Losses: what a training step minimises, term by term.

    total = task + price + distillation
    price = λ · Σ_l price_l · |score_l|      or      λ · E[complexity]

The price of a layer or path is what its gate switches on, relative to the backbone, so that λ means
the same on every architecture.

Sources: sparsity term, TAPS (Wallingford et al., CVPR 2022), which prices every layer at 1/L; its
published code divides by a fixed 52 (``paper`` here) whatever the network. Expected complexity and
distillation of block outputs, NetTailor (Morgado & Vasconcelos, CVPR 2019), Eq. 9 and 11.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tailor.backbone import Backbone, Layer
from tailor.student import Distilled, Output, Student
from tailor.target import Target, usual
from tailor.teacher import Taught

Pricing = Literal["params", "macs", "layers", "paper"]
Complexity = Literal["product", "paper", "code"]
Reduction = Literal["mean", "code", "paper"]


@dataclass(frozen=True)
class LossTerms:
    """The terms of one step, scalars with gradient; None where a method has no such term."""

    task: Tensor
    price: Tensor | None = None
    distillation: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The sum that is differentiated."""
        terms = (self.task, self.price, self.distillation)
        return torch.stack([t for t in terms if t is not None]).sum()

    def scaled(self, share: float) -> LossTerms:
        """Every term times ``share``, without gradient."""
        terms = (self.task, self.price, self.distillation)
        task, price, distillation = (None if t is None else t.detach() * share for t in terms)
        assert task is not None
        return LossTerms(task, price, distillation)

    @classmethod
    def summed(cls, parts: Sequence[LossTerms]) -> LossTerms:
        """Term by term; what one part lacks all lack."""

        def total(terms: list[Tensor | None]) -> Tensor | None:
            there = [t for t in terms if t is not None]
            return torch.stack(there).sum() if there else None

        task = total([p.task for p in parts])
        assert task is not None
        return cls(task, total([p.price for p in parts]), total([p.distillation for p in parts]))


def step_loss(
    student: Student,
    output: Output,
    images: Tensor,
    labels: Tensor,
    *,
    epoch: float,
    label_smoothing: float = 0.0,
    indices: Tensor | None = None,
    target: Target | None = None,
) -> LossTerms:
    """Every term of one step.

    Args:
        student: what is trained.
        output: its outputs for ``images``.
        images: (B, C, H, W).
        labels: as ``target`` says.
        epoch: moment in epochs, for prices that act later.
        label_smoothing: share of a label that is spread over all classes.
        indices: (B,) places in the training split, for a teacher that remembers.
        target: what labels are; by default what is usual for their shape.
    """
    task = task_loss(output.logits, labels, label_smoothing=label_smoothing, target=target)
    distillation = None
    if isinstance(student, Distilled):
        distillation = student.distillation(images, output, indices)
    return LossTerms(task, student.price(epoch), distillation)


def task_loss(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, target: Target | None = None
) -> Tensor:
    """The mean of the target's loss over all labels that are counted; a scalar.

    That is over images for one label per image, over entries for sets, values and pixels: what is
    -1 or NaN has no share in the sum nor in the count, so that a batch of small masks weighs as
    much as one of large ones (the published masked L1, a mean divided by the mean of the mask, is
    the same number). 0 where nothing is counted.

    Args:
        logits: (B, K), or (B, K, H, W) of a dense target.
        labels: as ``target`` says.
        label_smoothing: share of a label that is spread over all classes; values have none.
        target: what labels are; by default what is usual for their shape.
    """
    target = target or usual(labels)
    if target.kind == "class":  # torch's own mean, to the bit
        return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
    total, count = loss_sum(logits, labels, label_smoothing=label_smoothing, target=target)
    return total / count.clamp_min(1)


def loss_sum(
    logits: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, target: Target | None = None
) -> tuple[Tensor, Tensor]:
    """The sum of the target's loss over what is counted, and how much that is; two scalars.

    - one class, or soft labels p: - Σ_c p_c log q_c per image or pixel, q the softmax of logits;
    - sets: binary cross-entropy of every entry;
    - values: |y - t| or (y - t)² of every number.
    """
    target, logits = target or usual(labels), logits.float()
    there = counted(labels, target)
    if target.numeric:
        # A NaN must be gone before the difference: 0 times its gradient would be NaN.
        difference = logits - torch.where(there, labels, logits.detach()).float()
        each = difference.abs() if target.loss == "l1" else difference.square()
    elif target.kind == "set":
        wanted = labels.float() * (1 - label_smoothing) + label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none") * there
    else:
        wanted = labels.float() if target.kind == "soft" else labels.long()
        each = F.cross_entropy(
            logits, wanted, reduction="none", label_smoothing=label_smoothing, ignore_index=-1
        )
    return each.sum(), there.sum()


def counted(labels: Tensor, target: Target) -> Tensor:
    """True where a label has a share in the loss: of every image, entry, number or pixel."""
    if target.numeric:
        return ~labels.isnan()
    if target.kind == "soft":
        return torch.ones(len(labels), dtype=torch.bool, device=labels.device)
    return labels >= 0


def expected_complexity(
    gates: Tensor,
    costs: Tensor,
    sources: Tensor,
    targets: Tensor,
    form: Complexity = "product",
) -> Tensor:
    """E[C]: what the paths will cost once those with small gates are gone; a scalar.

    A path is gone if it is pruned, if nothing arrives where it starts, or if nothing leaves where
    it ends. With gate α read as the probability to stay, P_in = Π (1 - α) over the paths into its
    source (0 for the stem) and P_out = Π (1 - α) over those out of its target (0 for the last):

    - ``product``: Σ c · α · (1 - P_in) · (1 - P_out), the events taken as independent; never
      negative.
    - ``paper``: Σ c · (α - P_in - P_out), Eq. 9, a union bound that can fall below 0.
    - ``code``: the same with the published program's slips: P_in always of the block before, and 1
      instead of 0 for the first block's P_in and the last block's P_out.

    Args:
        gates: (P,) softmax gates.
        costs: (P,) cost of each path, relative to the backbone.
        sources, targets: (P,) node numbers; node 0 is the stem, the largest target the last block.
        form: which of the three.

    Source: NetTailor, Morgado & Vasconcelos, CVPR 2019, Eq. 5 to 9.
    """
    last = int(targets.max())
    off = 1 - gates
    # (L + 1, P): row n picks the paths into (out of) node n, elsewhere the neutral 1.
    nodes = torch.arange(last + 1, device=gates.device)[:, None]
    nothing_in = torch.where(targets == nodes, off, torch.ones_like(off)).prod(1)
    nothing_out = torch.where(sources == nodes, off, torch.ones_like(off)).prod(1)
    edge = 1.0 if form == "code" else 0.0
    starts = targets - 1 if form == "code" else sources
    p_in = torch.where(starts == 0, edge, nothing_in[starts])
    p_out = torch.where(targets == last, edge, nothing_out[targets])
    if form == "product":
        return (costs * gates * (1 - p_in) * (1 - p_out)).sum()
    return (costs * (gates - p_in - p_out)).sum()


def distillation(
    logits: Tensor,
    block_outputs: Sequence[Tensor | None],
    teacher: Taught,
    reduction: Reduction = "mean",
) -> Tensor:
    """Ω: how far logits and block outputs are from the teacher's; a scalar.

    Args:
        logits: (B, K) of the student.
        block_outputs: of the student, L tensors; None for a block that is gone.
        teacher: the same of the teacher.
        reduction: ``mean``, squared differences averaged over the elements of each output, then
            over the outputs; ``code``, averaged over elements, summed, divided by L, as the
            published program; ``paper``, squared norms summed over outputs, averaged over images.

    Source: NetTailor, Morgado & Vasconcelos, CVPR 2019, Eq. 11.
    """
    pairs = [(logits, teacher.logits)]
    pairs += [
        (mine, wanted)
        for mine, wanted in zip(block_outputs, teacher.block_outputs, strict=True)
        if mine is not None
    ]
    sums = [F.mse_loss(mine.float(), wanted.float()) for mine, wanted in pairs]
    if reduction == "paper":
        sums = [s * wanted[0].numel() for s, (_, wanted) in zip(sums, pairs, strict=True)]
        return torch.stack(sums).sum()
    total = torch.stack(sums).sum()
    return total / (len(block_outputs) if reduction == "code" else len(pairs))


def layer_prices(backbone: Backbone, pricing: Pricing) -> Tensor:
    """(L,) price of each layer of ``backbone``.

    Args:
        backbone: with L layers of n_l parameters and m_l MACs.
        pricing: ``params`` n_l / Σ n (over the backbone's parameters), ``macs`` m_l / Σ m (over its
        layers),
            ``layers`` 1 / L, ``paper`` 1 / 52.
    """
    layers: Sequence[Layer] = backbone.layers
    if pricing == "params":
        prices = [layer.params / backbone.num_params for layer in layers]
    elif pricing == "macs":
        total = sum(layer.macs for layer in layers)
        prices = [layer.macs / total for layer in layers]
    elif pricing == "layers":
        prices = [1 / len(layers)] * len(layers)
    else:
        prices = [1 / 52] * len(layers)
    return torch.tensor(prices)


def sparsity(scores: Tensor, prices: Tensor, lam: float) -> Tensor:
    """λ · Σ price_l · |score_l|, a scalar; scores and prices are (L,)."""
    return lam * (prices * scores.abs()).sum()
