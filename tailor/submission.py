"""Predictions for the Visual Decathlon: written from runs, read back, scored.

The challenge's file is a JSON list with an entry per test image of any number of domains:

    [{"image_id": 10006667, "category_id": 10000001}, ...]

Ids begin with the domain's number (``datasets/_decathlon.py``), so the file needs no other names.
``submit`` writes it, ``score`` counts it against labels, or scores accuracies that are known. What
they are worth is in ``decathlon.py``. A submission holds a prediction for every test image of its
domains: what scores as missing images would be a smaller test set.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from tailor import decathlon
from tailor.datasets import _decathlon
from tailor.datasets._decathlon import Listed
from tailor.datasets._decathlon_annotations import UNIT, Ids, more
from tailor.decathlon import DOMAINS
from tailor.errors import BadInput, first_line
from tailor.opened import Opened, batches, open_run
from tailor.options import Score, Submit
from tailor.progress import Progress
from tailor.run import read_json, write_bytes
from tailor.session import Reporter, nobody
from tailor.settings import Settings
from tailor.task import data_root

SPEC = "decathlon:"  # tasks that can be submitted begin so
ENTRY = '{"image_id": 10006667, "category_id": 10000001}'


def score(options: Score) -> dict[str, Any]:
    """Points of predictions, or of accuracies.

    Returns:
        The fields of ``decathlon.Score``, its ``rank``, and ``sample``: whether the labels belong
        to drawn images.

    Raises:
        BadInput: a file is missing, broken, or does not fit its domain.
    """
    if (options.predictions is None) == (options.accuracies is None):
        raise BadInput(
            "give predictions and their labels (tailor score decathlon PREDICTIONS --annotations "
            "DIR), or --accuracies FILE.json: one of them"
        )
    if (options.annotations is None) != (options.predictions is None):
        raise BadInput(
            "predictions are scored against labels: give PREDICTIONS and --annotations DIR together"
        )
    baseline = None if options.baseline is None else _percents(options.baseline)
    if options.accuracies is not None:
        found, drawn = _percents(options.accuracies), False
    else:
        assert options.predictions is not None
        assert options.annotations is not None
        found = accuracies(options.predictions, options.annotations)
        drawn = _decathlon.is_sample(options.annotations)
    scored = decathlon.score(found, baseline)
    return dataclasses.asdict(scored) | {"rank": scored.rank, "sample": drawn}


def accuracies(predictions: Path, annotations: Path) -> dict[str, float]:
    """Percent of the test images that a file of predictions gets right, by domain.

    Args:
        predictions: the challenge's JSON, of one domain or several.
        annotations: the folder with NAME_test.json, or one above it.

    Raises:
        BadInput: the file is broken; an image that no domain has, twice or not predicted; a
            category of another domain; labels that are not there.
    """
    images, categories = _read(predictions)
    found = {}
    for name, domain in DOMAINS.items():
        mine = images // UNIT == domain.number
        if mine.any():
            found[name] = _accuracy(predictions, name, annotations, images[mine], categories[mine])
    return found


def _read(path: Path) -> tuple[Ids, Ids]:
    """(n,) images and (n,) categories of a file of predictions."""
    entries = _json(path)
    if not isinstance(entries, list) or not entries:
        what = "no prediction" if entries == [] else "no list"
        raise BadInput(f"{path} holds {what}: write a JSON list of {ENTRY}, as `tailor submit`")
    images, categories = (_column(path, entries, key) for key in ("image_id", "category_id"))
    known = np.isin(images // UNIT, [domain.number for domain in DOMAINS.values()])
    if not known.all():
        raise BadInput(
            f"{path} predicts image {images[~known][0]}{more(int((~known).sum()) - 1)}, whose id "
            f"belongs to no domain: those of domain d lie from d * {UNIT} on, d from 1 to 10"
        )
    values, counts = np.unique(images, return_counts=True)
    if len(twice := np.flatnonzero(counts > 1)):
        raise BadInput(
            f"{path} predicts image {values[twice[0]]} {counts[twice[0]]} times"
            f"{more(len(twice) - 1)}: give every image one category"
        )
    return images, categories


def _column(path: Path, entries: list[Any], key: str) -> Ids:
    values = [entry.get(key) if isinstance(entry, dict) else None for entry in entries]
    for i, value in enumerate(values):
        if type(value) is not int or not 0 <= value < 2**62:
            raise BadInput(
                f"{path}: entry {i} has {key} {value!r}, not a whole number: a prediction is "
                f"{ENTRY}"
            )
    return np.array(values, dtype=np.int64)


def _accuracy(path: Path, name: str, annotations: Path, images: Ids, categories: Ids) -> float:
    """Percent right of one domain; ``images`` and ``categories`` are (n,) of that domain."""
    truth = _decathlon.test_labels(name, annotations)
    assert truth.labels is not None
    order = np.argsort(truth.ids)
    place = np.searchsorted(truth.ids, images, sorter=order).clip(max=len(order) - 1)
    known = truth.ids[order[place]] == images
    if not known.all():
        raise BadInput(
            f"{path} predicts image {images[~known][0]}{more(int((~known).sum()) - 1)} of {name}, "
            f"which {truth.path} does not list: predict the test images"
        )
    if len(images) < len(truth.ids):
        lacking = truth.ids[~np.isin(truth.ids, images)]
        raise BadInput(
            f"{path} predicts {len(images)} of {len(truth.ids)} test images of {name}, not "
            f"{lacking[0]}{more(len(lacking) - 1)}: predict all of them, or leave {name} out"
        )
    labels = categories - (DOMAINS[name].number * UNIT + 1)
    outside = (labels < 0) | (labels >= len(truth.classes))
    if outside.any():
        first = DOMAINS[name].number * UNIT + 1
        raise BadInput(
            f"{path} gives image {images[outside][0]} the category {categories[outside][0]}"
            f"{more(int(outside.sum()) - 1)}, none of {name}, whose categories are {first} to "
            f"{first + len(truth.classes) - 1}"
        )
    right = int((labels == truth.labels[order[place]]).sum())
    return 100 * (right / len(images))


def _percents(path: Path) -> dict[str, float]:
    """A map from domain to percent; what is in it, ``decathlon.score`` checks."""
    found = _json(path)
    if not isinstance(found, dict):
        raise BadInput(
            f'{path} holds no map from domains to percent: write {{"aircraft": 64.21, ...}}'
        )
    return found


def _json(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            name = next(n for n in names if names.count(n) > 1)
            raise ValueError(f"an object names {name!r} twice")
        return found

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=once)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): give a JSON file") from error
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON ({first_line(error)}): correct or remake it") from error


def submit(options: Submit, *, tell: Reporter = nobody) -> dict[str, Any]:
    """Predict the test images of each run's domain and write the challenge's file.

    Returns:
        ``out``, ``predictions`` (how many), ``domains`` (how many of each), ``missing`` domains,
        and ``sample``: whether images were drawn.

    Raises:
        BadInput: a run of another task, two of one domain, test images that are missing or
            unreadable, or no room to write; nothing is written then.
    """
    if options.out.suffix != ".json" or options.out.is_dir():
        raise BadInput(f"{options.out} names no .json file; name the file to write so")
    runs = _one_each(options.runs)
    predictions: dict[str, list[tuple[int, int]]] = {}
    drawn = False
    for name in DOMAINS:
        if name in runs:
            opened = open_run(runs[name])
            root = data_root(options.root or opened.data.root)
            predictions[name] = _predict(opened, name, root, options.device, tell(f"submit {name}"))
            drawn = drawn or _decathlon.is_sample(root)
    pairs = sorted(pair for found in predictions.values() for pair in found)
    lines = (f'{{"image_id": {image}, "category_id": {category}}}' for image, category in pairs)
    write_bytes(options.out, ("[\n" + ",\n".join(lines) + "\n]\n").encode())
    return {
        "out": str(options.out),
        "predictions": len(pairs),
        "domains": {name: len(found) for name, found in predictions.items()},
        "missing": [name for name in DOMAINS if name not in runs],
        "sample": drawn,
    }


def _one_each(paths: Iterable[Path]) -> dict[str, Path]:
    """The run of each domain; looked up before any network is built."""
    runs: dict[str, Path] = {}
    for path in paths:
        if not (path / "result.json").exists():
            open_run(path)  # says why there is none
        try:
            task = str(read_json(path / "result.json")["config"]["data"]["task"])
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"{path}/result.json does not say its task, so it is damaged; restore it, or "
                f"delete the run and repeat its command"
            ) from error
        name = task.removeprefix(SPEC)
        if name == task:
            raise BadInput(
                f"{path} is a run of task {task!r}; the challenge takes runs of {SPEC}NAME"
            )
        if name in runs:
            raise BadInput(f"{runs[name]} and {path} are both runs of {name}; submit one of them")
        runs[name] = path
    if not runs:
        raise BadInput("no run given; name one per domain, as in `tailor submit runs/decathlon/*`")
    return runs


@torch.no_grad()
def _predict(
    opened: Opened, name: str, root: Path, device: str, progress: Progress
) -> list[tuple[int, int]]:
    """(image, category) of every test image, seen as ``tailor evaluate`` shows them."""
    task, student = _decathlon.open_test(name, root), opened.student
    known = opened.result["config"]["classes"]
    if len(known) != _decathlon.facts(name, root).classes or (
        task.classes and list(task.classes) != known
    ):
        raise BadInput(
            f"{opened.path} knows {len(known)} classes, {known[0]!r} to {known[-1]!r}, other ones "
            f"than {task.name} below {root}; name the folder it was trained on with --root"
        )
    settings = dataclasses.replace(Settings(**opened.result["config"]["train"]), device=device)
    # An image that is left out would be missing from the submission.
    data = dataclasses.replace(opened.data, skip_bad_images=False)
    found = batches(task, "test", student.universal, data, settings)
    cast(nn.Module, student).to(found.device)
    student.train(False)
    progress.begin(found.steps, 0)
    labels = []
    try:
        for images, *_ in found.epoch(0):
            with torch.autocast(found.device.type, torch.bfloat16, enabled=settings.bf16):
                labels.append(student(images).logits.argmax(1).cpu())
            progress.advance(1, {})
    finally:
        progress.end()
    first = DOMAINS[name].number * UNIT + 1
    ids = cast(Listed, task.splits["test"].source).ids.tolist()
    return [(i, first + k) for i, k in zip(ids, torch.cat(labels).tolist(), strict=True)]
