"""The written report: formats, what the page holds, and what it must never hold.

What a browser makes of the page is tested in ``test_browser.py``. Pages are static here, for 5 MB
of plotly tell a parser nothing.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.interactive import chart
from analysis.pareto import pareto_table
from analysis.pictures import curve_pictures, pictures
from analysis.report import write_report
from analysis.rows import experiments, read_runs, rows
from analysis.table import table
from tailor.errors import BadInput
from tests.synthetic_runs import write_nettailor_study, write_run, write_study

EVIL = "<script>alert(1)</script>\"'&|"
VOID = {"meta", "img", "br", "hr", "link"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def said(self, tag: str) -> list[str]:
        return [text for inside, text in self.text if inside == tag]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A study of 18 runs and its static page."""
    root = tmp_path_factory.mktemp("report")
    runs = write_study(root / "runs")
    write_report(runs, root / "report.html", static=True)
    return runs, (root / "report.html").read_text()


def without_logs(runs):
    """Runs without training curves, which take long to draw."""
    for run in runs:
        (run / "log.jsonl").unlink()


def test_json_holds_the_rows_and_nothing_else(tmp_path):
    runs = [write_run(tmp_path / "a", "taps", lam=0.1), write_run(tmp_path / "b", "probe")]
    write_report(runs, tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text()) == {"rows": rows(read_runs(runs))}


def test_an_unknown_suffix_is_bad_input_that_names_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match=r"report.pdf': the suffix must be one of .html, .md, .json"):
        write_report([write_run(tmp_path / "a", "probe")], tmp_path / "report.pdf")


def test_an_unfinished_run_leaves_an_old_report_untouched(tmp_path):
    run = write_run(tmp_path / "a", "probe")
    (run / "result.json").unlink()
    (tmp_path / "report.html").write_text("old")
    with pytest.raises(BadInput, match="not finished"):
        write_report([run], tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "old"


def test_no_temporary_file_stays(tmp_path):
    run = write_run(tmp_path / "a", "probe")
    write_report([run], tmp_path / "out" / "report.html")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.html"]


def test_the_page_is_well_formed_and_titled(written):
    page = Page(written[1])
    assert page.said("h1") == ["digits on resnet18"]
    assert page.said("h2") == [
        "Results",
        "Accuracy against added parameters",
        "Which layers were adapted",
        "How far their weights moved",
        "Whether seeds agree on the layers",
        "What λ did to the scores over training",
        "What a task costs",
        "Training curves",
        "Where the numbers come from",
    ]


def test_the_page_needs_nothing_from_elsewhere(written):
    text = written[1]
    tags = Page(text).tags
    links = [a[k] for _, a in tags for k in ("src", "href", "srcset") if k in a]
    places = {f"#{a['id']}" for _, a in tags if "id" in a}
    assert {link for link in links if not link.startswith("data:image/svg+xml,")} <= places
    assert len(links) == 6 + 12 + 9  # lines of the table, pictures, sections
    assert not any(tag in ("link", "iframe", "object") for tag, _ in Page(text).tags)
    assert "@import" not in text
    assert "url(http" not in text


def test_every_picture_has_an_alternative_text_and_a_table(written):
    tags = Page(written[1]).tags
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert all(attrs["alt"] for attrs in images)
    numbers = [attrs for tag, attrs in tags if attrs.get("class") == "numbers"]
    assert len(numbers) == len(images) == 6 + 6  # figures, and curves of 6 settings


def test_every_figure_has_numbers(written):
    runs = read_runs(written[0])
    drawn = [*pictures(runs, table(rows(runs))), *curve_pictures(runs)]
    assert all(len(picture.numbers) > 0 for picture in drawn)


def test_the_results_table_has_a_line_per_setting_and_its_sort_keys(written):
    page = Page(written[1])
    methods = [text.strip() for text in page.said("th") if text.strip()]
    assert methods[:6] == ["finetune", "scratch", "probe", "taps λ=0.1", "taps λ=0.3", "taps λ=1"]
    keys = [float(attrs["data-key"]) for tag, attrs in page.tags if "data-key" in attrs]
    assert keys[1] == pytest.approx(97.2)  # fine-tuning: seeds, then test accuracy


def test_the_trade_off_of_the_headline_is_starred(written):
    page = Page(written[1])
    assert page.said("span") == ["★"]
    assert len([1 for tag, attrs in page.tags if tag == "tr" and attrs.get("class")]) == 1


def test_every_command_is_told(written):
    told = Page(written[1]).said("code")
    assert told == [run.result["command"] for run in read_runs(written[0])]


def test_what_a_page_is_made_of_is_installed_with_the_package():
    folder = Path(__file__).parents[1]
    told = tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["setuptools"]
    parts = {path.suffix for path in (folder / "analysis").iterdir() if path.is_file()} - {".py"}
    assert {f"*{suffix}" for suffix in parts} == set(told["package-data"]["analysis"])


def test_names_from_run_directories_cannot_break_the_page(tmp_path):
    pages = []
    for name in ("harmless", EVIL):
        names = {"task": name, "backbone": name, "command": name, "fingerprint": "<i>"}
        run = write_run(tmp_path / f"a{len(pages)}", name, lam=0.1, epochs=0, **names)
        write_report([run], tmp_path / "report.html")
        pages.append(Page((tmp_path / "report.html").read_text()))
    tags = [[tag for tag, _ in page.tags] for page in pages]
    assert tags[0] == tags[1]  # no name made an element
    assert tags[0].count("script") == 4  # the table's, data, plotly, the chart's
    assert pages[1].said("h1") == [f"{EVIL} on {EVIL}"]
    assert pages[1].said("code") == [EVIL]


def test_plotly_stands_in_a_page_once_and_not_at_all_in_a_static_one(written, tmp_path):
    runs = [write_run(tmp_path / "a", "probe", epochs=0)]
    runs += [write_run(tmp_path / "b", "probe", epochs=0, backbone="other")]
    write_report(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert text.count("<div class='chart'") == 2
    assert text.count("* plotly.js v") == 1
    assert "plotly.js v" not in written[1]


def test_a_chart_tells_what_the_pareto_table_tells(tmp_path):
    runs = read_runs(write_study(tmp_path))
    frame = table(rows(runs))
    members = dict(zip(frame.index, (group for _, group in experiments(runs)), strict=True))
    data = json.loads(chart(frame, members))
    expected = pareto_table(frame)
    assert [(p["accuracy"], p["half"], p["cost"]["params"]) for p in data["points"]] == [
        (line["accuracy"], line["ci95"], line["cost"]) for line in expected.to_dict("records")
    ]
    assert [p["front"]["params"] for p in data["points"]] == list(expected["front"])
    # Three seeds 0.4 points apart: t of 2 degrees of freedom is 4.3027, over the root of 3.
    assert data["points"][0]["half"] == pytest.approx(4.3027 * 0.4 / 3**0.5, rel=1e-4)
    assert [cost["key"] for cost in data["costs"]] == ["params"]  # MACs are the same for all


def test_a_chart_offers_macs_first_where_methods_remove_blocks(tmp_path):
    runs = read_runs(write_nettailor_study(tmp_path, epochs=2))
    frame = table(rows(runs))
    members = dict(zip(frame.index, (group for _, group in experiments(runs)), strict=True))
    data = json.loads(chart(frame, members))
    assert [cost["key"] for cost in data["costs"]] == ["params", "macs"]
    assert data["start"] == 1


def test_every_line_leads_to_its_runs(written):
    runs, text = read_runs(written[0]), written[1]
    tags = Page(text).tags
    leads = [a["href"] for tag, a in tags if tag == "a" and "#runs" in (a.get("href") or "")]
    ids = [f"#{a['id']}" for tag, a in tags if tag == "details" and "id" in a]
    assert leads == ids == [f"#runs-{i}" for i in range(6)]
    part = text[text.index("id='runs-3'") : text.index("id='runs-4'")]
    wanted = [run for run in runs if run.result["lam"] == 0.1]
    assert len(wanted) == 3 == part.count("<code>")
    assert all(f"Run {run.path} · Seed {run.result['seed']}" in part for run in wanted)


def test_lines_that_a_later_stage_follows_can_be_hidden(tmp_path):
    runs = write_study(tmp_path / "runs", stages=True)
    without_logs(runs)
    write_report(runs, tmp_path / "report.html", static=True)
    tags = Page((tmp_path / "report.html").read_text()).tags
    lines = [attrs for tag, attrs in tags if tag == "tr" and "data-earlier" in attrs]
    assert len(lines) == 3  # TAPS as adapted, at three λ


def test_a_sweep_tells_what_it_tried_and_how_far_it_is(tmp_path):
    runs = write_study(tmp_path / "sweep")
    without_logs(runs)
    (runs[0] / "result.json").unlink()
    space = {"task": ["digits"], "method": ["taps"], "lam": [0.1, 0.3], "seed": [0, 1, 2]}
    space |= {"backbone": {"resnet18": "ab12cd34ef56"}, "rule": [], "train": {"epochs": 3}}
    study = {"storage": "sqlite:///<b>", "command": "tailor sweep --task digits", "space": space}
    about = {"schema": 1, "studies": {"first": study}}
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps(about))
    write_report([tmp_path / "sweep"], tmp_path / "report.html", static=True)
    page = Page((tmp_path / "report.html").read_text())
    told = dict(zip(page.said("dt"), page.said("dd"), strict=True))
    assert told == {
        "Sweep": f"first, in {tmp_path / 'sweep'}",
        "Command": "tailor sweep --task digits",
        "Tasks": "digits",
        "Backbones": "resnet18 (ab12cd34)",
        "Methods": "taps",
        "λ": "0.1, 0.3",
        "Seeds": "0, 1, 2",
        "Training": "epochs 3",
        "Database": "sqlite:///<b>",
        "Runs": "17 finished, 1 begun but not finished",
    }


def test_markdown_has_the_table_and_every_picture_it_names(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", "taps", lam=0.1, seed=seed) for seed in range(2)]
    write_report(runs, tmp_path / "my report.md")
    text = (tmp_path / "my report.md").read_text()
    assert "| taps λ=0.1 | 2 | 97.2 ± 0.3 |" in text  # .97 and .974: sample deviation .28
    named = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    files = {f"my%20report_files/{p.name}" for p in (tmp_path / "my report_files").iterdir()}
    assert set(named) == files
    assert len(named) == 6


def test_backbones_have_figures_of_their_own(tmp_path):
    layer = {"name": "fc", "kind": "linear", "params": 10, "macs": 10}
    runs = [
        write_run(tmp_path / "a", "taps", lam=0.1),
        write_run(tmp_path / "b", "taps", lam=0.1, backbone="tiny", layers=[layer]),
    ]
    read = read_runs(runs)
    names = [picture.name for picture in pictures(read, table(rows(read)))]
    assert names == [
        "pareto-1", "layers-1", "change-1", "budget-1", "pareto-2", "layers-2", "change-2",
        "budget-2",
    ]  # fmt: skip


def test_networks_with_removed_blocks_are_drawn_once_per_task(tmp_path):
    runs = write_nettailor_study(tmp_path / "runs", "svhn", epochs=2)
    runs += write_nettailor_study(tmp_path / "runs", "flowers", epochs=2)
    write_report(runs, tmp_path / "report.html", static=True)
    assert Page((tmp_path / "report.html").read_text()).said("h2") == [
        "Results",
        "Accuracy against added parameters",
        "Accuracy against MACs",
        "The tailored network of flowers",
        "The tailored network of svhn",
        "Which blocks were kept",
        "Whether seeds and tasks agree on the blocks",
        "What λ did to the gates over training",
        "What a task costs",
        "Training curves",
        "Where the numbers come from",
    ]


def test_the_network_drawn_is_retrained_and_of_the_median_seed(tmp_path):
    runs = read_runs(write_nettailor_study(tmp_path, epochs=2))
    drawn = {p.name: p for p in pictures(runs, table(rows(runs)))}["architecture"]
    # Seeds 0, 1 and 2 are at .965, .969 and .961.
    assert drawn.figure.axes[0].texts[1].get_text() == "nettailor λ=0.3 retrained, seed 0"
    assert "Of 3 seeds this one has the median accuracy." in drawn.text
    assert f"tailor draw {tmp_path}/digits/nettailor-retrained-0 --out network.gif" in drawn.text
    assert list(drawn.numbers["Kept"]).count("no") == 7


def test_a_page_of_one_setting_has_no_star_and_no_rule(tmp_path):
    runs = write_nettailor_study(tmp_path / "runs", epochs=2)
    write_report(runs, tmp_path / "report.html", static=True)
    text = (tmp_path / "report.html").read_text()
    assert "★" not in text
    assert "star" not in Page(text).said("section")
    assert "Named is the setting" not in text


def test_runs_that_know_almost_nothing_still_make_a_page(tmp_path):
    nothing = dict.fromkeys(
        ("val", "test", "macs", "bytes", "seconds", "lam", "price", "fingerprint", "command")
    )
    run = write_run(tmp_path / "a", "probe", epochs=0, layer_states=[], **nothing)
    write_report([run], tmp_path / "report.html", static=True)
    page = Page((tmp_path / "report.html").read_text())
    assert "digits on resnet18: probe reaches an unknown accuracy." in page.said("p")
    assert page.said("h2") == ["Results", "What a task costs", "Where the numbers come from"]


def test_a_report_that_cannot_be_written_is_bad_input(tmp_path):
    run = write_run(tmp_path / "a", "probe")
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match=r"report\.html"):
        write_report([run], tmp_path / "file" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(BadInput, match=r"folder\.html' is a folder"):
        write_report([run], tmp_path / "folder.html")


def test_worth_is_told_where_it_was_measured_and_nowhere_else(tmp_path):
    run = write_run(tmp_path / "a", "taps", lam=1.0, epochs=0)
    read = read_runs([run])
    assert "worth" not in [p.name for p in pictures(read, table(rows(read)))]
    (run / "student.safetensors").write_bytes(b"weights")
    open_ = [s["name"] for s in read[0].result["layer_states"] if s["on"]]
    parts = [
        {"name": name, "kind": "delta", "value": 0.9 - 0.01 * i, "also": [], "lost": 3, "gained": 1}
        for i, name in enumerate(open_)
    ]
    told = {"schema": 1, "metric": "top1", "n": 100, "value": 0.9, "parts": parts, "needed": []}
    told |= {"split": "val", "student": hashlib.sha256(b"weights").hexdigest(), "seconds": 1.0}
    (run / "worth-val.json").write_text(json.dumps(told))
    found = {p.name: p for p in pictures(read, table(rows(read)))}["worth"]
    assert found.title == "What each of the layers is worth"
    assert [float(worth) for worth in found.numbers["worth"]] == list(range(len(open_)))
    (run / "worth-val.json").write_text("{")
    with pytest.raises(BadInput, match=r"worth-val\.json"):
        write_report([run], tmp_path / "report.html")
