"""Cache: what a student's frozen start returns for the images of a split, computed once.

Where training sees every image the same way in every epoch, the start of the network that the task
leaves as it was (``prefix.py``) need not run again: its outputs are kept in memory, or in a folder
where later runs, other seeds and other tasks find them. A file is named by the identity of what is
in it: weights, start, view, images in their order, precision. So another backbone reads and writes
other files; a file that holds something else than its name says, or is damaged by a bit, is refused
by name, and nothing else is touched. Left out: which start (``prefix.py``), and how a batch carries
it (``data.py``).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from tailor.data import Batches, placed
from tailor.distributed import Group
from tailor.errors import BadInput
from tailor.options import Images
from tailor.prefix import Prefix, Starting
from tailor.progress import Progress
from tailor.run import Unwritable, read_about, read_tensors, write_tensors
from tailor.settings import Settings
from tailor.student import Student

AUTO, MEMORY, OFF = "auto", "memory", "off"  # any other value of --cache is a folder
_SAID = {  # what differs between two files, in words
    "fingerprint": "backbone",
    "backbone": "backbone",
    "prefix": "frozen start",
    "exact": "rounding",
    "device": "kind of device",
    "view": "preprocessing",
    "images": "images",
}


def give_outputs(
    student: Student,
    splits: Mapping[str, Batches],
    images: Images,
    settings: Settings,
    progress: Progress,
) -> None:
    """Let the batches carry what the student's frozen start returns, as ``images.cache`` says.

    Args:
        student: moved to where the batches are, as training will.
        splits: by the name that the user knows them by.
        images: where the cache is, and how much memory it may take.
        settings: of the training; its precision and layout are the cache's.
        progress: who is told.

    Raises:
        BadInput: a cache is asked for where images vary or for more than fits, a file of it is
            damaged or holds something else, or its folder cannot be written.
    """
    asked = images.cache not in (AUTO, OFF)
    varying = [name for name, found in splits.items() if found.train and found.view.varies]
    if varying and asked:
        raise BadInput(
            f"cache {images.cache!r} keeps one output per image, but {varying[0]} sees images in "
            f"many ways; give --crop none without --flip and --color, or --cache off"
        )
    if images.cache == OFF or varying:
        return
    device = next(iter(splits.values())).device
    module = cast(nn.Module, student).to(device)
    if settings.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    prefix = student.prefix() if isinstance(student, Starting) else None
    if prefix is None:
        if asked:
            progress.say(f"nothing to keep: {student.method} leaves no start of its network frozen")
        return
    row = _row(prefix, student, device, settings)
    needed = row.nbytes * sum(len(found.split) for found in splits.values())
    if needed > images.memory_gb * 2**30:
        if asked:
            raise BadInput(
                f"the outputs of {prefix.name} take {needed / 2**30:.3g} GB, more than "
                f"--memory-gb {images.memory_gb:g} allows; raise it, or give --cache off"
            )
        return
    folder = Path(images.cache) if images.cache not in (AUTO, MEMORY) else None
    for name, found in splits.items():
        found.give(
            placed(_outputs(student, prefix, found, name, folder, settings, progress), device)
        )


def _row(prefix: Prefix, student: Student, device: torch.device, settings: Settings) -> Tensor:
    """The output for one image."""
    image = torch.zeros(1, *student.universal.input_size, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
        return prefix.run(image)


def _outputs(
    student: Student,
    prefix: Prefix,
    batches: Batches,
    split: str,
    folder: Path | None,
    settings: Settings,
    progress: Progress,
) -> Tensor:
    """(N, ...) on the CPU: from the folder where they are, computed where they are not."""
    if folder is None:
        return _computed(prefix, batches, split, settings, progress)
    about = identity(student, prefix, batches, settings)
    path = folder / file_name(about)
    group = Group.current()
    if group.rank == 0 and not path.exists():
        _tell_of_others(folder, about, progress)
        outputs = _computed(prefix, batches, split, settings, progress)
        try:
            write_tensors(path, {"outputs": outputs}, about)
        except Unwritable as error:
            raise BadInput(
                f"cannot keep outputs in --cache {folder} ({error.__cause__}); give a folder that "
                f"can be written, or --cache memory"
            ) from error
    group.wait()
    return opened(path, about)


def identity(
    student: Student, prefix: Prefix, batches: Batches, settings: Settings
) -> dict[str, Any]:
    """All that the outputs are a function of, as JSON."""
    view, backbone = batches.view, student.universal
    row = _row(prefix, student, batches.device, settings)
    seen = ("px", "side", "resize", "squash", "channels")
    return {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "prefix": prefix.name,
        "exact": prefix.exact,
        "device": batches.device.type,
        "shape": list(row.shape[1:]),
        "dtype": str(row.dtype),
        "bf16": settings.bf16,
        "channels_last": settings.channels_last,
        "view": {n: getattr(view, n) for n in seen}
        | {"mean": list(view.mean), "std": list(view.std)},
        "images": batches.fingerprint(),
        "count": len(batches.split),
    }


def file_name(about: Mapping[str, Any]) -> str:
    """Of the outputs with this identity: the start's name and sixteen digits."""
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    return f"{about['prefix']}-{digest.hexdigest()[:16]}.safetensors"


def opened(path: Path, about: Mapping[str, Any]) -> Tensor:
    """The outputs in ``path``.

    Raises:
        BadInput: the file is damaged, or holds outputs of another identity.
    """
    try:
        tensors, found = read_tensors(path)
    except BadInput as error:
        why = error.__cause__ or error
        raise BadInput(
            f"cache file {path} is damaged ({why}); delete it, and it is computed anew"
        ) from error
    if other := _differences(found, about):
        raise BadInput(
            f"cache file {path} holds outputs of other {' and '.join(other)} than its name says; "
            f"delete it, and it is computed anew"
        )
    return tensors["outputs"]


def _differences(found: Any, about: Mapping[str, Any]) -> list[str]:
    """In words, what differs."""
    if not isinstance(found, dict):
        return ["origin"]
    keys = [key for key, value in about.items() if found.get(key) != value]
    return list(dict.fromkeys(_SAID.get(key, key) for key in keys))


def _tell_of_others(folder: Path, about: Mapping[str, Any], progress: Progress) -> None:
    """Say in which one thing the files that are there differ from what is needed."""
    for path in sorted(folder.glob("*.safetensors")):
        if len(other := _differences(read_about(path), about)) == 1:
            progress.say(f"cache: {path.name} is of another {other[0]}, so it is not used")


def _computed(
    prefix: Prefix, batches: Batches, split: str, settings: Settings, progress: Progress
) -> Tensor:
    count, began = len(batches.split), time.monotonic()
    progress.say(f"computing {prefix.name} of {count} {split} images once")
    kept: Tensor | None = None
    for images, places in batches.in_order():
        with torch.autocast(batches.device.type, torch.bfloat16, enabled=settings.bf16):
            outputs = prefix.run(images)
        if kept is None:
            kept = torch.empty(count, *outputs.shape[1:], dtype=outputs.dtype)
        kept[places] = outputs.cpu()
    assert kept is not None  # Batches refuses an empty split
    seconds, size = time.monotonic() - began, kept.nbytes / 2**20
    progress.say(f"kept {prefix.name} of {split}: {size:.1f} MB in {seconds:.1f} s")
    return kept
