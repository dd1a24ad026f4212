"""The written report in a real browser without a network: Chromium, through selenium.

What the page says is tested in ``test_report.py``; here is what it does. Skipped, with a reason,
where there is no Chromium.
"""

from __future__ import annotations

import re

import numpy as np
import pytest

from analysis.pareto import pareto_table
from analysis.report import write_report
from analysis.rows import read_runs, rows
from analysis.table import table
from tests import browser
from tests.synthetic_runs import write_nettailor_study, write_run, write_study

EVIL = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>&<b>"
TAPS, BLOCKS = 0, 1  # the charts of the page, one per backbone
LINES = 3 + 3 * 2 + 4  # references, TAPS adapted and retrained at three λ, NetTailor


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page on 39 runs of two backbones, and what it is about; no curves, for they take long."""
    root = tmp_path_factory.mktemp("browser")
    runs = [*write_study(root / "taps", stages=True), *write_nettailor_study(root / "nettailor")]
    for run in runs:
        (run / "log.jsonl").unlink()
    write_report(runs, root / "report.html")
    return root / "report.html", table(rows(read_runs(runs)))


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as page:
        yield page


@pytest.fixture
def page(chromium, written):
    """The page as it opens on a desk."""
    chromium.media()
    chromium.size(1600)
    chromium.open(written[0])
    chromium.wait("document.querySelectorAll('.plot .points path').length")
    return chromium


def column(page, title):
    """The texts of a column of the results, from top to bottom, and its title's ``aria-sort``."""
    return page.run(
        """const heads = [...document.querySelectorAll('#results thead th')];
        const at = heads.findIndex(head => head.innerText.trim().startsWith(arguments[0]));
        return [[...document.querySelectorAll('#results tbody tr')].filter(row => !row.hidden)
          .map(row => row.cells[at].textContent), heads[at].getAttribute('aria-sort')]""",
        title,
    )


def button(page, title):
    heads = page.driver.find_elements("css selector", "#results thead button")
    return next(head for head in heads if head.text.startswith(title))


def shown(page, selector):
    """How many elements that fit ``selector`` can be seen, were they scrolled to."""
    found = "[...document.querySelectorAll(arguments[0])]"
    return page.run(f"return {found}.filter(part => part.checkVisibility()).length", selector)


def hover(page, chart, series, place):
    """Point at a mark of a chart's first panel; the label that appears."""
    from selenium.webdriver.common.action_chains import ActionChains

    mark = page.run(
        """const plot = document.querySelectorAll('.chart')[arguments[0]].querySelector('.plot');
        plot.scrollIntoView({block: 'center'});
        const marked = [...plot.querySelectorAll('.trace')].filter(t => t.querySelector('.point'));
        return marked[arguments[1]].querySelectorAll('path.point')[arguments[2]]""",
        chart, series, place,
    )  # fmt: skip
    ActionChains(page.driver).move_to_element(mark).perform()
    page.wait("document.querySelector('.hovertext')")
    return page.run(
        "return [...document.querySelectorAll('.hovertext tspan.line')]"
        ".map(line => line.textContent)"
    )


def drawn(page, chart):
    """What plotly draws of a chart's first panel: name, visible and customdata of each series."""
    return page.run(
        """const plot = document.querySelectorAll('.chart')[arguments[0]].querySelector('.plot');
        return plot.data.filter(trace => trace.customdata).map(trace =>
          ({name: trace.name, visible: trace.visible, data: trace.customdata}))""",
        chart,
    )


def test_the_page_opens_without_a_network_and_without_an_error(page, written):
    assert page.errors() == []
    assert page.requests() == [written[0].as_uri()]


def test_a_click_on_a_title_sorts_and_a_second_one_turns_the_order(page, written):
    button(page, "Test").click()
    texts, told = column(page, "Test")
    falling = [f"{value:.1f}" for value in sorted(last(written[1])["test"], reverse=True)]
    assert [text.split()[0] for text in texts] == falling
    assert told == "descending"
    button(page, "Test").click()
    texts, told = column(page, "Test")
    assert [text.split()[0] for text in texts] == falling[::-1]
    assert told == "ascending"


def test_the_table_sorts_by_keyboard(page):
    from selenium.webdriver.common.keys import Keys

    button(page, "Method").send_keys(Keys.ENTER)
    button(page, "Method").send_keys(Keys.SPACE)
    texts, told = column(page, "Method")
    assert told == "ascending"
    assert [text.split()[0] for text in texts] == ["finetune"] * 2 + ["nettailor", "probe"] + [
        "scratch"
    ] + ["taps"] * 3
    assert [text.split()[1] for text in texts[-3:]] == ["λ=0.1", "λ=0.3", "λ=1"]


def test_lines_are_found_by_words_and_earlier_stages_are_hidden_at_first(page, written):
    kept = len(last(written[1]))
    assert len(column(page, "Method")[0]) == kept == LINES - 3 - 2
    assert page.run("return document.querySelector('#tools output').textContent") == (
        f"{kept} of {LINES} lines"
    )
    page.driver.find_element("css selector", "#tools [type=checkbox]").click()
    assert len(column(page, "Method")[0]) == LINES
    page.driver.find_element("css selector", "#tools [type=search]").send_keys("TAPS 0.3")
    assert column(page, "Method")[0] == ["taps λ=0.3", "taps λ=0.3 retrained ★"]


def last(frame):
    """The lines that no later stage follows, in a study whose stages are all there."""
    ends = {"taps": "retrained", "nettailor": "retrained"}
    return frame[
        [ends.get(m, "teacher") == s for m, s in zip(frame.method, frame.stage, strict=True)]
    ]


def test_a_number_of_seeds_opens_the_commands_of_its_runs(page):
    assert shown(page, ".runs code") == 0
    page.driver.find_element("css selector", "#results tbody tr a").click()
    page.wait("document.querySelector('#runs-0').open")
    assert shown(page, ".runs code") == 3
    top = page.run("return document.querySelector('#runs-0').getBoundingClientRect().top")
    assert -1 <= top < 900


def test_a_chart_draws_the_numbers_of_the_pareto_table(page, written):
    frame = written[1]
    expected = pareto_table(frame[frame["backbone"] == "resnet18"]).sort_values(["cost"])
    found = {trace["name"]: trace["data"] for trace in drawn(page, TAPS)}
    assert set(found) == {"finetune", "scratch", "probe", "taps, retrained"}
    for name, data in found.items():
        lines = expected[expected["series"] == name.split(",")[0]]
        wanted = lines[["accuracy", "ci95", "cost"]].to_numpy().tolist()
        np.testing.assert_allclose(sorted(data), sorted(wanted), err_msg=name)


def test_pointing_at_a_mark_tells_its_setting_and_its_runs(page):
    label = hover(page, TAPS, 3, 0)  # the largest λ of TAPS has the least cost
    assert label[0] == "taps λ=1 retrained"
    assert label[1].startswith("93.40 % ± 0.99 (95 % interval of 3 seeds)")
    assert "of the backbone's parameters" in label[2]
    assert label[3] == "adapts 8.3 of 20 layers"
    assert [line.rpartition("/")[2] for line in label[4:]] == [
        f"taps-1-retrained-{seed}" for seed in range(3)
    ]


def test_a_chart_compares_by_another_cost_when_asked(page):
    section = "document.querySelectorAll('.chart')[1].closest('section')"
    title = f"return {section}.querySelector('h2').textContent"
    assert page.run(title) == "Accuracy against MACs (resnet34)"  # NetTailor is priced by them
    before = drawn(page, BLOCKS)
    page.run(
        f"const choice = {section}.querySelector('select');"
        "choice.value = 0; choice.dispatchEvent(new Event('change'))"
    )
    assert page.run(title) == "Accuracy against added parameters (resnet34)"
    after = drawn(page, BLOCKS)
    assert [t["name"] for t in before] == [t["name"] for t in after]
    tuned = next(t["data"][0] for t in before if t["name"] == "finetune")
    assert tuned[2] == 100.0  # fine-tuning needs all MACs
    assert shown(page, "h2.still, figure.still") == 0  # no picture that the chart shows as well


def test_a_name_of_the_legend_hides_its_marks(page):
    names = page.driver.find_elements("css selector", ".chart .legend button")
    probe = next(name for name in names if "probe" in name.text)
    probe.click()
    assert probe.get_attribute("aria-pressed") == "false"
    assert {t["name"]: t["visible"] for t in drawn(page, TAPS)}["probe"] is False
    probe.click()
    assert {t["name"]: t["visible"] for t in drawn(page, TAPS)}["probe"] is True


@pytest.mark.parametrize("width", [400, 1600])
def test_nothing_is_wider_than_the_window(page, width):
    page.size(width)
    page.wait("[...document.querySelectorAll('.plot')].every(p => p.clientWidth <= innerWidth"
              " && p.querySelector('.main-svg').clientWidth === p.clientWidth)")  # fmt: skip
    page.run("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert page.overflow() == 0
    assert page.errors() == []


def test_paper_shows_the_still_picture_and_all_commands(page):
    runs = page.run("return document.querySelectorAll('.runs code').length")
    assert (shown(page, ".chart"), shown(page, "figure.still")) == (2, 0)
    page.media("print")
    assert (shown(page, ".chart"), shown(page, "figure.still")) == (0, 3)  # NetTailor has MACs
    assert shown(page, "nav") == 0
    assert shown(page, ".runs code") == runs == 39


def test_a_chart_follows_light_and_dark(page):
    ink = "document.querySelector('.plot').layout.font.color"
    assert page.run(f"return {ink}") == "#24292f"
    page.media("", "dark")
    page.wait(f"{ink} === '#e6edf3'")
    lines = "getComputedStyle(document.body).backgroundColor"
    assert page.run(f"return {lines}") == "rgb(21, 25, 30)"


def test_without_scripts_the_still_pictures_stand(chromium, written, tmp_path):
    text = re.sub(r"<script>.*?</script>", "", written[0].read_text(), flags=re.DOTALL)
    assert "<script>" not in text
    (tmp_path / "plain.html").write_text(text)
    chromium.open(tmp_path / "plain.html")
    assert (shown(chromium, ".chart"), shown(chromium, "figure.still img")) == (0, 3)
    assert len(column(chromium, "Method")[0]) == LINES


def test_names_from_run_directories_do_nothing(chromium, tmp_path):
    names = {"backbone": EVIL, "command": EVIL, "fingerprint": EVIL, "price": EVIL}
    runs = [
        write_run(tmp_path / f"a<b>{i}", EVIL, lam=lam, task=f"{task}{EVIL}", epochs=0, **names)
        for i, (task, lam) in enumerate([("a", 0.1), ("a", 1.0), ("b", 0.1)])
    ]
    write_report(runs, tmp_path / "report.html")
    chromium.open(tmp_path / "report.html")
    chromium.wait("document.querySelectorAll('.plot .points path').length")
    label = hover(chromium, TAPS, 0, 0)
    assert label[0].endswith(f"{EVIL} λ=1"[-70:])  # as text, not as tags
    assert chromium.run("return window.hurt === undefined && !document.querySelector('img[src=x]')")
    assert chromium.errors() == []
    assert len(chromium.requests()) == 1
