"""The notebooks: every cell runs in a fresh place, and what lies in the repository can be shown.

They are executed on a fraction of images, epochs and seeds (TAILOR_NOTEBOOK_QUICK). All share a
kernel that forgets its names in between, for its imports take longer than the cells; half of them
are started in ``demos/``, half in the folder above. Outputs in the repository are of whole ones.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demos import _small_tasks
from tailor.task import open_task
from tests import browser

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")

DEMOS = Path(__file__).parents[1] / "demos"
SHOWN = {  # figures and tables
    "walkthrough": (5, 6),
    "layers": (8, 5),
    "sweep": (3, 5),
    "budget": (3, 4),
    "decathlon_predictions": (3, 2),
    "decathlon_layers": (3, 2),
    "lifelong": (2, 3),
}
MOST_BYTES = 300_000
WIDE = """return [...document.querySelectorAll('.jp-OutputArea-output')]
    .filter(area => area.scrollWidth > area.clientWidth + 1).map(area => area.innerText)"""
OFFLINE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}"""


def read(name):
    """A notebook as it lies in the repository."""
    return nbformat.read(DEMOS / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def pictures(notebook):
    """Every figure that is shown, decoded."""
    found = [output.data.get("image/png") for output in outputs(notebook) if "data" in output]
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found if data]


def tables(notebook):
    found = [output.data.get("text/html", "") for output in outputs(notebook) if "data" in output]
    return [text for text in found if "<table" in text]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """All notebooks after one kernel has run them, by name, and the folder of their runs."""
    runs = tmp_path_factory.mktemp("runs")
    together, places = nbformat.v4.new_notebook(), {}
    for i, name in enumerate(SHOWN):
        begin = f"%reset -f\n__import__('os').chdir({str(DEMOS if i % 2 else DEMOS.parent)!r})"
        together.cells.append(nbformat.v4.new_code_cell(begin))
        fresh = read(name)
        for cell in code(fresh):
            cell.outputs = []
        together.cells += fresh.cells
        places[name] = fresh
    client = nbclient.NotebookClient(
        together, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(DEMOS)}}
    )
    told = {"TAILOR_NOTEBOOK_QUICK": "1", "TAILOR_NOTEBOOK_RUNS": str(runs)}
    client.execute(env=os.environ | told)  # raises what a cell raises
    return places, runs


@pytest.mark.parametrize("name", SHOWN)
def test_every_cell_runs_and_shows_its_figures_and_tables(executed, name):
    notebook = executed[0][name]
    assert (len(pictures(notebook)), len(tables(notebook))) == SHOWN[name]
    # Nothing on standard error: no progress bars, no warnings.
    assert {output.get("name", "stdout") for output in outputs(notebook)} == {"stdout"}
    assert sum(len(json.dumps(output)) for output in outputs(notebook)) < MOST_BYTES


def test_what_one_notebook_trained_the_others_only_read(executed):
    # layers, sweep and budget all ask for TAPS on hues and hollow at λ 1 and seed 0.
    studies = json.loads((executed[1] / "sweep" / "sweep.json").read_text())["studies"]
    own = {"selected", "taps", "tuned", "ten-references", "ten-adapters"}  # of the decathlon's two
    assert set(studies) == {"layers", "lambda", "ten"} | own
    for task in ("hues", "hollow"):
        found = (executed[1] / "sweep" / task).glob("*-taps-lam1-s0-*/result.json")
        stages = [json.loads(file.read_text())["stage"] for file in found]
        assert sorted(stages) == ["adapt", "pruned", "retrained"]


def test_the_report_that_the_sweep_hands_on_is_written(executed):
    assert "<html" in (executed[1] / "sweep.html").read_text()


# What lies in the repository.


@pytest.mark.parametrize("name", SHOWN)
def test_a_committed_notebook_was_run_from_top_to_bottom(name):
    notebook = read(name)
    assert [cell.execution_count for cell in code(notebook)] == [*range(1, len(code(notebook)) + 1)]
    assert (len(pictures(notebook)), len(tables(notebook))) == SHOWN[name]
    assert all(picture.width >= 400 for picture in pictures(notebook))
    assert {output.output_type for output in outputs(notebook)} <= {
        *("display_data", "execute_result", "stream"),
    }


@pytest.mark.parametrize("name", SHOWN)
def test_a_committed_notebook_is_small_and_tells_nothing_of_the_machine(name):
    text = (DEMOS / f"{name}.ipynb").read_text()
    assert len(text) < MOST_BYTES
    assert not re.search(r"/(home|root|tmp|usr|work|Users|var|opt)/|[A-Z]:\\\\", text)
    notebook = read(name)
    assert notebook.metadata.kernelspec.name == "python3"
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert all(cell.metadata == {} for cell in notebook.cells)  # no times, no widgets


@pytest.fixture(scope="module")
def chromium():
    with browser.chromium() as page:
        yield page


@pytest.mark.parametrize("name", SHOWN)
def test_an_exported_notebook_opens_in_a_browser_without_a_network(chromium, tmp_path, name):
    from jinja2 import DictLoader

    exporter = nbconvert.HTMLExporter(
        template_file="offline.html.j2", extra_loaders=[DictLoader({"offline.html.j2": OFFLINE})]
    )
    file = tmp_path / f"{name}.html"
    file.write_text(exporter.from_notebook_node(read(name))[0])
    chromium.size(1200)
    chromium.open(file)
    widths = chromium.run("return [...document.images].map(image => image.naturalWidth)")
    assert len(widths) == SHOWN[name][0]
    assert min(widths) >= 400
    assert chromium.run("return document.querySelectorAll('table').length") >= SHOWN[name][1]
    assert chromium.errors() == []
    assert chromium.requests() == [file.resolve().as_uri()]
    assert chromium.overflow() == 0
    assert chromium.run(WIDE) == []


# The small tasks.


@pytest.mark.parametrize("name", _small_tasks.SMALL)
def test_a_small_task_has_all_its_classes_in_every_split(tmp_path, name):
    _small_tasks.write(name, tmp_path / name, train=80, test=40)
    task = open_task(f"npz:{tmp_path / name}")
    assert (task.name, len(task.splits["test"])) == (name, 40)
    for split in ("train", "test"):
        assert set(task.splits[split].labels.tolist()) == set(range(len(task.classes)))


def test_a_small_task_is_the_same_each_time_and_stays(tmp_path):
    for place in ("one", "other"):
        _small_tasks.write("petals", tmp_path / place, train=20, test=10)
    found = [np.load(tmp_path / place / "train.npz") for place in ("one", "other")]
    assert all((found[0][name] == found[1][name]).all() for name in ("data", "offsets", "label"))
    before = (tmp_path / "one" / "test.npz").stat().st_mtime_ns
    _small_tasks.write("petals", tmp_path / "one", train=30, test=20)
    assert (tmp_path / "one" / "test.npz").stat().st_mtime_ns == before


def test_parity_is_that_of_the_digit(tmp_path):
    from sklearn.datasets import load_digits

    _small_tasks.write("parity", tmp_path, train=20, test=10)
    digits = load_digits().target
    with np.load(tmp_path / "train.npz") as train, np.load(tmp_path / "test.npz") as test:
        assert train["label"].tolist() == [d % 2 for d in digits[0:40:2]]  # every other digit,
        assert test["label"].tolist() == [d % 2 for d in digits[1:20:2]]  # the others to test


def test_test_patches_show_another_part_of_the_photograph(monkeypatch):
    # One photograph that is dark left of its middle line and bright right of it, with noise.
    noise = np.random.default_rng(0).integers(0, 100, (427, 640, 3), dtype=np.uint8)
    noise[:, _small_tasks.MIDDLE[0] :] += 150
    monkeypatch.setattr(_small_tasks, "_photographs", lambda: [noise])
    for i in range(20):
        random = np.random.default_rng(i)
        assert np.asarray(_small_tasks._patch(0, "train", random)).min() >= 150
        assert np.asarray(_small_tasks._patch(0, "test", random)).max() < 100
