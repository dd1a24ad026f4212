"""The graph of paths: who feeds whom, what is dead, and how a cut network is joined again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tailor.paths import Path, alive, all_paths, connection

BLOCKS = ("a", "b", "c", "d")
PATHS = all_paths(BLOCKS, 2)
BY_NAME = {p.name: p for p in PATHS}


def names(paths):
    return [p.name for p in paths]


def test_every_block_has_its_universal_path_and_the_nearest_proxies():
    assert names(PATHS) == [
        *("a", "a<-stem"),
        *("b", "b<-a", "b<-stem"),
        *("c", "c<-b", "c<-a"),
        *("d", "d<-c", "d<-b"),
    ]


def test_block_l_has_min_l_and_max_skip_proxies():
    # 16 blocks, 3 skips: 1 + 2 + 14 * 3 = 45 proxies; dense: 1 + 2 + ... + 16 = 136
    blocks = [str(i) for i in range(16)]
    count = {k: sum(p.kind == "proxy" for p in all_paths(blocks, k)) for k in (1, 3, 5, 16, 99)}
    assert count == {1: 16, 3: 45, 5: 70, 16: 136, 99: 136}


def test_what_nothing_arrives_at_is_excluded():
    kept = [BY_NAME[n] for n in ("a", "c<-a", "d", "d<-b")]  # nothing computes node b
    assert names(alive(kept, 4)) == ["a", "c<-a", "d"]


def test_what_nobody_uses_is_excluded():
    kept = [BY_NAME[n] for n in ("a", "b", "c", "c<-a", "d<-b")]  # nobody uses node c
    assert names(alive(kept, 4)) == ["a", "b", "d<-b"]


def test_a_network_cut_in_two_has_no_live_path():
    assert alive([BY_NAME[n] for n in ("a", "b", "d")], 4) == ()


def test_the_connection_takes_kept_paths_and_the_strongest_of_the_others():
    gates = dict.fromkeys(BY_NAME, 0.1) | {"c<-b": 0.6, "c": 0.9, "d<-b": 0.5}
    # stem -a- b, then the direct skip .5 beats .6 * .1 through node c.
    assert names(connection(PATHS, gates, {"a", "b"}, 4)) == ["a", "b", "d<-b"]
    # The removed block c has the larger gate, but a proxy comes back before a block does.
    assert names(connection(PATHS, gates, {"a", "b", "d"}, 4)) == ["a", "b", "c<-b", "d"]
    # A stronger skip around a kept block would orphan it.
    around = gates | {"d<-b": 0.99, "c<-b": 0.01}
    assert names(connection(PATHS, around, {"a", "b", "d"}, 4)) == ["a", "b", "c<-b", "d"]
    blocks_only = [p for p in PATHS if p.kind == "universal"]
    assert names(connection(blocks_only, gates, {"a", "b", "d"}, 4)) == ["a", "b", "c", "d"]


def _ways(paths, node, last):
    if node == last:
        yield ()
    for path in paths:
        if path.source == node:
            yield from ((path, *rest) for rest in _ways(paths, path.target, last))


@settings(max_examples=60, deadline=None)
@given(kept=st.sets(st.sampled_from(sorted(BY_NAME))))
def test_alive_paths_are_those_on_some_way_through(kept):
    paths = [BY_NAME[n] for n in sorted(kept)]
    on_a_way: set[Path] = {p for way in _ways(paths, 0, 4) for p in way}
    assert set(alive(paths, 4)) == on_a_way
