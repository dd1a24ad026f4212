"""`folder:PATH`: images in one folder per class, below train/ and test/ or val/.

    PATH/train/CLASS/IMAGE      needed
    PATH/val/CLASS/IMAGE        validation; carved out of train where it is missing
    PATH/test/CLASS/IMAGE       test; without it nothing is reported on test images

A val/ is only ever used for model selection, also where there is no test/: a number on
images that chose the model is not a test result. Class folders may hold further folders.
Hidden files and files that are no images by their ending are left out.
"""

from __future__ import annotations

from pathlib import Path

from tailor.errors import BadInput
from tailor.task import Files, Split, Task

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm")


def read(path: str, root: Path, *, download: bool) -> Task:
    """Open the folder at ``path``, relative to the working directory; nothing is downloaded.

    Raises:
        BadInput: no train/ or no class in it, an empty class, or classes of val/ or test/
            that differ from train's.
    """
    base = Path(path).expanduser()
    if not (base / "train").is_dir():
        raise BadInput(
            f"{base} has no folder train: put each class's images into {base}/train/CLASS/"
        )
    splits, classes = {}, _classes(base / "train")
    for name in ("train", "val", "test"):
        if (base / name).is_dir():
            splits[name] = _split(base / name, classes)
    return Task(name=base.resolve().name, classes=tuple(classes), splits=splits)


def _split(base: Path, classes: list[str]) -> Split:
    found = _classes(base)
    if found != classes:
        strange = [c for c in found if c not in classes]
        missing = [c for c in classes if c not in found]
        what = f"class {strange[0]!r}, which" if strange else f"no class {missing[0]!r}, which"
        raise BadInput(
            f"{base} has {what} {base.parent / 'train'} {'has not' if strange else 'has'}: "
            "every split needs the same class folders"
        )
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = _images(base / name)
        if not images:
            raise BadInput(
                f"class folder {base / name} holds no image ({' '.join(ENDINGS)}): "
                "add images or remove the class from every split"
            )
        paths += images
        labels += [label] * len(images)
    return Split(Files(paths), labels)


def _classes(base: Path) -> list[str]:
    """Names of the class folders, sorted."""
    names = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise BadInput(f"{base} has no class folders: put each class's images into {base}/CLASS/")
    return names


def _images(base: Path) -> list[Path]:
    return sorted(
        path
        for path in base.rglob("*")
        if path.suffix.lower() in ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(base).parts)
    )
