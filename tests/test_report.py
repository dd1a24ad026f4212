"""The written report: formats, what the page holds, and what it must never hold."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest

from analysis.pictures import curve_pictures, pictures
from analysis.report import write_report
from analysis.rows import read_runs, rows
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
    """A study of 18 runs and its page."""
    root = tmp_path_factory.mktemp("report")
    runs = write_study(root / "runs")
    write_report(runs, root / "report.html")
    return runs, (root / "report.html").read_text()


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
        "What a task costs",
        "Training curves",
        "Where the numbers come from",
    ]


def test_the_page_needs_nothing_from_elsewhere(written):
    text = written[1]
    links = [a[k] for _, a in Page(text).tags for k in ("src", "href", "srcset") if k in a]
    assert links
    assert all(link.startswith("data:image/svg+xml,") for link in links)
    assert not any(tag in ("link", "iframe", "object") for tag, _ in Page(text).tags)
    assert "@import" not in text
    assert "url(http" not in text


def test_every_picture_has_an_alternative_text_and_a_table(written):
    tags = Page(written[1]).tags
    images = [attrs for tag, attrs in tags if tag == "img"]
    assert all(attrs["alt"] for attrs in images)
    numbers = [attrs for tag, attrs in tags if attrs.get("class") == "numbers"]
    assert len(numbers) == len(images) == 4 + 6  # figures, and curves of 6 settings


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


def test_names_from_run_directories_cannot_break_the_page(tmp_path):
    names = {"task": EVIL, "backbone": EVIL, "command": EVIL, "fingerprint": "<i>"}
    run = write_run(tmp_path / "a", EVIL, lam=0.1, **names)
    write_report([run], tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1  # the one that sorts
    assert "i" not in {tag for tag, _ in page.tags}
    assert page.said("h1") == [f"{EVIL} on {EVIL}"]
    assert page.said("code") == [EVIL]


def test_markdown_has_the_table_and_every_picture_it_names(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", "taps", lam=0.1, seed=seed) for seed in range(2)]
    write_report(runs, tmp_path / "my report.md")
    text = (tmp_path / "my report.md").read_text()
    assert "| taps λ=0.1 | 2 | 97.2 ± 0.3 |" in text  # .97 and .974: sample deviation .28
    named = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    files = {f"my%20report_files/{p.name}" for p in (tmp_path / "my report_files").iterdir()}
    assert set(named) == files
    assert len(named) == 5


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
    write_report(runs, tmp_path / "report.html")
    assert Page((tmp_path / "report.html").read_text()).said("h2") == [
        "Results",
        "Accuracy against added parameters",
        "Accuracy against MACs",
        "The tailored network of flowers",
        "The tailored network of svhn",
        "Which blocks were kept",
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
    write_report(write_nettailor_study(tmp_path / "runs", epochs=2), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "★" not in text
    assert "star" not in Page(text).said("section")
    assert "Named is the setting" not in text


def test_runs_that_know_almost_nothing_still_make_a_page(tmp_path):
    nothing = dict.fromkeys(
        ("val", "test", "macs", "bytes", "seconds", "lam", "price", "fingerprint", "command")
    )
    run = write_run(tmp_path / "a", "probe", epochs=0, layer_states=[], **nothing)
    write_report([run], tmp_path / "report.html")
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
