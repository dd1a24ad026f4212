"""What published weights compute on images: the verb ``tailor weights``.

The top-1 of a file's classifier, and how far two files agree that should compute the same, such as
a side network and the network that it was distilled from. Left out: which network a file belongs
to (``published_weights.py``).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from tailor.data import Batches
from tailor.errors import BadInput
from tailor.opened import task_of
from tailor.options import Data, Weights
from tailor.published_weights import NoNetwork, Published, described, load, write
from tailor.settings import pick_device
from tailor.task import Task
from tailor.view import View

_BATCH = 128


def weights(options: Weights) -> dict[str, Any]:
    """What ``tailor weights`` says of files; see its ``--help``.

    Returns:
        ``files``: for each its ``network`` (None where none fits, with ``why``), ``tensors``,
        ``params``, ``head``, ``buffers``, ``input``, ``output``, ``classes``, ``same_as`` (an
        earlier one of equal numbers); with a task ``measured``, see ``measure``. ``out``: what was
        written.

    Raises:
        BadInput: an unreadable file, files of none of our networks, networks that cannot be
            compared, or two files that are parts of no network.
    """
    if not options.files:
        raise BadInput("no file given; name weights, as in `tailor weights resnet44.safetensors`")
    if options.teacher is not None and options.task is None:
        raise BadInput("--teacher needs images to compare on; give --task, such as npz:FOLDER")
    found: list[dict[str, Any]] = []
    known: list[Published] = []
    for path in options.files:
        try:
            one = load(path, options.images.px)
        except NoNetwork as error:
            found.append({"file": str(path), "network": None, "why": str(error)})
        else:
            twin = next((other for other in known if _alike(one, other)), None)
            found.append(described(one) | {"same_as": None if twin is None else str(twin.path)})
            known.append(one)
    if not known:
        raise BadInput(found[0]["why"])
    if options.task is not None:
        teacher = None if options.teacher is None else load(options.teacher, options.images.px)
        task = task_of(_data(options))
        of = {str(one.path): one for one in known}
        for row in (row for row in found if row["network"]):
            row["measured"] = measure(of[row["file"]], task, options, teacher)
    result: dict[str, Any] = {"files": found, "out": None}
    if options.out is not None:
        name = write(known, options.out)
        result["out"] = {"file": str(options.out), "network": name}
    return result


@torch.no_grad()
def measure(
    one: Published, task: Task, options: Weights, teacher: Published | None = None
) -> dict[str, Any]:
    """What a file computes on the images of a task.

    Returns:
        ``n`` images; ``outputs``: mean, deviation and share of zeros of all numbers of the
        features, and ``between``, the deviation of a feature between images, averaged over
        features; ``top1`` where the file's head has as many classes as the task; with a teacher
        what ``agreement`` says of their logits, or of their outputs where one has no head.

    Raises:
        BadInput: outputs of two shapes.
    """
    outputs, logits, labels = _outputs(one, task, options)
    found: dict[str, Any] = {"n": len(outputs), "outputs": _statistics(outputs)}
    same = one.head is not None and one.head.out_features == len(task.classes)
    if same and labels.ndim == 1:
        found["top1"] = float((logits.argmax(1) == labels).float().mean())
    if teacher is not None:
        theirs, their_logits, _ = _outputs(teacher, task, options)
        if one.head is not None and teacher.head is not None:
            outputs, theirs = logits, their_logits
        if outputs.shape[1:] != theirs.shape[1:]:
            raise BadInput(
                f"{one.path} computes {tuple(outputs.shape[1:])} of an image and {teacher.path} "
                f"{tuple(theirs.shape[1:])}: they cannot be compared; give a --teacher with as many"
            )
        found["agreement"] = agreement(outputs, theirs)
    return found


def agreement(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    """How far two networks say the same.

    Args:
        ours, theirs: (N, K) logits, or outputs of any other shape.

    Returns:
        ``correlation`` of all numbers, those of logits less the mean of each image, which no
        probability depends on. Of logits also ``top1`` (share of images with the same best class),
        ``chance`` (that share if images were paired at random) and ``kl`` (mean of KL(theirs ‖
        ours), in nats).
    """
    if ours.ndim != 2:
        return {"correlation": _correlation(ours, theirs)}
    best = [logits.argmax(1) for logits in (ours, theirs)]
    shares = [torch.bincount(b, minlength=ours.shape[1]).double() / len(b) for b in best]
    log_ours, log_theirs = (logits.double().log_softmax(1) for logits in (ours, theirs))
    return {
        "top1": float((best[0] == best[1]).double().mean()),
        "chance": float((shares[0] * shares[1]).sum()),
        "kl": float((log_theirs.exp() * (log_theirs - log_ours)).sum(1).mean()),
        "correlation": _correlation(*(x - x.mean(1, keepdim=True) for x in (ours, theirs))),
    }


def _alike(one: Published, other: Published) -> bool:
    """Whether two files hold the same network with the same numbers."""
    pairs = zip(
        one.network.state_dict().values(), other.network.state_dict().values(), strict=False
    )
    return one.name == other.name and all(torch.equal(a, b) for a, b in pairs)


def _data(options: Weights) -> Data:
    return Data(task=cast(str, options.task), **vars(options.images))


def _outputs(one: Published, task: Task, options: Weights) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, logits (of no class without a head) and labels of a split, in its order."""
    images = options.images
    channels, _, px = one.input_size
    view = View(
        px=px,
        resize=images.resize,
        squash=images.squash,
        channels=channels,
        mean=one.mean,
        std=one.std,
    )
    if options.split not in task.splits:
        raise BadInput(
            f"task {task.name} has no {options.split} split; give --split "
            f"{' or '.join(task.splits)}"
        )
    device = pick_device(options.device)
    batches = Batches(
        task.splits[options.split],
        view,
        batch=_BATCH,
        train=False,
        device=device,
        workers=images.workers,
        skip_bad_images=images.skip_bad_images,
        memory_limit_bytes=int(images.memory_gb * 2**30),
    )
    network, head = one.network.to(device), one.head
    outputs, logits, labels = [], [], []
    for batch in batches.epoch(0):
        found = network(batch.images)
        outputs.append(found.cpu())
        logits.append(found.new_zeros(len(found), 0) if head is None else head.to(device)(found))
        labels.append(batch.labels)
    return torch.cat(outputs), torch.cat(logits).cpu(), torch.cat(labels).cpu()


def _statistics(outputs: Tensor) -> dict[str, float]:
    return {
        "mean": float(outputs.mean()),
        "std": float(outputs.std()),
        "zeros": float((outputs == 0).float().mean()),
        "between": float(outputs.std(dim=0).mean()) if len(outputs) > 1 else 0.0,
    }


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])
