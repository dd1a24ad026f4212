"""The Visual Decathlon: methods x domains x seeds from one source network, scored. Resumes.

python -m demos.decathlon --mini FOLDER         eight small public domains
python -m demos.decathlon --root DIR            the ten domains, in the challenge's own files
python -m demos.decathlon --sample --seeds 0    drawn images in those files: two minutes on a CPU

Every method adapts the same frozen source network to every domain; a domain earns 1000 points
without errors, 250 with plain fine-tuning's. With ``--mini`` that is this study's own fine-tuning
and the numbers compare with nothing outside of it. RESULTS.md holds runs.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from demos import _decathlon, _decathlon_sample
from demos._decathlon import Study, Variant
from tailor import catalog, submission
from tailor.cli import answered
from tailor.decathlon import DOMAINS, Recipe, images_for
from tailor.errors import BadInput
from tailor.options import Data, Images, Net, Score, Submit, Teach
from tailor.progress import wide_console
from tailor.run import read_json
from tailor.settings import Recipe as Training
from tailor.settings import Settings

MINI = (
    *("omniglot", "eurosat", "flowers", "trashnet"),
    *("signdigits", "fashion", "quickdraw", "pneumonia"),
)
MIRRORED = ("eurosat", "flowers", "trashnet", "fashion")  # of MINI: means the same when mirrored
SAMPLED = ("daimlerpedcls", "omniglot", "svhn", "vgg-flowers")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Methods x domains x seeds from one source network: one table, one picture, the score.

    Give one of --mini, --root, --sample. Repeating the command continues what was interrupted, and
    with more methods, domains or seeds trains only what is new. With --weights RUN the source
    network is that of `tailor teach --mode scratch ... --out RUN`.

    Example: python -m demos.decathlon --mini data/small --methods finetune parallel taps --seeds 0

    Example: python -m demos.decathlon --root data/decathlon --backbone resnet26 --weights
    runs/imagenet --domains aircraft dtd svhn --out runs/decathlon
    """

    mini: Path | None = None
    """Folder with one folder per domain in the npz format that the README describes."""
    root: Path | None = None
    """Folder with the Visual Decathlon as its makers ship it: annotations/ and data/."""
    sample: bool = False
    """Draw a small decathlon into OUT/data and run a short study on it, in minutes."""
    out: Path = Path("runs/decathlon")
    """Folder for runs, table, picture and report."""
    methods: tuple[str, ...] = ()
    """Some of scratch, probe, bn_adapt, finetune, lwf, series, parallel, lora, piggyback, taps,
    nettailor, selected (parallel adapters where learned scores want them); all by default."""
    domains: tuple[str, ...] = ()
    """Some of the domains; all by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of head, adapters, order of images and augmentation; the source network is the same."""
    lam: tuple[str, ...] = ()
    """Another λ of a method that selects, such as taps=1 selected=10."""
    option: tuple[str, ...] = ()
    """Another option of a method, such as lora.rank=4 or series.init=he; of its training, such as
    piggyback.lr=0.1."""
    backbone: str | None = None
    """Any of `tailor list backbones`; small_resnet, or resnet26 with --root."""
    weights: str | None = None
    """Of the source network: a run of `tailor teach`, or a file. It is taught here by default."""
    source: str | None = None
    """The domain that it is taught on; source_objects, or imagenet12 of the decathlon."""
    source_epochs: int | None = None
    """Of that; 15, with --root 90."""
    recipe: Recipe = "published"
    """With --root: how images are augmented, as for residual adapters or as for NetTailor."""
    px: int | None = None
    """With --mini: side of the input; 48 by default."""
    limit: int | None = None
    """At most so many training images of a domain; with --mini 800 by default, 0 for all."""
    epochs: int | None = None
    """In which a selecting method selects; 4, with --root 40."""
    retrain_epochs: int | None = None
    """In which it is retrained; 8, with --root 80. Other methods train for both together."""
    batch: int | None = None
    """Images per step; 32, with --root 128."""
    lr: float | None = None
    """Of fine-tuning and others that tune weights; 0.03, with --root 0.1. What starts from nothing
    has 0.1, see --option."""
    device: str | None = None
    """cpu, cuda, mps; with --root the fastest one that is here."""
    processes: int | None = None
    """Workers; one per core on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What differs between the three kinds of study."""

    domains: tuple[str, ...]
    methods: tuple[str, ...] = tuple(_decathlon.VARIANTS)
    source: str
    backbone: str = "small_resnet"
    source_epochs: int = 15
    epochs: int = 4
    retrain_epochs: int = 8
    batch: int = 32
    lr: float = 0.03
    weight_decay: float = 0.0
    limit: int | None = None
    device: str = "cpu"


KINDS = {
    "mini": Kind(domains=MINI, source="source_objects", limit=800),
    "root": Kind(
        domains=tuple(DOMAINS),
        source="imagenet12",
        backbone="resnet26",
        source_epochs=90,
        epochs=40,
        retrain_epochs=80,
        batch=128,
        lr=0.1,
        weight_decay=5e-4,
        device="auto",
    ),
    "sample": Kind(
        domains=SAMPLED,
        methods=("probe", "finetune", "parallel", "selected"),
        source="imagenet12",
        source_epochs=4,
        epochs=2,
        retrain_epochs=4,
        batch=8,
    ),
}


def study(options: Options) -> Study:
    """The study that ``options`` ask for.

    Raises:
        BadInput: none or several kinds of study, an unknown method or domain, a bad ``--lam``.
    """
    kind = _kind(options)
    facts = KINDS[kind]
    given = {f.name: getattr(options, f.name, None) for f in dataclasses.fields(Kind)}
    facts = dataclasses.replace(facts, **{k: v for k, v in given.items() if v not in (None, ())})
    for name in facts.domains:
        if name not in KINDS[kind].domains:
            raise catalog.unknown("domain", name, KINDS[kind].domains, shown_by="--help")
    images = Images(px=48 if options.px is None else options.px, crop="random")
    if kind != "mini":
        images = Images(root=str(_root(options)))
    train = Training(
        epochs=facts.epochs,
        batch=facts.batch,
        lr=facts.lr,
        weight_decay=facts.weight_decay,
        select="last",
        schedule="constant",
        device=facts.device,
    )
    source, net = _source(options, facts, images)
    on_cpu = facts.device == "cpu"
    return Study(
        out=options.out,
        source=source,
        net=net,
        domains={_spec(options, n): _view(options, n) for n in facts.domains},
        images=dataclasses.replace(images, limit=facts.limit or None),
        train=train,
        retrain_epochs=facts.retrain_epochs,
        variants=_variants(options, facts.methods),
        seeds=options.seeds,
        processes=options.processes or ((os.cpu_count() or 1) if on_cpu else 1),
    )


def _kind(options: Options) -> Literal["mini", "root", "sample"]:
    kinds: dict[Literal["mini", "root", "sample"], bool] = {
        "mini": options.mini is not None,
        "root": options.root is not None,
        "sample": options.sample,
    }
    chosen = [name for name, given in kinds.items() if given]
    if len(chosen) != 1:
        said = " and ".join(f"--{name}" for name in chosen) or "none"
        raise BadInput(f"{said} given: give one of --mini FOLDER, --root DIR, --sample")
    return chosen[0]


def _root(options: Options) -> Path:
    return options.out / "data" if options.root is None else options.root


def _spec(options: Options, domain: str) -> str:
    return f"decathlon:{domain}" if options.mini is None else f"npz:{options.mini / domain}"


def _view(options: Options, domain: str) -> dict[str, Any]:
    """How the images of a domain are seen, where it differs from the others."""
    if options.mini is None:
        return images_for(domain, options.recipe)
    return {"flip": True} if domain in MIRRORED else {}


def _source(options: Options, facts: Kind, images: Images) -> tuple[Teach | None, Net]:
    """How the source network is taught, and where its weights lie."""
    if options.weights is not None:
        return None, Net(backbone=facts.backbone, weights=options.weights)
    if options.mini is not None:
        view = dataclasses.asdict(images) | {"flip": True, "color": 0.2}
    else:
        view = dataclasses.asdict(images) | images_for(facts.source, options.recipe)
    teach = Teach(
        out=options.out / "source",
        mode="scratch",
        data=Data(task=_spec(options, facts.source), **view),
        net=Net(backbone=facts.backbone),
        train=Settings(
            epochs=facts.source_epochs,
            batch=2 * facts.batch,
            lr=0.1,
            warmup_epochs=1,
            weight_decay=5e-4,
            label_smoothing=0.1,
            device=facts.device,
        ),
    )
    return teach, Net(backbone=facts.backbone, weights=str(teach.out))


def _variants(options: Options, names: tuple[str, ...]) -> Mapping[str, Variant]:
    """The methods asked for, with the prices and options asked for."""
    found = _decathlon.chosen(names)
    for text in options.lam:
        name, _, value = text.partition("=")
        if name not in found or found[name].lam is None:
            priced = ", ".join(n for n, v in found.items() if v.lam is not None)
            raise BadInput(f"lam {text!r}: give METHOD=NUMBER of a method that selects ({priced})")
        found[name] = dataclasses.replace(found[name], lam=_number(text, value))
    for text in options.option:
        name, _, said = text.partition(".")
        option, equal, value = said.partition("=")
        if name not in found or not equal:
            raise BadInput(f"option {text!r}: give METHOD.NAME=VALUE of one of {', '.join(found)}")
        variant = found[name]
        if option in {f.name for f in dataclasses.fields(Training)} and option != "select":
            train = {**variant.train, option: _number(text, value)}
            found[name] = dataclasses.replace(variant, train=train)
        else:
            found[name] = dataclasses.replace(variant, option=(*variant.option, said))
    return found


def _number(text: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise BadInput(f"{text!r}: give a number behind the =") from None


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit code."""
    options = tyro.cli(Options, prog="python -m demos.decathlon", args=argv)
    command = shlex.join(["python", "-m", "demos.decathlon", *(argv or sys.argv[1:])])
    return answered(lambda: _everything(options, command))


def _everything(options: Options, command: str) -> int:
    console, began = wide_console(), time.monotonic()
    whole = study(options)
    if options.sample and not (_root(options) / "sample.json").exists():
        names = dict.fromkeys((*SAMPLED, KINDS["sample"].source))
        _decathlon_sample.draw(_root(options), names, train=30, val=8, test=20)
    found = _decathlon.run(whole, command)
    written = _decathlon.conclude(whole, found)
    if options.mini is None:
        written += _submit(options, whole, found, console)
    _decathlon.failures(whole, found, console)
    told = f"{time.monotonic() - began:.0f} s. Written: {', '.join(map(str, written))}"
    console.print(told, highlight=False)
    return 0


def _submit(
    options: Options, whole: Study, found: Mapping[str, list[Path]], console: Console
) -> list[Path]:
    """The challenge's file of each variant's first seed; its score where labels are there."""
    written = []
    for name, paths in found.items():
        runs = [p for p in paths if read_json(p / "result.json")["seed"] == whole.seeds[0]]
        if not runs:
            continue
        out = whole.out / f"results-{name}.json"
        root = _root(options)
        submission.submit(Submit(runs=tuple(runs), out=out, root=str(root)))
        written.append(out)
        try:
            scored = submission.score(Score(predictions=out, annotations=root))
        except BadInput as error:  # the labels of test images are the challenge's to keep
            console.print(f"{out}: no score here ({error})", highlight=False)
        else:
            console.print(
                f"{out}: score {scored['total']:.2f} over {len(scored['domains'])} domains "
                "against the published fine-tuning"
                + (" (drawn images: no result)" if scored["sample"] else ""),
                highlight=False,
            )
    return written


if __name__ == "__main__":
    sys.exit(main())
