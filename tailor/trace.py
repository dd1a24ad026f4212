"""Trace: the ordered universal blocks of a network, found by watching it run once.

A module whose children form a chain (each takes exactly what the one before returned, and no tensor
was changed in between) only groups; its children are the *units*. A module with a residual sum, a
concatenation or attention is no chain, hence a unit. Units with weights inside a grouping module
below the root are the universal blocks; what comes before the first is the stem, what comes after
the last the tail. Tensor identity and version are compared, because timm adds shortcuts in place.
No architecture is named.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tailor.errors import BadInput, first_line


@dataclass(frozen=True, kw_only=True)
class Block:
    """A universal block: one step of the ordered chain between stem and pooling."""

    name: str
    in_shape: tuple[int, ...]  # of its first input, batch axis left out
    out_shape: tuple[int, ...]
    units: tuple[str, ...]  # modules from the block before to this one's output, itself the last
    activation: str | None  # the module that ends it, if that is a bare activation (final ReLU)
    activation_calls: int  # how often the block calls that module: one ReLU may serve twice


@dataclass(frozen=True)
class Chain:
    """Stem, blocks and tail of a network."""

    blocks: tuple[Block, ...]
    start_shape: tuple[int, ...]  # what the stem hands to the first unit, batch axis left out
    tail: tuple[str, ...]  # modules that run after the last block, in order
    broken: str  # why the blocks are no unbroken chain of one tensor each; empty if they are


@dataclass(frozen=True)
class _Call:
    """One call of one module: what went in, what came out, and whether it was still untouched."""

    name: str
    given: Tensor
    given_version: int
    version_after: int  # of ``given``, when the module returned
    result: Tensor
    result_version: int
    inputs: int  # arguments that are not None


def trace(model: nn.Module, name: str, input_size: tuple[int, int, int]) -> tuple[Tensor, Chain]:
    """Run one image through ``model`` and read off its features and its chain of blocks.

    Raises:
        BadInput: the network does not run on that size, or does not return one tensor.
    """
    calls: dict[str, list[_Call]] = {}  # of each module: the calls of its children, in order
    order: list[str] = []  # modules as they were entered
    entered: list[tuple[Tensor | None, int, int]] = []  # the call stack
    stack: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[object, ...], named: dict[str, object]) -> None:
            first = given[0] if given and isinstance(given[0], Tensor) else None
            inputs = sum(value is not None for value in (*given, *named.values()))
            entered.append((first, -1 if first is None else first._version, inputs))
            stack.append(path)
            order.append(path)

        return hook

    def leave(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, ___: object, result: object) -> None:
            first, version, inputs = entered.pop()
            stack.pop()
            parent = stack[-1] if stack else "/"
            if first is not None and isinstance(result, Tensor):
                call = _Call(path, first, version, first._version, result, result._version, inputs)
                calls.setdefault(parent, []).append(call)

        return hook

    handles = []
    for path, part in model.named_modules():
        handles.append(part.register_forward_pre_hook(enter(path), with_kwargs=True))
        handles.append(part.register_forward_hook(leave(path), with_kwargs=True))
    weight = next(model.parameters())
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            features = model(torch.zeros(1, *input_size, device=weight.device, dtype=weight.dtype))
    except Exception as error:
        raise BadInput(
            f"backbone {name!r} cannot run on an image of {input_size[0]}x{input_size[1]}x"
            f"{input_size[2]}: {first_line(error)}; give another --px"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(features, Tensor):
        raise BadInput(f"backbone {name!r} returns {type(features).__name__}, not one tensor")
    return features, _chain(calls, order, dict(model.named_modules()))


def _chain(
    calls: dict[str, list[_Call]], order: Sequence[str], modules: dict[str, nn.Module]
) -> Chain:
    root = calls.get("/", [None])[0]
    units = list(_units(root, calls, modules))
    heavy = [u for u in units if _has_matrix(modules[u.name])]
    grouped = [u for u in heavy if "." in u.name and any(True for _ in modules[u.name].children())]
    kinds = {type(modules[u.name]) for u in grouped}
    # A stage of a single block looks like one itself; it is if it holds what others repeat.
    single = {u.name for u in heavy if kinds & {type(m) for m in modules[u.name].children()}}
    chosen = [u for u in heavy if u in grouped or u.name in single]
    chosen = chosen or [u for u in heavy if "." in u.name] or heavy
    blocks, broken, begin = [], "", 0
    for i, block in enumerate(chosen):
        at = units.index(block)
        between = units[begin:at] if i else []  # what precedes the first block is the stem
        links = itertools.pairwise([*([chosen[i - 1]] if i else []), *between, block])
        if not all(b.given is a.result and b.given_version == a.result_version for a, b in links):
            broken = broken or f"{block.name} does not take what {chosen[i - 1].name} returns"
        for unit in (*between, block):
            if unit.inputs != 1:
                broken = broken or f"{unit.name} takes {unit.inputs} inputs instead of one"
            if unit.version_after != unit.given_version and unit.result is not unit.given:
                broken = broken or f"{unit.name} changes its input in place"
        activation, times = _final_activation(block, calls, modules)
        blocks.append(
            Block(
                name=block.name,
                in_shape=tuple(block.given.shape[1:]),
                out_shape=tuple(block.result.shape[1:]),
                units=tuple(u.name for u in (*between, block)),
                activation=activation,
                activation_calls=times,
            )
        )
        begin = at + 1
    inside = f"{blocks[-1].name}."
    last = max(
        i for i, path in enumerate(order) if path == blocks[-1].name or path.startswith(inside)
    )
    repeated = {u.name for u in units if [v.name for v in units].count(u.name) > 1}
    if repeated & {n for b in blocks for n in b.units}:
        broken = broken or f"{min(repeated)} runs more than once"
    return Chain(
        blocks=tuple(blocks),
        start_shape=blocks[0].in_shape,
        tail=tuple(dict.fromkeys(order[last + 1 :])),
        broken=broken,
    )


def _final_activation(
    block: _Call, calls: dict[str, list[_Call]], modules: dict[str, nn.Module]
) -> tuple[str | None, int]:
    """The activation module whose result is the block's, and how often its owner calls it."""
    outer = block
    while inner := calls.get(outer.name, []):
        last = inner[-1]
        if last.result is not block.result or last.result_version != block.result_version:
            break
        if _is_activation(modules[last.name]):
            return last.name, sum(call.name == last.name for call in inner)
        outer = last
    return None, 0


def _is_activation(module: nn.Module) -> bool:
    """Whether it has no parameters and maps every number by itself, not to itself."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return False
    probe = torch.linspace(-3, 3, 24)
    try:
        with torch.no_grad():
            flat = module(probe.clone())
            shaped = module(probe.flip(0).clone().view(1, 2, 3, 4))
    except Exception:
        return False
    if not isinstance(flat, Tensor) or not isinstance(shaped, Tensor) or flat.shape != probe.shape:
        return False
    return torch.equal(shaped.flatten().flip(0), flat) and not torch.equal(flat, probe)


def _units(
    call: _Call | None, calls: dict[str, list[_Call]], modules: dict[str, nn.Module]
) -> Iterator[_Call]:
    """The calls that remain when every grouping module is replaced by its children."""
    if call is None:
        return
    for child in calls.get(call.name, []):
        inner = calls.get(child.name, [])
        if _is_chain(child, inner) and _groups(
            modules[child.name], [modules[c.name] for c in inner]
        ):
            yield from _units(child, calls, modules)
        else:
            yield child


def _is_chain(outer: _Call, inner: list[_Call]) -> bool:
    if not inner:
        return False
    first, last = inner[0], inner[-1]
    links = itertools.pairwise(inner)
    return (
        first.given is outer.given
        and last.result is outer.result
        and last.result_version == outer.result_version
        and all(b.given is a.result and b.given_version == a.result_version for a, b in links)
    )


def _groups(module: nn.Module, children: list[nn.Module]) -> bool:
    """Whether a chain is a stage (of blocks) rather than one block without a residual sum."""
    kinds = [type(c) for c in children if any(True for _ in c.children()) and _has_matrix(c)]
    return (
        isinstance(module, nn.Sequential)
        or any(issubclass(k, nn.Sequential) for k in kinds)
        or len(set(kinds)) < len(kinds)
    )


def _has_matrix(module: nn.Module) -> bool:
    return any(p.ndim >= 2 for p in module.parameters())
