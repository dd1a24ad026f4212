"""Identity of a task's data: a short fingerprint that changes when images or labels do.

A run that resumes, and a trial that is found again, must not silently go on with other images. All
labels are hashed, and every image by what is cheapest: stored bytes where they are in memory; name
and size of a file, and the bytes of a sample; of sources that only decode, a sample. Left out:
which images a task has (``task.py``).
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from tailor.task import Split, Task

_SAMPLE = 32  # images per split whose content is looked at where looking at all would take long


def fingerprint(task: Task) -> str:
    """Sixteen hexadecimal digits over classes, labels and images of all splits.

    Args:
        task: from ``open_task``; a smaller part of the same data has another fingerprint.
    """
    digest = hashlib.sha256("\n".join(task.classes).encode())
    for name in sorted(task.splits):
        split = task.splits[name]
        digest.update(f"{name} {len(split)}\n".encode())
        digest.update(split.labels.contiguous().numpy().tobytes())
        _images(split, digest)
        if split.maps is not None:
            _maps(split.maps, split.index.tolist(), digest)
    return digest.hexdigest()[:16]


def of_images(split: Split) -> str:
    """SHA-256 over the images of one split in their order, by what ``fingerprint`` looks at."""
    digest = hashlib.sha256(f"{len(split)}\n".encode())
    _images(split, digest)
    return digest.hexdigest()


def _images(split: Split, digest: Any) -> None:
    source: Any = split.source
    places = split.index.tolist()
    if paths := getattr(source, "paths", None):
        for i in places:
            name = str(paths[i])  # a Path would take longer than the file system
            try:
                size = os.stat(name).st_size
            except OSError:
                size = -1
            # The last two parts: the same data may be mounted elsewhere on another machine.
            digest.update(f"{'/'.join(name.rsplit('/', 2)[-2:])} {size}\n".encode())
        for i in places[:: max(1, len(places) // _SAMPLE)]:  # sizes may all be equal
            path = Path(paths[i])
            digest.update(path.read_bytes() if path.exists() else b"")
    elif isinstance(pixels := getattr(source, "pixels", None), np.ndarray):
        for i in places:
            digest.update(np.ascontiguousarray(pixels[i]).data)
    elif (encoded := getattr(source, "encoded", None)) is not None:
        for i in places:
            digest.update(encoded(i))
    else:
        for k in range(len(places))[:: max(1, len(places) // _SAMPLE)]:
            digest.update(split.read(k).tobytes())


def _maps(maps: Any, places: list[int], digest: Any) -> None:
    """Stored bytes of label maps where they are in memory, otherwise a sample."""
    encoded = getattr(maps, "encoded", None)
    for i in places[:: 1 if encoded else max(1, len(places) // _SAMPLE)]:
        digest.update(encoded(i) if encoded else np.ascontiguousarray(maps.read(i)).tobytes())
