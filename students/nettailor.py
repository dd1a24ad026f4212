"""NetTailor: cheap proxy blocks compete with the universal blocks that they may replace.

    x_l = act( α_l · G_l(x_{l-1}) + Σ_j α_{l,j} · P_{l,j}(x_j) )      α: softmax over paths into l
    loss = task + λ · E[complexity] + γ · Ω       Ω: distance to a teacher's logits, block outputs

G_l is the frozen block without its final activation, P a proxy from one of the last ``max_skip``
block outputs. Gate logits start at +2 (universal) and -2 (proxies). λ (γ1 in the paper) pushes
expensive paths off; after pruning, what is off is gone. Norms behind the last block are the task's
own. A training step runs every universal block once.

Source: Morgado & Vasconcelos, NetTailor: Tuning the architecture, not just the weights, CVPR 2019.
Where the published program differs, the default is the paper's or the right one and an option
reproduces the program: see ``Config``.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tailor import losses
from tailor.adapters import NamedTensors, new_head, with_head
from tailor.backbone import Backbone, norm_tensors
from tailor.cost import total_macs
from tailor.errors import BadInput
from tailor.graft import AllButLast, Pass, grafted
from tailor.paths import STEM, Path, alive, all_paths, connection
from tailor.prefix import Cut, Prefix, longest_prefix
from tailor.proxy import Node, Pool, Proxy
from tailor.published import nettailor_hidden, nettailor_published_costs
from tailor.student import Gate, LayerState, Output, layer_states
from tailor.teacher import Teacher

PAPER = "NetTailor, Morgado & Vasconcelos, CVPR 2019"
KIND = "student"
FOLDS = (
    True  # merging folds batch norms and gates, so that outputs agree to rounding, not to the bit
)
UNIVERSAL_LOGIT, PROXY_LOGIT = 2.0, -2.0
DEAR = 1 / 6  # a 1x1 convolution above this share of its block calls for the bottleneck form


@dataclass(frozen=True, kw_only=True)
class Config:
    """What one NetTailor run needs beside the training settings."""

    lam: float = 0.3
    """λ: loss per unit of expected complexity, in backbones; γ1 of the paper."""
    distill: float = 10.0
    """Weight of the distance to the teacher, γ2 of the paper; 0 learns without one."""
    max_skip: int = 3
    """Proxies come from at most this many block outputs back."""
    price: Literal["macs", "params", "both"] = "macs"
    """Complexity in MACs, in parameters, or the mean of the two, relative to the backbone."""
    complexity: losses.Complexity = "product"
    """How a path's chance to stay is estimated; `paper` is Eq. 9, `code` the published program;
    both can fall below 0."""
    accounting: Literal["exact", "published"] = "exact"
    """`published` counts as the program did: 224 px, batch norm as 2 per element, a small stem."""
    distillation: Literal["end-to-end", "local"] = "end-to-end"
    """Whether the distance of a block trains all before it (paper) or only its own paths
    (program)."""
    distill_norm: losses.Reduction = "mean"
    """Mean over elements and outputs; `code` divides by L, `paper` sums squared norms."""
    threshold: float = 0.05
    """Pruning removes paths with a smaller gate, unless told otherwise."""
    proxy: Literal["auto", "conv", "bottleneck"] = "auto"
    """One 1x1 convolution, or two with few channels between; auto takes two where one would cost
    more than a sixth of the block."""
    hidden: Literal["paper", "code"] = "paper"
    """Channels inside a bottleneck proxy: outputs / 16, or the program's max(outputs / 32, 16)."""
    statistics: Literal["frozen", "drift"] = "frozen"
    """`drift`: batch norms of universal blocks follow the task's statistics, as published."""
    renormalise: bool = False
    """After pruning, let the gates of what stays sum to 1 again, as published."""


class NetTailor(nn.Module):
    """A backbone whose blocks are mixed with proxies.

    Args:
        backbone: the frozen trunk, shared and never copied.
        num_classes: K of the task's head.
        config: price, distillation and gates.
        seed: of the initialisation of head and proxies.
        kept: names of the paths that are left of a pruned student; all where None.

    Raises:
        BadInput: the backbone's blocks are no chain, or no proxy can connect them.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        config: Config,
        *,
        seed: int = 0,
        kept: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "nettailor"
        self.pruned, self.teacher = kept is not None, None
        self.nodes, self.node_names = _nodes(backbone)
        self.last = len(self.nodes) - 1
        everything = all_paths(self.node_names[1:], config.max_skip)
        wanted = {p.name for p in everything} if kept is None else set(kept)
        self.paths = tuple(p for p in everything if p.name in wanted)
        self._pools = {
            p.name: Pool(self.nodes[p.source], self.nodes[p.target], where=p.name)
            for p in self.paths
            if p.kind == "proxy"
        }
        self.task = nn.Module()
        self.task.proxies = _new_proxies(self.paths, self.nodes, config, backbone, seed)
        self._softmax = _Softmax(everything, self.paths, config.renormalise)
        self.task.scores = nn.Parameter(self._softmax.initial())
        self.task.head = new_head(backbone, num_classes, seed)
        self.task.norms = _tail_norms(backbone)
        self.task.drift = (
            _statistics(backbone) if config.statistics == "drift" else NamedTensors({})
        )
        self.register_buffer("costs", self._costs(), persistent=False)
        self._heard: list[Tensor | None] = []
        self.trunk: Callable[[Tensor], Tensor] = self._features
        self._assemble()

    def _assemble(self) -> None:
        """Graft the backbone's network: its first unit runs all blocks, the other units nothing."""
        model, blocks = self.universal.model, self.universal.blocks
        bare: dict[str, nn.Module] = {}
        for block in blocks:
            if block.activation is not None:
                activation = model.get_submodule(block.activation)
                several = block.activation_calls > 1
                bare[block.activation] = (
                    AllButLast(activation, block.activation_calls) if several else Pass()
                )
        inner = grafted(model, bare)
        self._units = [[inner.get_submodule(name) for name in b.units] for b in blocks]
        self._activations = [
            None if b.activation is None else model.get_submodule(b.activation) for b in blocks
        ]
        units = [name for block in blocks for name in block.units]
        own = {_plain(name): module for name, module in self.task.norms.items()}
        replaced: dict[str, nn.Module] = {name: Pass() for name in units}
        network = grafted(model, replaced | own | {units[0]: _Blocks(self._run)})
        # In a tuple, because a registered module would switch the trunk to training mode.
        self._network = (_Whole(model, network),)
        self._cuts: dict[int, tuple[Cut, Cut] | None] = {}

    def gate_values(self) -> Tensor:
        """(P,) softmax gates of the paths, in their order."""
        values: Tensor = self._softmax(self.task.scores)
        return values

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to (B, K) logits; in training with the outputs of all blocks."""
        return self._output(self.trunk(images))

    def _output(self, features: Tensor) -> Output:
        heard, self._heard = tuple(self._heard), []
        return Output(self.task.head(features), heard)

    def prefix(self) -> Prefix | None:
        """The stem, and of a pruned student the blocks that nothing was put beside."""
        cuts = self._start_and_rest()
        return None if cuts is None else cuts[0].prefix()

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """What ``forward`` returns for ``images``, from the prefix's output on."""
        cuts = self._start_and_rest()
        assert cuts is not None, "resumed without a prefix"
        self.universal.model.eval()
        return self._output(cuts[1].rest(given, images))

    def _start_and_rest(self) -> tuple[Cut, Cut] | None:
        """The trunk cut behind its frozen blocks, and the network that runs all others there."""
        first = self._frozen_blocks()
        if first not in self._cuts:  # tried when it is asked for: it takes a few passes
            blocks = self.universal.blocks
            touched = [unit for block in blocks[first:] for unit in block.units]
            start = longest_prefix(self.universal, touched)
            wanted = blocks[first - 1].name if first else STEM
            if self.config.statistics == "drift" or start is None or start.name != wanted:
                self._cuts[first] = None
                return None
            rest = _Blocks(partial(self._run, first=first))
            network = grafted(self._network[0].network[0], {blocks[0].units[0]: rest})
            self._cuts[first] = start, Cut(self.universal, network, 0, start.stem)
        return self._cuts[first]

    def _frozen_blocks(self) -> int:
        """How many blocks have one way in and a gate of 1 for good, and none past the last of them.

        A teacher wants to hear every block.
        """
        count = 0
        while count < self.last - 1 and not self.wants_teacher():
            into = [p for p in self.paths if p.target == count + 1]
            if len(into) != 1 or into[0].kind == "proxy" or into[0] in self._softmax.free:
                break
            count += 1
        past = [p.source for p in self.paths if p.target > count]
        return min([count, *past])

    def _features(self, images: Tensor) -> Tensor:
        self.universal.model.eval()
        statistics = {f"model.{name}": t for name, t in self.task.drift.items()}
        if not statistics:
            features: Tensor = self._network[0](images)
            return features
        for name in _batch_norms(self.universal):
            self.universal.model.get_submodule(name).training = self.training
        features = functional_call(self._network[0], statistics, (images,))
        self.universal.model.eval()
        return features

    def _run(self, x: Tensor, first: int = 0) -> Tensor:
        """All blocks behind the ``first`` ones, from their output (the stem's) to the last's."""
        gates = dict(zip((p.name for p in self.paths), self.gate_values().unbind(), strict=True))
        local = self.config.distillation == "local" and self.training and self.teacher is not None
        nodes: list[Tensor | None] = [None] * (self.last + 1)
        nodes[first] = x
        pooled: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        for number in range(first + 1, self.last + 1):
            into = [p for p in self.paths if p.target == number]
            total = near = None
            # The universal path comes last: its product with the gate is added in one pass.
            for path in reversed(into):
                source, gate = nodes[path.source], gates[path.name]
                assert source is not None, f"nothing arrives at {path.name}"
                if path.kind == "proxy":
                    at = (path.source, self.nodes[number].size)
                    if at not in pooled:
                        pooled[at] = self._pools[path.name](source)
                    proxy = self.task.proxies[_key(path.name)]
                    out = proxy(pooled[at], gate)
                    total = out if total is None else total.add_(out)
                    if local:
                        out = proxy(pooled[at].detach(), gate, learn_statistics=False)
                        near = out if near is None else near.add_(out)
                else:
                    for unit in self._units[number - 1]:
                        source = unit(source)
                    total = source * gate if total is None else total.addcmul_(source, gate)
                    if local:
                        source = source.detach()
                        near = source * gate if near is None else near.addcmul_(source, gate)
            activation = self._activations[number - 1]
            if activation is not None and total is not None:
                total = activation(total)
                near = None if near is None else activation(near)
            nodes[number] = total
            if self.training:
                self._heard.append(near if local else total)
        result = nodes[-1]
        assert result is not None
        return result

    def learn_from(self, teacher: Teacher) -> None:
        """Distil from ``teacher`` in every training step from now on."""
        self.teacher = teacher

    def wants_teacher(self) -> bool:
        """Whether the settings ask for distillation."""
        return self.config.distill > 0

    def distillation(self, images: Tensor, output: Output, indices: Tensor | None) -> Tensor | None:
        """γ · Ω, None without a teacher."""
        if self.teacher is None or not self.wants_teacher():
            return None
        said = self.teacher.to(images.device)(images, indices)
        if said.logits.shape[1:] != output.logits.shape[1:]:
            raise BadInput(
                f"the teacher tells {said.logits.shape[1]} classes apart, the task has "
                f"{output.logits.shape[1]}; give a --teacher RUN of this task"
            )
        norm = self.config.distill_norm
        return self.config.distill * losses.distillation(
            output.logits, output.block_outputs, said, norm
        )

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """Every trained parameter once, under its role; a proxy's batch norm is part of it."""
        found = {
            "adapters": list(self.task.proxies.parameters()),
            "scores": [self.task.scores],
            "norms": list(self.task.norms.parameters()),
            "head": list(self.task.head.parameters()),
        }
        return {role: params for role, params in found.items() if params}

    def anchors(self) -> dict[nn.Parameter, Tensor]:
        """None: ordinary weight decay."""
        return {}

    def idle(self) -> list[nn.Parameter]:
        """None: a softmax gate is never closed."""
        return []

    def expected_complexity(self) -> Tensor:
        """E[C] in backbones, a scalar."""
        places = {"device": self.costs.device}
        sources = torch.tensor([p.source for p in self.paths], **places)  # type: ignore[arg-type]
        targets = torch.tensor([p.target for p in self.paths], **places)  # type: ignore[arg-type]
        form = self.config.complexity
        return losses.expected_complexity(self.gate_values(), self.costs, sources, targets, form)

    def price(self, epoch: float) -> Tensor | None:
        """λ · E[C]; None once pruned and where λ is 0."""
        if self.pruned or self.config.lam == 0:
            return None
        return self.config.lam * self.expected_complexity()

    def layer_states(self) -> list[LayerState]:
        """Every layer of the backbone: universal, or removed with its block."""
        left = {p.target for p in self.paths if p.kind == "universal"}
        gone = [
            unit
            for i, block in enumerate(self.universal.blocks)
            if i + 1 not in left
            for unit in block.units
        ]
        removed = {
            layer.name
            for layer in self.universal.layers
            if any(layer.name == unit or layer.name.startswith(f"{unit}.") for unit in gone)
        }
        return layer_states(self.universal, removed=removed)

    @torch.no_grad()
    def gates(self) -> list[Gate]:
        """One per path, block after block, the universal path first."""
        values = self.gate_values().tolist()
        found = []
        for path, value in zip(self.paths, values, strict=True):
            params, macs = self._cost(path)
            found.append(
                Gate(
                    name=path.name,
                    kind=path.kind,
                    source=self.node_names[path.source],
                    target=self.node_names[path.target],
                    params=params,
                    macs=macs,
                    value=value,
                    on=value >= self.config.threshold,
                )
            )
        return found

    def kept(self) -> list[str]:
        """The names of the paths that are there."""
        return [p.name for p in self.paths]

    @torch.no_grad()
    def keep(self, names: Sequence[str]) -> NetTailor:
        """A smaller student of these paths, without those that compute nothing.

        Where the stem and the last block would be cut apart, the strongest connection is added. The
        trained tensors are shared with this student, not copied; gates keep their values unless the
        settings say ``renormalise``.

        Raises:
            BadInput: a path that is not there, or none at all.
        """
        here = {p.name: p for p in self.paths}
        if missing := [name for name in names if name not in here]:
            raise BadInput(f"cannot keep {missing[0]!r}: this student has no such path")
        if not names:
            raise BadInput(
                f"this would remove every path: the largest gate is "
                f"{float(self.gate_values().max()):.3f}; give a smaller --threshold or --count"
            )
        asked = [here[name] for name in names]
        values = dict(zip(here, self.gate_values().tolist(), strict=True))
        left = alive(asked, self.last)
        if not left:
            way = connection(self.paths, values, set(names), self.last)
            left = alive({*asked, *way}, self.last)
        kept = [p.name for p in self.paths if p in left]
        classes = self.task.head.out_features
        smaller = NetTailor(self.universal, classes, self.config, kept=kept)
        for part in ("norms", "head", "drift"):
            setattr(smaller.task, part, getattr(self.task, part))
        for key in smaller.task.proxies:
            smaller.task.proxies[key] = self.task.proxies[key]
        smaller.task.scores = nn.Parameter(smaller._softmax.fitting(values))
        smaller._assemble()
        smaller.teacher = self.teacher
        return smaller.to(next(self.task.parameters()).device).train(self.training)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The plain network: gates and batch norms of proxies folded into convolutions."""
        teacher, self.teacher = self.teacher, None
        try:
            twin = copy.deepcopy(self).eval()
        finally:
            self.teacher = teacher
        body = twin.universal.model
        for name, tensor in twin.task.drift.items():
            places = dict(body.named_buffers())
            places[name].copy_(tensor)
        own = {_plain(name): module for name, module in twin.task.norms.items()}
        units = [name for block in twin.universal.blocks for name in block.units]
        replaced: dict[str, nn.Module] = {name: Pass() for name in units}
        merged = grafted(body, replaced | own | {units[0]: _Merged(twin)})
        return with_head(merged, twin.task.head).eval()

    def _costs(self) -> Tensor:
        """(P,) cost of each path in backbones; empty once pruned, when nothing has a price."""
        if self.pruned:
            return torch.zeros(0)
        backbone = self.universal
        whole = backbone.num_params, total_macs(backbone.model, backbone.input_size)
        costs = [self._cost(path) for path in self.paths]
        if self.config.accounting == "published":
            counted = nettailor_published_costs(backbone)
            whole = counted.params, counted.network
            hidden = _hidden(self.paths, self.nodes, self.config, backbone)
            costs = [
                (params, counted.blocks[path.target - 1])
                if path.kind == "universal"
                else (params, counted.proxy(path.source, path.target, hidden[path.target]))
                for path, (params, _) in zip(self.paths, costs, strict=True)
            ]
        table = torch.tensor([(params / whole[0], macs / whole[1]) for params, macs in costs])
        if self.config.price == "both":
            return table.mean(1)
        return table[:, 0 if self.config.price == "params" else 1]

    def _cost(self, path: Path) -> tuple[int, int]:
        """Parameters and MACs of a path, at the resolution that the backbone has here."""
        if path.kind == "universal":
            return self.universal.block_costs()[path.target - 1]
        proxy = self.task.proxies[_key(path.name)]
        params = sum(p.numel() for p in proxy.parameters())
        return params, proxy.macs(self.nodes[path.target].positions)


class _Whole(nn.Module):
    """The grafted network beside the original, whose tensors may be replaced for one call."""

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.model = model
        # Registered, a layer would have two names, and `functional_call` would put it back wrongly.
        self.network = (network,)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network[0](images)
        return features


class _Blocks(nn.Module):
    """Stands where the first unit was, and runs all blocks."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class _Merged(nn.Module):
    """All blocks of a finished student, with constant gates."""

    def __init__(self, student: NetTailor) -> None:
        super().__init__()
        self.last, self.pools = student.last, student._pools
        values = dict(zip(student.kept(), student.gate_values().tolist(), strict=True))
        self.gates = {p.target: values[p.name] for p in student.paths if p.kind == "universal"}
        self.proxies = nn.ModuleDict()
        self.units, self.activations = nn.ModuleDict(), nn.ModuleDict()
        self.into: dict[int, list[tuple[int, str]]] = {n: [] for n in range(1, self.last + 1)}
        for path in student.paths:
            if path.kind == "proxy":
                key = _key(path.name)
                self.proxies[key] = student.task.proxies[key].merged(values[path.name])
                self.into[path.target].append((path.source, path.name))
            else:
                self.units[str(path.target)] = nn.Sequential(*student._units[path.target - 1])
        for number in {p.target for p in student.paths}:
            self.activations[str(number)] = student._activations[number - 1] or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        nodes: dict[int, Tensor] = {0: x}
        for number, proxies in self.into.items():
            total: Tensor | None = None
            for source, name in proxies:
                out = self.proxies[_key(name)](self.pools[name](nodes[source]))
                total = out if total is None else total.add_(out)
            if (key := str(number)) in self.units:
                out, gate = self.units[key](nodes[number - 1]), self.gates[number]
                total = out * gate if total is None else total.add_(out, alpha=gate)
            if total is not None:
                nodes[number] = self.activations[key](total)
        return nodes[self.last]


class _Softmax(nn.Module):
    """Gate logits to gates: a softmax over the paths into each block.

    Where paths were removed, their share stays taken: an extra logit of 0 stands for all of them,
    so that the gates of what is left keep their values and still can learn. A path without any
    alternative has gate 1 and no logit.

    Args:
        everything: paths of the unpruned network.
        paths: those that are there; the logits' order.
        renormalise: gates of what is left sum to 1.
    """

    def __init__(
        self, everything: Sequence[Path], paths: Sequence[Path], renormalise: bool
    ) -> None:
        super().__init__()
        blocks: dict[int, list[Path]] = {}
        for path in paths:
            blocks.setdefault(path.target, []).append(path)
        counts = {t: sum(p.target == t for p in everything) for t in blocks}
        self.partial = {t: len(blocks[t]) < counts[t] and not renormalise for t in blocks}
        self.free = [p for p in paths if self.partial[p.target] or len(blocks[p.target]) > 1]
        places = {p.name: i for i, p in enumerate(self.free)}
        nothing, zero = len(self.free), len(self.free) + 1
        width = 1 + max((len(members) for members in blocks.values()), default=0)
        rows, at = [], {}
        for target, members in blocks.items():
            row = [places.get(p.name, zero) for p in members]
            row += [zero] if self.partial[target] else []
            at |= {p.name: len(rows) * width + i for i, p in enumerate(members)}
            rows.append(row + [nothing] * (width - len(row)))
        self.blocks = blocks
        self.register_buffer("index", torch.tensor(rows), persistent=False)
        self.register_buffer("at", torch.tensor([at[p.name] for p in paths]), persistent=False)
        self.register_buffer("edge", torch.tensor([-math.inf, 0.0]), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """(F,) logits to (P,) gates."""
        padded = torch.cat([logits, self.edge.to(logits.dtype)])[self.index]
        return padded.softmax(1).flatten()[self.at]

    def initial(self) -> Tensor:
        """(F,) logits at the start of training."""
        start = {"universal": UNIVERSAL_LOGIT, "proxy": PROXY_LOGIT}
        return torch.tensor([start[p.kind] for p in self.free])

    def fitting(self, gates: dict[str, float]) -> Tensor:
        """(F,) logits that give these gates, by path name; their ratios with ``renormalise``."""
        logits = []
        for path in self.free:
            rest = 1 - sum(gates[p.name] for p in self.blocks[path.target])
            share = max(rest, 1e-12) if self.partial[path.target] else 1.0
            logits.append(math.log(max(gates[path.name], 1e-30) / share))
        return torch.tensor(logits)


def _key(name: str) -> str:
    return name.replace(".", "/")


def _plain(key: str) -> str:
    return key.replace("/", ".")


def _nodes(backbone: Backbone) -> tuple[list[Node], tuple[str, ...]]:
    shapes = [("the output of the stem", backbone.chain.start_shape)]
    shapes += [(f"the output of block {b.name}", b.out_shape) for b in backbone.blocks]
    names = (STEM, *(b.name for b in backbone.blocks))
    return [Node.of(shape, where=where) for where, shape in shapes], names


def _new_proxies(
    paths: Sequence[Path], nodes: Sequence[Node], config: Config, backbone: Backbone, seed: int
) -> nn.ModuleDict:
    hidden = _hidden(paths, nodes, config, backbone)
    made = nn.ModuleDict()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for path in paths:
            if path.kind == "proxy":
                ends = nodes[path.source], nodes[path.target]
                made[_key(path.name)] = Proxy(*ends, hidden[path.target])
    return made


def _hidden(
    paths: Iterable[Path], nodes: Sequence[Node], config: Config, backbone: Backbone
) -> dict[int, int | None]:
    """Target node -> channels inside its proxies; None for the form with one convolution.

    A bottleneck block of O output channels is O / 4 wide inside; the paper takes a quarter of that.
    """
    narrow = config.proxy == "bottleneck" or (config.proxy == "auto" and _dear(backbone, nodes))
    code = config.hidden == "code"
    found: dict[int, int | None] = {}
    for target in {p.target for p in paths}:
        wide = nodes[target].channels
        width = nettailor_hidden(wide) if code else max(wide // 16, 1)
        found[target] = width if narrow else None
    return found


def _dear(backbone: Backbone, nodes: Sequence[Node]) -> bool:
    """Whether one 1x1 convolution costs more than a sixth of the typical block."""
    shares = [
        node.channels**2 / max(params, 1)
        for node, (params, _) in zip(nodes[1:], backbone.block_costs(), strict=True)
    ]
    return statistics.median(shares) > DEAR


def _tail_norms(backbone: Backbone) -> nn.ModuleDict:
    """Copies of the norms behind the last block: another mix of paths needs its own end norm."""
    owners = {name.rpartition(".")[0] for name in norm_tensors(backbone.model)[0]}
    tail = [name for name in backbone.chain.tail if name in owners]
    copies = {_key(n): copy.deepcopy(backbone.model.get_submodule(n)) for n in tail}
    return nn.ModuleDict({n: m.requires_grad_(True) for n, m in copies.items()})


def _batch_norms(backbone: Backbone) -> list[str]:
    """Names of the batch norms in stem and blocks."""
    tail = set(backbone.chain.tail)
    return [
        name
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and name not in tail
    ]


def _statistics(backbone: Backbone) -> NamedTensors:
    """Running statistics of stem and blocks as the task's own."""
    buffers = dict(backbone.model.named_buffers())
    norms = {f"{norm}." for norm in _batch_norms(backbone)}
    names = [name for name in buffers if name[: name.rfind(".") + 1] in norms]
    return NamedTensors({}, {name: buffers[name] for name in names})


def build(
    backbone: Backbone, num_classes: int, config: Config | None = None, *, seed: int = 0
) -> NetTailor:
    """A NetTailor student on ``backbone``; without ``learn_from`` it distils from nobody.

    Raises:
        BadInput: settings out of range, or a backbone without an ordered chain of blocks.
    """
    config = config or Config()
    if config.max_skip < 1:
        raise BadInput(f"max_skip is {config.max_skip}; give --max-skip 1 or more")
    for name, value in (("lam", config.lam), ("distill", config.distill)):
        if not (0 <= value < math.inf):
            raise BadInput(f"{name} is {value}; give --{name} 0 or more")
    if not 0 <= config.threshold < 1:
        raise BadInput(
            f"threshold is {config.threshold}, but gates lie in [0, 1]; give --threshold 0.05"
        )
    _require_chain(backbone)
    return NetTailor(backbone, num_classes, config, seed=seed)


def _require_chain(backbone: Backbone) -> None:
    """Refuse a network in which something beside the blocks sees what passes between them."""
    chain, model = backbone.chain, backbone.model
    why = chain.broken
    if not why:
        units = [name for block in chain.blocks for name in block.units]
        line = nn.Sequential(*(model.get_submodule(name) for name in units))
        regrouped = grafted(model, {name: Pass() for name in units} | {units[0]: line})
        some = next(model.parameters())
        images = torch.randn(1, *backbone.input_size, generator=torch.Generator().manual_seed(0))
        images = images.to(some.device, some.dtype)
        with torch.no_grad():
            same = torch.equal(regrouped.eval()(images), model.eval()(images))
        why = "" if same else "something beside its blocks uses their outputs"
    if why:
        raise BadInput(
            f"nettailor cannot serve backbone {backbone.name!r}: its blocks are no plain chain "
            f"({why}); use another --method, such as taps"
        )


def rebuild(
    backbone: Backbone, num_classes: int, config: Config, *, kept: Sequence[str]
) -> NetTailor:
    """The pruned student of the paths ``kept``, ready for its saved tensors."""
    return NetTailor(backbone, num_classes, config, kept=kept)
