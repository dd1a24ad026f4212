"""Distillation of a backbone into a side network, so that side-tuning starts from what it says.

    soft_ce      - Σ_c p_c log q_c     p = softmax(source_head(base(x))), q = softmax(head(side(x)))
    features     |side(x) - base(x)|²
    perceptual   |h(side(x)) - h(base(x))|, its square, or soft_ce; h a frozen head

averaged over images. The images may be those of any task; what the base says about them stands
where their labels were (``Answered``), so that the training loop, its losses and its metrics are
the usual ones: agreement of the most likely class (top1), or the share of variance explained (r2).
With ``soft_ce`` the side has a head of its own, which is left with it in the file, under the
published name. Left out: matching of inner layers, and temperatures (it is 1).

Source: Zhang et al., Side-tuning, ECCV 2020, and its code (Adam, rate 1e-3, decay 1e-6),
https://github.com/jozhang97/side-tuning; Hinton et al., Distilling the knowledge in a neural
network, 2015.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor import cost
from tailor.adapters import linear_head
from tailor.backbone import Backbone, norm_tensors
from tailor.data import Batch, Batches
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.frozen import frozen_pass, part_of
from tailor.opened import backbone_of, batches, open_run, task_of
from tailor.options import Distill, Imitation
from tailor.outcome import finish
from tailor.prefix import FEATURES, Prefix
from tailor.run import write_tensors
from tailor.session import Reporter, config_of, finished, nobody, open_directory, splits_of
from tailor.side import HEAD, PROJECT, SIDE_FILE, side_file, side_path
from tailor.source_head import source_head
from tailor.student import LayerState, Output, layer_states
from tailor.target import PIXEL_VALUES, SOFT, VALUES, Target
from tailor.task import Task
from tailor.train import evaluate, fit
from tailor.weights import read_state

STAGE = "distilled"


def distill(options: Distill, *, tell: Reporter = nobody, command: str = "") -> dict[str, Any]:
    """Train a side network on what the backbone says; it is left in ``side.safetensors``.

    Returns:
        The run's result, as in result.json; its metric is the agreement with the backbone.

    Raises:
        BadInput: see ``Imitator``, ``Backbone.create``, ``open_task`` and ``fit``.
    """
    options.train.check()
    task = task_of(options.data)
    backbone = backbone_of(options.net, options.data, task.target)
    student = Imitator(backbone, options.settings, seed=options.train.seed)
    data = dataclasses.replace(options.data, px=backbone.input_size[-1])
    config = config_of(student, task, data, options.train)
    out, progress = options.out, tell(f"distill {options.out.name}")
    if (done := finished(out, "distill", config)) is not None:
        return done
    splits = [
        None if split is None else student.answered(split)
        for split in splits_of(task, student, data, options.train, progress)
    ]
    train, val = cast(Batches, splits[0]), splits[1]
    with open_directory(out, "distill", config, command) as run:
        if run.result is not None:  # another process was faster while this one read images
            return run.result
        fitted = fit(student, train, val, options.train, run=run, stage=STAGE, progress=progress)
        test = None
        if "test" in task.splits:
            seen = student.answered(batches(task, "test", backbone, data, options.train))
            student.to(seen.device)
            test = evaluate(student, seen, bf16=options.train.bf16)
        if Group.current().rank == 0:
            about = {"backbone": backbone.name, "settings": config["settings"]}
            write_tensors(out / SIDE_FILE, student.tensors(), about)
        size = backbone.input_size
        facts = {"task": task.name, "metric": student.target.metric, "config": config} | {
            "kept": None,
            "test": test,
            "macs": {
                "backbone": cost.total_macs(backbone.model, size),
                "student": cost.total_macs(student.path, size),
            },
        }
        return finish(run, student, _untested(task), fitted, facts, STAGE, options.train)


def _untested(task: Task) -> Task:
    """Without the test split, which is measured here: its labels are not what is predicted."""
    left = {name: split for name, split in task.splits.items() if name != "test"}
    return dataclasses.replace(task, splits=left)


class Imitator(nn.Module):
    """A side network, and a head where the loss needs one, that learn what the base says.

    Args:
        backbone: the base.
        config: which side network and what it imitates.
        seed: of its start.

    Raises:
        BadInput: see ``side_path``; no classifier to imitate or to look through, or a head that
            reads something else than the backbone's features.
    """

    def __init__(self, backbone: Backbone, config: Imitation, *, seed: int = 0) -> None:
        super().__init__()
        self.universal, self.config, self.method = backbone, config, "distill"
        self.target = _target(backbone, config)
        self.path = side_path(
            config.side,
            backbone,
            width=config.width,
            init=config.side_init,
            weights=config.side_weights,
            seed=seed,
        )
        self.judge: nn.Module = nn.Identity()  # what the base's features are seen through
        head: nn.Module = nn.Identity()
        if config.loss != "features":
            self.judge = _judge(backbone, config).requires_grad_(False).eval()
        if config.loss == "soft_ce":
            head = _own_head(backbone, cast(nn.Linear, self.judge), config, seed)
        self.task: Any = nn.Module()
        self.task.side, self.task.project = self.path
        self.task.head = head

    def forward(self, images: Tensor) -> Output:
        """(B, C, H, W) images to what imitates the base: (B, S) logits, or features."""
        features = self.path(images)
        through = self.judge if self.config.loss == "perceptual" else self.task.head
        return Output(through(features))

    def prefix(self) -> Prefix:
        """The whole backbone, whose features may be remembered."""
        return Prefix(FEATURES, self._base, exact=False)

    def resume(self, given: Tensor, images: Tensor) -> Output:
        """As without ``given``: a side network sees the images."""
        found: Output = self(images)
        return found

    def _base(self, images: Tensor) -> Tensor:
        run = cast("Callable[[Tensor], Tensor]", self.universal)
        return frozen_pass(run, images, part=part_of(self.universal))

    @torch.no_grad()
    def answer(self, batch: Batch) -> Tensor:
        """What the side should say about a batch: probabilities (B, S), or numbers."""
        features = self._base(batch.images) if batch.given is None else batch.given
        said: Tensor = self.judge(features)
        return said.softmax(1) if self.target.kind == "soft" else said

    def answered(self, found: Batches) -> Batches:
        """These batches with the answers in place of labels."""
        return cast(Batches, Answered(found, self.answer, self.target))

    def tensors(self) -> dict[str, Tensor]:
        """Side network, projection and head under the published names."""
        parts = (("", "side"), (PROJECT, "project"), (f"{HEAD}module.", "head"))
        return {
            f"{prefix}{name}": tensor
            for prefix, part in parts
            for name, tensor in getattr(self.task, part).state_dict().items()
        }

    def train(self, mode: bool = True) -> Imitator:
        """The frozen head stays in evaluation mode."""
        super().train(mode)
        self.judge.eval()
        return self

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """The side as adapters, its norms apart, and the head."""
        norms = set(norm_tensors(self.path)[0])
        named = list(self.path.named_parameters())
        found = {
            "adapters": [p for n, p in named if n not in norms],
            "norms": [p for n, p in named if n in norms],
            "head": list(self.task.head.parameters()),
        }
        return {role: params for role, params in found.items() if params}

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
        """Side and its own head, in evaluation mode."""
        return copy.deepcopy(nn.Sequential(self.path, self.task.head)).eval()


class Answered:
    """Batches whose labels are replaced by answers to their images.

    Args:
        found: the batches.
        answer: a batch to its new labels.
        target: what these are.
    """

    def __init__(self, found: Batches, answer: Callable[[Batch], Tensor], target: Target) -> None:
        self._found, self._answer = found, answer
        self.split = copy.copy(found.split)
        self.split.target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._found, name)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """As ``Batches.epoch``."""
        for batch in self._found.epoch(epoch, start_step):
            yield batch._replace(labels=self._answer(batch), given=None)


def _target(backbone: Backbone, config: Imitation) -> Target:
    """What the answers are."""
    if config.loss != "perceptual" and (config.distance != "l2" or config.head):
        what = "head" if config.head else "distance"
        raise BadInput(f"--{what} belongs to --loss perceptual, and loss is {config.loss!r}")
    soft = config.loss == "soft_ce" or config.distance == "soft_ce"
    if soft and backbone.dense:
        raise BadInput(
            f"soft_ce compares probabilities of classes, and backbone {backbone.name!r} returns "
            f"maps here; give --loss features, or perceptual with --distance l1 or l2"
        )
    if soft:
        return SOFT
    numbers = PIXEL_VALUES if backbone.dense else VALUES
    loss = "l2" if config.loss == "features" else config.distance
    return dataclasses.replace(numbers, loss=cast(Any, loss))


def _judge(backbone: Backbone, config: Imitation) -> nn.Module:
    """The frozen head that the base's features are seen through."""
    if not config.head:
        found = source_head(backbone)
        if found is None or backbone.dense:
            raise BadInput(
                f"the weights {backbone.weights!r} of {backbone.name!r} have no linear classifier "
                f"to imitate; give --loss features, or --loss perceptual with --head RUN of a probe"
            )
        return found
    opened = open_run(config.head)
    student, fingerprint = opened.student, backbone.fingerprint()
    if student.method != "probe":
        raise BadInput(
            f"head {config.head!r} is a run of method {student.method!r}, whose head reads other "
            f"features than the backbone's; give one of `tailor teach --mode probe`"
        )
    facts = [
        ("backbone", student.universal.fingerprint()[:8], fingerprint[:8]),
        ("features", student.universal.feature_shape, backbone.feature_shape),
    ]
    for what, there, here in facts:
        if there != here:
            raise BadInput(
                f"head {config.head!r} has {what} {there}, this command {here}; give the run of a "
                f"probe on the same --backbone, --weights, --px and kind of task"
            )
    return cast(nn.Module, copy.deepcopy(student.task.head))


def _own_head(backbone: Backbone, judge: nn.Linear, config: Imitation, seed: int) -> nn.Linear:
    """The side's own classifier; that of the file it starts from, where there is one."""
    head = linear_head(backbone.num_features, judge.out_features, seed)
    if config.side_weights:
        state = read_state(side_file(Path(config.side_weights)))
        kept = {n: state.get(f"{HEAD}module.{n}") for n in ("weight", "bias")}
        if all(t is not None and t.shape == getattr(head, n).shape for n, t in kept.items()):
            head.load_state_dict(cast("dict[str, Tensor]", kept))
    return head
