"""Paths: the graph that NetTailor prunes. Nodes are block outputs, paths are what computes them.

Node 0 is the stem's output, node l the output of block l. The *universal* path into node l comes
from node l - 1; *proxies* come from the ``max_skip`` nodes before. What lies on no way from the
stem to the last block computes nothing, whatever its gate says. Pure functions; no tensors.

Source: NetTailor, Morgado & Vasconcelos, CVPR 2019, Sec. 3.2 and 3.5 (input and output exclusion).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

STEM = "stem"


@dataclass(frozen=True)
class Path:
    """One way from one node to a later one."""

    name: str  # the block's name, or TARGET<-SOURCE for a proxy
    kind: Literal["universal", "proxy"]
    source: int
    target: int


def all_paths(blocks: Sequence[str], max_skip: int) -> tuple[Path, ...]:
    """Every path of the unpruned network: per block the universal one, then proxies, nearest first.

    Args:
        blocks: names of the L blocks, in order.
        max_skip: proxies come from at most this many nodes; block l has min(l, max_skip).
    """
    nodes = (STEM, *blocks)
    found = []
    for target in range(1, len(nodes)):
        found.append(Path(nodes[target], "universal", target - 1, target))
        for source in range(target - 1, max(target - 1 - max_skip, -1), -1):
            found.append(Path(f"{nodes[target]}<-{nodes[source]}", "proxy", source, target))
    return tuple(found)


def alive(paths: Iterable[Path], last: int) -> tuple[Path, ...]:
    """The paths on some way from the stem (node 0) to node ``last``; empty if there is none.

    Input exclusion drops what starts where nothing arrives, output exclusion what ends where
    nothing leaves.
    """
    paths = tuple(paths)
    reached, needed = {0}, {last}
    for path in sorted(paths, key=lambda p: p.source):
        if path.source in reached:
            reached.add(path.target)
    for path in sorted(paths, key=lambda p: -p.target):
        if path.target in needed:
            needed.add(path.source)
    return tuple(p for p in paths if p.source in reached and p.target in needed)


def connection(
    paths: Sequence[Path], gates: Mapping[str, float], kept: Collection[str], last: int
) -> tuple[Path, ...]:
    """The way from the stem to node ``last`` that brings back the least of what was removed.

    Among the ways with the fewest removed universal blocks (a rule asked for their removal, and a
    proxy is cheap), those through the most kept ones (around which nothing would be left to do);
    among these the one with the largest product of gates, where a kept path counts as 1.

    Args:
        paths: all of them, removed ones too.
        gates: path name -> gate in [0, 1].
        kept: names of paths that stay anyway.
        last: node to reach.
    """
    # Node -> (minus removed blocks, kept blocks, product of gates), larger is better; and the way.
    best: dict[int, tuple[tuple[int, int, float], tuple[Path, ...]]] = {0: ((0, 0, 1.0), ())}
    for path in sorted(paths, key=lambda p: (p.source, p.target)):
        if path.source in best:
            (removed, through, strength), way = best[path.source]
            stays, block = path.name in kept, path.kind == "universal"
            removed -= block and not stays
            through += block and stays
            strength *= 1.0 if stays else gates[path.name]
            rank = (removed, through, strength)
            if path.target not in best or rank > best[path.target][0]:
                best[path.target] = rank, (*way, path)
    return best[last][1]
