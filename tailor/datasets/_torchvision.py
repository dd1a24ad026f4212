"""`torchvision:CLASS`: every classification set that torchvision knows, as a `Task`.

`SETS` says per class which arguments give which of our splits, and what to fetch from where
when torchvision does not find it. Left out: sets that are not one class per image (CelebA,
Cityscapes, ...), that share no classes between their splits (LFW), and FakeData. Where
torchvision has one undivided set (EuroSAT, Caltech, ...), all of it is train.

A split called "val" by its makers is used as validation only, never as test. CIFAR's files
are pickles; torchvision opens them only after their MD5 sums agree with the published ones.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tailor.datasets import _sample
from tailor.errors import BadInput
from tailor.task import MEAN, STD, Rgb, Split, Task

Arguments = Mapping[str, Any]
FLAG: Mapping[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
WHOLE: Mapping[str, Arguments] = {"train": {}}


def _named(**splits: str) -> Mapping[str, Arguments]:
    return {ours: {"split": theirs} for ours, theirs in splits.items()}


TRAIN_TEST = _named(train="train", test="test")
THREE = _named(train="train", val="val", test="test")


@dataclass(frozen=True)
class Known:
    """How to open one torchvision class."""

    splits: Mapping[str, Arguments]  # our split -> arguments of the class
    fetch: str  # what to fetch from where
    folder: str = "."  # below the root: where to put it; archives are unpacked there


SETS = {
    "Caltech101": Known(WHOLE, "https://data.caltech.edu/records/20086", "caltech101"),
    "Caltech256": Known(WHOLE, "https://data.caltech.edu/records/20087", "caltech256"),
    "CIFAR10": Known(FLAG, "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    "CIFAR100": Known(FLAG, "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"),
    "CLEVRClassification": Known(
        _named(train="train", val="val"),
        "https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip",
        "clevr",
    ),
    "Country211": Known(
        _named(train="train", val="valid", test="test"),
        "https://openaipublic.azureedge.net/clip/data/country211.tgz",
    ),
    "DTD": Known(
        {split: {"split": split, "partition": 1} for split in ("train", "val", "test")},
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        "dtd",
    ),
    "EMNIST": Known(
        {ours: {"split": "balanced", **how} for ours, how in FLAG.items()},
        "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
        "EMNIST/raw",
    ),
    "EuroSAT": Known(WHOLE, "EuroSAT.zip from https://github.com/phelber/eurosat", "eurosat"),
    "FashionMNIST": Known(
        FLAG,
        "the four files of https://github.com/zalandoresearch/fashion-mnist",
        "FashionMNIST/raw",
    ),
    "FER2013": Known(
        TRAIN_TEST,
        "https://www.kaggle.com/c/challenges-in-representation-learning-facial-expression"
        "-recognition-challenge",
        "fer2013",
    ),
    "FGVCAircraft": Known(
        THREE,
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
    ),
    "Flowers102": Known(
        THREE,
        "102flowers.tgz, imagelabels.mat and setid.mat from "
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        "flowers-102",
    ),
    "Food101": Known(TRAIN_TEST, "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz"),
    "GTSRB": Known(
        TRAIN_TEST,
        "GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip from "
        "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",
        "gtsrb",
    ),
    "ImageNet": Known(
        _named(train="train", val="val"),
        "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
        "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php",
    ),
    "Imagenette": Known(
        _named(train="train", val="val"),
        "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2.tgz",
    ),
    "INaturalist": Known(
        {"train": {"version": "2021_train_mini"}, "val": {"version": "2021_valid"}},
        "train_mini.tar.gz and val.tar.gz of 2021 from https://github.com/visipedia/inat_comp",
    ),
    "KMNIST": Known(FLAG, "the four files of https://github.com/rois-codh/kmnist", "KMNIST/raw"),
    "MNIST": Known(
        FLAG, "the four files below https://ossci-datasets.s3.amazonaws.com/mnist/", "MNIST/raw"
    ),
    "OxfordIIITPet": Known(
        _named(train="trainval", test="test"),
        "images.tar.gz and annotations.tar.gz from https://www.robots.ox.ac.uk/~vgg/data/pets/",
        "oxford-iiit-pet",
    ),
    "PCAM": Known(THREE, "the six .h5 files of https://github.com/basveeling/pcam", "pcam"),
    "Places365": Known(
        {
            "train": {"split": "train-standard", "small": True},
            "val": {"split": "val", "small": True},
        },
        "the small (256 x 256) archives of http://places2.csail.mit.edu/download.html",
    ),
    "QMNIST": Known(FLAG, "the files of https://github.com/facebookresearch/qmnist", "QMNIST/raw"),
    "RenderedSST2": Known(THREE, "https://openaipublic.azureedge.net/clip/data/rendered-sst2.tgz"),
    "SEMEION": Known(
        WHOLE, "http://archive.ics.uci.edu/ml/machine-learning-databases/semeion/semeion.data"
    ),
    "StanfordCars": Known(
        TRAIN_TEST,
        "cars_train, cars_test, devkit and cars_test_annos_withlabels.mat of Stanford Cars",
        "stanford_cars",
    ),
    "STL10": Known(TRAIN_TEST, "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"),
    "SUN397": Known(WHOLE, "http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz"),
    "SVHN": Known(
        TRAIN_TEST,
        "http://ufldl.stanford.edu/housenumbers/train_32x32.mat and test_32x32.mat beside it",
    ),
    "USPS": Known(
        FLAG,
        "usps.bz2 and usps.t.bz2 from "
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/multiclass/",
    ),
}
# Read by `tailor/datasets/omniglot.py`, because its two halves share no classes.
OMNIGLOT = Known(
    {"background": {"background": True}, "evaluation": {"background": False}},
    "images_background.zip and images_evaluation.zip from "
    "https://github.com/brendenlake/omniglot/tree/master/python (keep the archives, too)",
    "omniglot-py",
)


class Opened:
    """A source that reads from a torchvision data set."""

    def __init__(self, dataset: Any, name: str) -> None:
        """Take an opened set; ``name`` leads every `where` of a set that is no files."""
        self.dataset = dataset
        self.name = name
        self.paths = _paths(dataset)  # (n,), or empty where images are no files

    def read(self, i: int) -> Image.Image:
        """Let torchvision decode image ``i``."""
        image: Image.Image = self.dataset[i][0]
        return image

    def where(self, i: int) -> str:
        """The file's path where torchvision knows one, else name and number."""
        return str(self.paths[i]) if self.paths else f"{self.name} image {i}"


def read(name: str, root: Path, *, download: bool) -> Task:
    """Open ``torchvision:name``.

    Raises:
        BadInput: no such classification set, or it is not below ``root``.
    """
    if name == "Omniglot":
        raise BadInput("torchvision:Omniglot has splits without common classes: use task omniglot")
    if name not in SETS:
        near = {known.lower(): known for known in SETS}
        if name.lower() not in near:
            raise BadInput(
                f"torchvision:{name} is no classification set known here: use one of "
                f"{', '.join(SETS)}"
            )
        name = near[name.lower()]
    return open_set(name, root, download=download, name=name)


def open_set(
    cls: str, root: Path, *, download: bool, name: str, mean: Rgb = MEAN, std: Rgb = STD
) -> Task:
    """Open one of `SETS` under a name of ours.

    Args:
        cls: torchvision's class.
        root: torchvision's root folder.
        download: let torchvision fetch what is missing, where it can.
        name: of the task.
        mean: per channel, in 0..1.
        std: likewise.

    Raises:
        BadInput: it is missing or broken; the message says what to fetch and where to put it.
    """
    parts = {
        split: construct(cls, SETS[cls], arguments, root, download=download, name=name)
        for split, arguments in SETS[cls].splits.items()
    }
    labels = {split: _labels(dataset) for split, dataset in parts.items()}
    classes = getattr(parts["train"], "classes", None) or getattr(
        parts["train"], "categories", None
    )
    if classes is None:
        # Labels without names, not always from 0 (CLEVR counts 3 to 10 objects).
        values = sorted(set(labels["train"]))
        number = {value: k for k, value in enumerate(values)}
        labels = {split: [number.get(v, -1) for v in of] for split, of in labels.items()}
        classes = values
    splits = {}
    for split, dataset in parts.items():
        source = Opened(dataset, f"{name} {split}")
        splits[split] = Split(source, labels[split])
        if source.paths:
            # Some sets list files in the order of the file system, another on each machine.
            names = [str(path) for path in source.paths]
            splits[split] = splits[split].subset(sorted(range(len(names)), key=names.__getitem__))
    titles = tuple(", ".join(c) if isinstance(c, tuple) else str(c) for c in classes)
    return Task(name=_sample.named(name, root), classes=titles, splits=splits, mean=mean, std=std)


def construct(
    cls: str, known: Known, arguments: Arguments, root: Path, *, download: bool, name: str
) -> Any:
    """One torchvision data set, or the error that says how to get it."""
    import torchvision.datasets  # here, because listing tasks should not wait for it

    make = getattr(torchvision.datasets, cls)
    can_download = "download" in inspect.signature(make).parameters
    with _talk_to_stderr(), _sample.own_sums(make, root):
        try:
            return make(root, **arguments)
        # RuntimeError, OSError, ValueError, ModuleNotFoundError, ...: each class has its own.
        except Exception as error:
            if not (download and can_download):
                offer = "download it with --download, or " if can_download else ""
                raise _missing(name, known, root, error, offer) from error
        try:
            return make(root, download=True, **arguments)
        except Exception as error:
            raise _missing(name, known, root, error, "the download failed; ") from error


def _missing(name: str, known: Known, root: Path, error: Exception, offer: str) -> BadInput:
    reason = " ".join(str(error).split()).partition(" You can use download")[0].rstrip(".")
    return BadInput(
        f"{name} cannot be read below {root} ({reason}): {offer}fetch {known.fetch} "
        f"into {root / known.folder} and unpack archives there"
    )


def _paths(dataset: Any) -> list[str | Path]:
    for attribute in ("_image_files", "_samples", "samples", "imgs"):
        entries = getattr(dataset, attribute, None) or []
        paths = [entry[0] if isinstance(entry, tuple) else entry for entry in entries]
        if paths and isinstance(paths[0], str | Path):
            return paths
    return []


def _labels(dataset: Any) -> list[int]:
    for attribute in ("_labels", "labels", "targets", "y"):
        if hasattr(dataset, attribute):
            values = torch.as_tensor(getattr(dataset, attribute))
            if values.ndim == 1:
                return [int(v) for v in values.tolist()]
    for attribute in ("_samples", "samples"):
        if hasattr(dataset, attribute):
            return [int(label) for _, label in getattr(dataset, attribute)]
    return [int(dataset[i][1]) for i in range(len(dataset))]  # decodes: slow, but right


@contextlib.contextmanager
def _talk_to_stderr() -> Iterator[None]:
    """Standard output may be one JSON document, and some sets print while they download."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
