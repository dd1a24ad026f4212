"""The diagram of a tailored network: what it shows, where it lies, and that it can be read."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from matplotlib.patches import FancyBboxPatch, PathPatch
from PIL import Image

from analysis.architecture import animate, architecture, draw, frames
from analysis.blocks import gates_table
from analysis.diagram import Said, diagram
from analysis.plan import REST, WIDTH, plan, shape_name
from analysis.rows import read_runs
from tailor.cli import main
from tailor.errors import BadInput
from tests.synthetic_runs import network_gates, resnet_blocks, write_nettailor, write_run

GAP = 4  # pixels, at 100 per inch
SIZES = {  # depth, skips
    "8 blocks": (18, 3),
    "12 blocks": (26, 5),
    "16 blocks": (34, 3),
    "33 blocks": (101, 5),
    "16 blocks, dense": (34, 16),
    "33 blocks, dense": (101, 33),
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """ResNet-34 with 3 skips, 7 of 16 blocks gone, retrained for 8 epochs."""
    out = tmp_path_factory.mktemp("runs") / "pruned"
    return read_runs([write_nettailor(out, stage="retrained")])[0]


def one(path, **options):
    return read_runs([write_nettailor(path, **options)])[0]


def placed(depth: int, skips: int):
    """The plan of an unpruned ResNet whose blocks have proxies from ``skips`` nodes."""
    blocks = resnet_blocks(depth)
    gates = network_gates(blocks, skips, 1.0, 0)
    proxies = {tuple(p.split("<-"))[::-1]: g for p, g in gates.items() if "<-" in p}
    return plan(blocks, proxies), proxies


def boxes(figure):
    return {p.get_gid(): p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch)}


def arcs(figure):
    return {p.get_gid(): p for p in figure.axes[0].patches if isinstance(p, PathPatch)}


# The table ------------------------------------------------------------------------------------


def test_the_gates_of_every_block_sum_to_one_before_pruning(tmp_path):
    table = gates_table(one(tmp_path / "a"))
    assert len(table) == 16 + 45  # blocks and proxies of ResNet-34 with 3 skips
    assert table.groupby("block")["gate"].sum().tolist() == pytest.approx([1.0] * 16)
    assert table["kept"].all()


def test_a_block_that_is_gone_keeps_its_line_and_its_cost(pruned):
    table = gates_table(pruned).set_index("path")
    gone = table[~table["kept"]]
    assert len(gone) == 7
    assert gone["gate"].isna().all()
    # layer2.2 of ResNet-34: two 3x3 convolutions of 128 channels and their norms.
    assert gone.loc["layer2.2", "params"] == 2 * (9 * 128 * 128) + 2 * 2 * 128
    assert list(dict.fromkeys(table["block"])) == [b["name"] for b in pruned.result["blocks"]]


def test_a_proxy_follows_the_universal_path_of_its_block(tmp_path):
    table = gates_table(one(tmp_path / "a"))
    first = ["layer1.0", "layer1.0<-stem", "layer1.1", "layer1.1<-layer1.0", "layer1.1<-stem"]
    assert list(table["path"])[:5] == first


# The plan -------------------------------------------------------------------------------------


def test_rows_hold_whole_stages_where_they_fit():
    found = [
        [[group.name for group in row.groups] for row in placed(*SIZES[size])[0].rows]
        for size in ("8 blocks", "16 blocks")
    ]
    assert found == [
        [["layer1", "layer2"], ["layer3", "layer4"]],
        [["layer1", "layer2"], ["layer3"], ["layer4"]],
    ]


def test_a_stage_of_23_blocks_takes_four_even_rows():
    rows = placed(101, 5)[0].rows
    assert [len(row.boxes) for row in rows] == [7, 6, 6, 5, 6, 3]


@pytest.mark.parametrize("size", SIZES)
def test_every_block_is_placed_once_in_network_order(size):
    found = placed(*SIZES[size])[0]
    names = [name for row in found.rows for name in row.boxes]
    assert names == [block["name"] for block in resnet_blocks(SIZES[size][0])]
    for row in found.rows:
        assert list(row.nodes.values()) == sorted(row.nodes.values())
        assert 0 < min(row.boxes.values()) < max(row.nodes.values()) < WIDTH


@pytest.mark.parametrize("size", SIZES)
def test_every_arc_leads_from_its_source_to_the_right(size):
    found, proxies = placed(*SIZES[size])
    for source, target in proxies:
        start, end, _, _ = found.arc(source, target)
        row = found.row_of(target)
        assert start < end == row.nodes[target]
        assert start == row.nodes[source if source in row.nodes else REST]


def test_an_arc_over_more_blocks_passes_higher():
    found = placed(101, 33)[0]
    heights = [found.arc(source, "layer4.2")[3] for source in list(found.order)[:-1]]
    assert heights == sorted(heights, reverse=True)
    assert len(set(heights)) == 33


def test_weak_sources_of_a_dense_network_share_one_entry():
    rows = placed(34, 16)[0].rows
    assert [row.entries for row in rows] == [
        ("stem",),
        (REST, "layer1.1", "layer2.0", "layer2.1", "layer2.2", "layer2.3"),
        (REST, "layer3.0", "layer3.2", "layer3.3", "layer3.4", "layer3.5"),
    ]


def test_a_row_of_three_skips_shows_the_three_nodes_before_it():
    assert placed(34, 3)[0].rows[1].entries == ("layer2.1", "layer2.2", "layer2.3")


def test_shapes_in_words():
    shapes = [(64, 56, 56), (56, 56, 96), (128, 28, 14), (197, 384)]
    assert [shape_name(s) for s in shapes] == ["64 × 56²", "96 × 56²", "128 × 28×14", "384 × 197"]


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["layer1.0", "layer1.1"], ["1.0", "1.1"]),
        (["stages.2.blocks.17", "stages.3.blocks.0"], ["2.17", "3.0"]),
        (["a.0", "b.0"], ["1", "2"]),  # numbers alone would be ambiguous
        (["mixed", "pool"], ["1", "2"]),
    ],
)
def test_short_names_are_unique(names, short):
    found = plan([{"name": name, "out_shape": [8, 4, 4]} for name in names], {})
    assert [found.short[name] for name in names] == short


# The picture ----------------------------------------------------------------------------------


def test_kept_blocks_are_solid_with_their_gate_and_others_a_faint_outline(pruned):
    figure = architecture(pruned)
    table = gates_table(pruned).set_index("path")
    said = [text.get_text() for text in figure.axes[0].texts]
    for name, box in boxes(figure).items():
        if name not in table.index:
            continue
        solid = box.get_facecolor()[3] > 0
        assert solid == (box.get_linestyle() == "-") == table.loc[name, "kept"]
        if solid:
            assert box.get_facecolor()[3] == pytest.approx(0.06 + 0.44 * table.loc[name, "gate"])
            assert f"{table.loc[name, 'gate']:.2f}" in said
    assert {"stem", "head", *table.index[~table.index.str.contains("<-")]} <= boxes(figure).keys()


def test_every_proxy_is_an_arc_as_wide_as_its_gate(pruned):
    table = gates_table(pruned).set_index("path")["gate"]
    proxies = table[table.index.str.contains("<-")]
    drawn = arcs(architecture(pruned))
    assert drawn.keys() == set(proxies.index)
    for path, gate in proxies.items():
        assert drawn[path].get_linewidth() == pytest.approx(0.5 + 3.5 * gate)
        assert drawn[path].get_alpha() == pytest.approx(0.2 + 0.8 * math.sqrt(gate))


def test_arcs_begin_and_end_at_the_nodes_of_their_path(pruned):
    figure = architecture(pruned)
    blocks = boxes(figure)
    # Both in one row: from right of the source's box to right of the target's, over it.
    x, y = arcs(figure)["layer1.1<-layer1.0"].get_path().vertices.T
    assert blocks["layer1.0"].get_x() < x[0] < blocks["layer1.1"].get_x() < x[-1]
    assert x[-1] < blocks["layer1.2"].get_x()
    assert y[0] == y[-1] == pytest.approx(blocks["layer1.1"].get_y() + 0.15)
    assert 0.75 * (y[1] - y[0]) > 0.15  # a cubic reaches three quarters: above the box


def test_the_title_tells_task_accuracy_and_what_is_left(tmp_path):
    changes = {"params": {"universal": 2000, "task": 300, "head": 50, "network": 900}}
    changes["macs"] = {"backbone": 1000, "student": 385}
    run = one(tmp_path / "a", stage="retrained", seed=2, task="svhn", test=0.9653, **changes)
    said = [text.get_text() for text in architecture(run).axes[0].texts][:3]
    assert said == [
        "svhn on resnet34",
        "nettailor λ=0.3 retrained, seed 2",
        "96.5 % test · 9 of 16 blocks · 38 % of MACs · 45 % of parameters",
    ]


def test_stages_tell_channels_and_resolution(pruned):
    said = {text.get_text() for text in architecture(pruned).axes[0].texts}
    assert {"layer1: 64 × 16²", "layer2: 128 × 8²", "layer3: 256 × 4²", "layer4: 512 × 2²"} <= said
    assert {"64 px", "10 classes"} <= said


@pytest.mark.parametrize(
    ("size", "stage"), [*((size, "adapt") for size in SIZES), ("33 blocks, dense", "retrained")]
)
def test_no_words_cover_each_other_or_leave_the_paper(tmp_path, size, stage):
    depth, skips = SIZES[size]
    run = one(tmp_path / "a", depth=depth, skips=skips, stage=stage, remove=20)
    figure = architecture(run)
    assert_words_stand_apart(figure)


def test_where_numbers_have_no_room_the_strongest_stay(tmp_path):
    blocks = resnet_blocks(101)
    names = ["stem", *(block["name"] for block in blocks)]
    random = np.random.RandomState(0)
    proxies = {pair: random.uniform(0.05, 0.5) for pair in itertools.combinations(names, 2)}
    gates = {f"{target}<-{source}": gate for (source, target), gate in proxies.items()}
    strong = max(gates, key=gates.__getitem__)
    gates[strong] = 0.77
    figure = diagram(plan(blocks, proxies), gates, Said("many", "proxies", "everywhere"))
    assert_words_stand_apart(figure)
    told = [text.get_text() for text in figure.axes[0].texts if text.get_text().startswith(".")]
    assert ".77" in told
    assert 50 < len(told) < len(gates)


def assert_words_stand_apart(figure):
    figure.draw_without_rendering()
    texts = [text for text in figure.axes[0].texts if text.get_text()]
    areas = [text.get_window_extent() for text in texts]
    for (a, first), (b, second) in itertools.combinations(zip(areas, texts, strict=True), 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert width <= -GAP or height <= 0, (first.get_text(), second.get_text())
    inside = figure.bbox
    assert all(inside.x0 <= a.x0 and a.x1 <= inside.x1 for a in areas)
    assert all(inside.y0 <= a.y0 and a.y1 <= inside.y1 for a in areas)


def test_the_smallest_words_are_eight_pixels_high_on_a_phone(pruned):
    figure = architecture(pruned)
    smallest = min(text.get_fontsize() for text in figure.axes[0].texts)
    assert smallest / 72 * 400 / figure.get_figwidth() > 8


@pytest.mark.parametrize(("skips", "least"), [(3, 0.05), (1, 0.0)])
def test_of_many_proxies_those_from_the_threshold_up_have_numbers(tmp_path, skips, least):
    run = one(tmp_path / "a", depth=18, skips=skips)  # 21 or 8 proxies
    said = [text.get_text() for text in architecture(run).axes[0].texts]
    proxies = gates_table(run).set_index("path")["gate"].filter(like="<-")
    assert proxies.min() < 0.05
    told = [f"{gate:.2f}"[1:] for gate in proxies if gate >= least]
    assert sorted(text for text in said if text.startswith(".")) == sorted(told)


@pytest.mark.parametrize("name", ["_hidden $x^$", "漢字 😀\nb", "<b>&\"'"])
def test_any_name_can_be_drawn(tmp_path, name):
    blocks = [b | {"name": f"{name}.{i}"} for i, b in enumerate(resnet_blocks(18))]
    run = one(tmp_path / "a", blocks=blocks, task=name, backbone=name)
    for suffix in (".svg", ".png"):
        assert draw(run.path, tmp_path / f"out{suffix}")["blocks"] == 8


# Over training --------------------------------------------------------------------------------


def test_a_frame_per_epoch_all_of_one_layout(tmp_path):
    found = [np.asarray(frame) for frame in frames(one(tmp_path / "a", depth=18, epochs=3))]
    assert len(found) == 3
    assert found[0].shape[1] == round(110 * WIDTH)
    differ = (found[0] != found[2]).any(axis=(1, 2))
    assert differ.any()
    assert not differ[-25:].any()  # the legend stays where it is


def test_the_animation_is_small_repeats_and_holds_its_end(tmp_path):
    run = one(tmp_path / "a", depth=34, skips=3, epochs=20)
    animate(run, tmp_path / "a.gif")
    assert (tmp_path / "a.gif").stat().st_size < 300_000  # ResNet-101: 700 kB
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 20
        assert gif.info["loop"] == 0
        shown, paper = [], []
        for i in range(20):
            gif.seek(i)
            shown.append(gif.info["duration"])
            paper.append(gif.convert("RGB").getpixel((0, 0)))
    assert shown == [250] * 19 + [3000]
    assert set(paper) == {(255, 255, 255)}


def test_a_pruned_run_has_nothing_to_animate(tmp_path):
    run = write_nettailor(tmp_path / "a", stage="pruned")
    with pytest.raises(BadInput, match=r"a' was pruned, not trained, .*draw it as \.svg"):
        draw(run, tmp_path / "out.gif")


def test_a_log_without_gates_is_said(tmp_path):
    run = write_nettailor(tmp_path / "a", logged=False)
    with pytest.raises(BadInput, match="logged no gates, so there is nothing to animate"):
        draw(run, tmp_path / "out.gif")
    assert draw(run, tmp_path / "out.svg")["blocks_kept"] == 16


# The verb -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["taps", "finetune"])
def test_a_method_without_paths_is_sent_to_the_report(tmp_path, method):
    run = write_run(tmp_path / "a", method, lam=0.1 if method == "taps" else None)
    with pytest.raises(BadInput, match=rf"method {method} .*`tailor report .*heat map") as caught:
        draw(run, tmp_path / "out.svg")
    assert "\n" not in str(caught.value)


def test_a_run_that_lists_no_blocks_is_named(tmp_path):
    run = write_nettailor(tmp_path / "old", blocks=resnet_blocks(18))
    result = json.loads((run / "result.json").read_text())
    del result["blocks"]
    (run / "result.json").write_text(json.dumps(result))
    with pytest.raises(BadInput, match=r"old/result\.json lists no blocks"):
        draw(run, tmp_path / "out.svg")


@pytest.mark.parametrize("name", ["out.jpg", "out"])
def test_another_suffix_is_refused_with_the_known_ones(tmp_path, name):
    with pytest.raises(BadInput, match=r"must be one of \.png, \.svg, \.pdf, \.gif"):
        draw(tmp_path, tmp_path / name)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "out.svg").mkdir()
    with pytest.raises(BadInput, match="is a folder"):
        draw(tmp_path, tmp_path / "out.svg")


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<svg"), (".pdf", b"%PDF")]
)
def test_the_suffix_decides_the_format(tmp_path, pruned, suffix, start):
    out = tmp_path / f"out{suffix}"
    said = draw(pruned.path, out)
    assert out.read_bytes().startswith(start)
    assert said == {
        "run": str(pruned.path), "out": str(out), "bytes": out.stat().st_size, "blocks": 16,
        "blocks_kept": 9,
    }  # fmt: skip


def test_a_drawn_file_has_paper_of_its_own(tmp_path, pruned):
    draw(pruned.path, tmp_path / "out.svg")
    text = (tmp_path / "out.svg").read_text()
    assert "prefers-color-scheme" not in text
    assert "#ffffff" in text


def test_the_command_draws_and_tells_it_to_machines(tmp_path, pruned, capsys):
    out = tmp_path / "network.svg"
    assert main(["draw", str(pruned.path), "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocks_kept"] == 9
    assert main(["draw", str(pruned.path), "--out", str(tmp_path / "network.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
