"""Search space of a sweep: every combination of a grid, or ranges to search.

Turns ``options.Sweep`` into *points* (what varies, by name) and points into units (``units.py``).
Everything that can be wrong with the space is refused here, before any trial is made. Left out: how
points are handed out (``ledger.py``).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from tailor import catalog
from tailor.errors import BadInput
from tailor.opened import backbone_of
from tailor.options import Data, Images, Net, Prune, Sweep
from tailor.settings import Recipe, Settings
from tailor.typed import settings_of, typed
from tailor.units import MODES, Unit, prunes, short

Point = dict[str, Any]  # name -> value of what varies, such as {"task": "digits", "lam": 0.1}
_RULES = tuple(f.name for f in dataclasses.fields(Prune) if f.name not in ("run", "out", "teacher"))


@dataclass(frozen=True, kw_only=True)
class Space:
    """A sweep's options, checked, and what they need to be read."""

    options: Sweep
    methods: Mapping[str, ModuleType]
    weights: Mapping[str, str]  # backbone -> fingerprint
    ranges: Mapping[str, BaseDistribution]  # of a search; empty for a grid

    def points(self) -> list[Point]:
        """Every combination of the grid, tasks outermost; of a search nothing."""
        return [] if self.ranges else list(_combinations(self.options, self.methods))

    def distributions(self) -> dict[str, BaseDistribution]:
        """Where each value of a point comes from."""
        if self.ranges:
            return dict(self.ranges)
        values: dict[str, dict[Any, None]] = {}
        for point in self.points():
            for name, value in point.items():
                values.setdefault(name, {})[value] = None
        # In one order, whatever the order of the options: a study keeps its choices.
        return {name: CategoricalDistribution(sorted(found)) for name, found in values.items()}

    def units(self, point: Point) -> list[Unit]:
        """What a trial at ``point`` trains: one unit, or one per seed in a search.

        Raises:
            BadInput: a combination that cannot be trained.
        """
        fixed = {"task": self.options.task[0], "backbone": self.options.backbone[0]}
        fixed |= {"method": self.options.method[0]}
        point = fixed | point
        seeds = (int(point["seed"]),) if "seed" in point else self.options.seed
        return [self._unit(point, seed) for seed in seeds]

    def _unit(self, point: Point, seed: int) -> Unit:
        options, method = self.options, str(point["method"])
        train = Settings(**_fields(options.train, point), seed=seed)
        epochs = options.retrain_epochs
        epochs = 2 * train.epochs if epochs is None else epochs
        whole = dataclasses.replace(
            train, epochs=train.epochs + epochs, select="best", schedule="cosine"
        )
        images = _fields(options.images, _own(options, short(str(point["task"]))))
        data = Data(task=str(point["task"]), **images)
        backbone = str(point["backbone"])
        net = Net(backbone=backbone, weights=options.weights)
        reference = Unit(
            method=method,
            settings=None,
            data=data,
            net=net,
            weights=self.weights[backbone],
            train=whole,
        )
        if method in MODES:
            return reference
        said = {**_own(options, ""), **_own(options, method)}
        known = {f.name for f in dataclasses.fields(self.methods[method].Config)}
        said = {k: v for k, v in said.items() if k in known}
        said |= {k: str(v) for k, v in point.items() if k in known}
        settings = settings_of(self.methods[method].Config, said)
        if not prunes(self.methods[method], settings):  # one stage, as long as a reference's
            return dataclasses.replace(reference, settings=settings, prune=False)
        taught = bool(getattr(settings, "distill", 0))
        retrain = dataclasses.replace(whole, epochs=epochs) if epochs else None
        return dataclasses.replace(
            reference,
            settings=settings,
            train=train,
            rule=_rule(str(point.get("rule", ""))),
            retrain=retrain if options.until == "retrained" else None,
            prune=options.until != "adapt",
            teacher=dataclasses.replace(reference, method="finetune") if taught else None,
        )


def space_of(options: Sweep) -> Space:
    """Check ``options`` and read the backbones.

    Raises:
        BadInput: anything that would stop or waste a trial; names it.
    """
    for name in ("task", "backbone", "method", "seed", "lam", "rule"):
        values = getattr(options, name)
        if not values and name not in ("lam", "rule"):
            raise BadInput(f"no {name} to sweep over; give --{name}")
        if len(set(values)) < len(values):
            twice = next(v for v in values if values.count(v) > 1)
            raise BadInput(f"{name} {twice!r} is given twice; give each value once")
    if options.processes < 1 or options.trials < 1:
        raise BadInput(
            f"processes is {options.processes} and trials {options.trials}; give 1 or more"
        )
    methods = {name: catalog.load("students", name, "method") for name in options.method}
    _check_options(options, methods)
    ranges = _ranges(options, methods)
    gated = [name for name in methods if _gated(name, options, methods)]
    priced = [name for name in gated if "lam" in _names(methods[name])]
    if options.lam and not priced:
        raise BadInput(f"none of {', '.join(methods)} has a price; leave --lam out")
    if options.rule and not gated:
        raise BadInput(f"none of {', '.join(methods)} can be pruned; leave --rule out")
    if options.rule and options.until == "adapt":
        raise BadInput("nothing is pruned with --until adapt; leave --rule out")
    for text in options.rule:
        _rule(text)
    first = Data(task=options.task[0], **dataclasses.asdict(options.images))
    nets = {name: Net(backbone=name, weights=options.weights) for name in options.backbone}
    backbones = {name: backbone_of(net, first) for name, net in nets.items()}
    weights = {name: backbone.fingerprint() for name, backbone in backbones.items()}
    space = Space(options=options, methods=methods, weights=weights, ranges=ranges)
    seen: set[str] = set()
    for point in space.points():
        for unit in space.units(point):
            unit.train.check()
            # A method knows best which settings it cannot work with.
            said = f"{unit.net.backbone} {unit.method} {unit.settings}"
            if said not in seen:
                seen.add(said)
                methods[unit.method].build(backbones[unit.net.backbone], 2, unit.settings)
    return space


def _combinations(options: Sweep, methods: Mapping[str, ModuleType]) -> Iterator[Point]:
    for task, backbone, method in itertools.product(options.task, options.backbone, methods):
        gated = _gated(method, options, methods)
        inner: dict[str, Sequence[Any]] = {
            "lam": options.lam if gated and "lam" in _names(methods[method]) else (),
            "rule": options.rule if gated and options.until != "adapt" else (),
            "seed": options.seed,
        }
        inner = {name: values for name, values in inner.items() if values}
        for values in itertools.product(*inner.values()):
            same = {"task": task, "backbone": backbone, "method": method}
            yield same | dict(zip(inner, values, strict=True))


def _gated(method: str, options: Sweep, methods: Mapping[str, ModuleType]) -> bool:
    """Whether students of a method can switch something off, as the options have it."""
    if method in MODES:
        return False
    kind = methods[method].Config
    said = {**_own(options, ""), **_own(options, method)}
    asked = {k: v for k, v in said.items() if k == "select" and k in _names(methods[method])}
    return prunes(methods[method], settings_of(kind, asked))


def _ranges(options: Sweep, methods: Mapping[str, ModuleType]) -> dict[str, BaseDistribution]:
    """The dimensions of a search; empty where a grid was asked for."""
    if not options.search:
        return {}
    for name in ("task", "backbone"):
        if len(getattr(options, name)) > 1:
            raise BadInput(
                f"a search compares trials of one {name}, but {len(getattr(options, name))} are "
                f"given; start one search for each"
            )
    if options.lam:
        raise BadInput("a search takes prices from a range; give --search lam=0.01..3, not --lam")
    found: dict[str, BaseDistribution] = {}
    for text in options.search:
        name, _, said = text.partition("=")
        owner = _owner(name, methods)
        found[name] = _range(name, said, owner)
    if len(methods) > 1:
        found["method"] = CategoricalDistribution(sorted(methods))
    if len(options.rule) > 1:
        found["rule"] = CategoricalDistribution(sorted(options.rule))
    return found


def _range(name: str, said: str, owner: type) -> BaseDistribution:
    """LOW..HIGH of numbers (logarithmic over a decade or more), or choices with commas."""
    low, dots, high = said.partition("..")
    if not dots:
        choices = said.split(",")
        for choice in choices:
            typed(owner, name, choice)
        if len(set(choices)) < 2:
            raise BadInput(f"search {name}={said}: give two or more choices, such as {name}=A,B")
        return CategoricalDistribution(sorted(choices))
    try:
        bounds = float(low), float(high)
    except ValueError:
        raise BadInput(f"search {name}={said}: give a range of numbers, LOW..HIGH") from None
    if not all(map(math.isfinite, bounds)):
        raise BadInput(f"search {name}={said}: a range needs two finite ends, LOW..HIGH")
    if not bounds[0] < bounds[1]:
        raise BadInput(f"search {name}={said}: the range is empty; give LOW..HIGH")
    log = bounds[0] > 0 and bounds[1] / bounds[0] >= 10
    if isinstance(typed(owner, name, low), int):
        return IntDistribution(int(bounds[0]), int(bounds[1]), log=log)
    typed(owner, name, high)
    return FloatDistribution(*bounds, log=log)


def _owner(name: str, methods: Mapping[str, ModuleType]) -> type:
    """The dataclass that an option belongs to: a method's own, or the recipe."""
    for method in methods.values():
        if name in _names(method):
            owner: type = method.Config
            return owner
    if name in {f.name for f in dataclasses.fields(Recipe)}:
        return Recipe
    known = [n for m in methods.values() for n in _names(m)]
    known += [f.name for f in dataclasses.fields(Recipe)]
    raise catalog.unknown("option", name, known, shown_by="tailor adapt --help")


def _check_options(options: Sweep, methods: Mapping[str, ModuleType]) -> None:
    """Every --option must belong to something, and be a value of it."""
    tasks = {short(task) for task in options.task}
    for text in options.option:
        path, equal, value = text.partition("=")
        prefix, _, name = path.rpartition(".")
        if not equal or (prefix and prefix not in {*methods, *tasks}):
            raise BadInput(
                f"option {text!r}: give NAME=VALUE, METHOD.NAME=VALUE or TASK.NAME=VALUE"
            )
        if prefix in tasks:
            if name not in {f.name for f in dataclasses.fields(Images)}:
                raise catalog.unknown(
                    "option",
                    name,
                    [f.name for f in dataclasses.fields(Images)],
                    shown_by="tailor sweep --help",
                )
            typed(Images, name, value)
            continue
        owners = [m for n, m in methods.items() if name in _names(m) and prefix in ("", n)]
        if not owners:
            known = [n for m in methods.values() for n in _names(m)]
            raise catalog.unknown("option", path, known, shown_by="tailor adapt --help")
        for owner in owners:
            typed(owner.Config, name, value)


def _own(options: Sweep, prefix: str) -> dict[str, str]:
    """The --options under one prefix (a method, a task, or none), as text."""
    pairs = (text.partition("=") for text in options.option)
    split = [(*path.rpartition(".")[::2], value) for path, _, value in pairs]
    return {name: value for owner, name, value in split if owner == prefix}


def _fields(options: Any, changed: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass's fields, some of them changed."""
    fields = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    known = {k: v for k, v in changed.items() if k in fields}
    return fields | {
        k: typed(options.__class__, k, v) if isinstance(v, str) else v for k, v in known.items()
    }


def _rule(text: str) -> tuple[tuple[str, Any], ...]:
    """``count=11,proxy_threshold=0.1`` as options of prune; commas inside a budget stay in it."""
    pairs: list[list[str]] = []
    for part in filter(None, text.split(",")):
        name, equal, value = part.partition("=")
        if name in _RULES and equal:
            pairs.append([name, value])
        elif pairs and pairs[-1][0] == "budget":
            pairs[-1][1] += f",{part}"
        else:
            raise BadInput(
                f"rule {text!r}: give options of `tailor prune` as NAME=VALUE, such as count=11; "
                f"names are {', '.join(_RULES)}"
            )
    return tuple((name, typed(Prune, name, value)) for name, value in pairs)


def _names(method: ModuleType) -> list[str]:
    return [f.name for f in dataclasses.fields(method.Config)]
