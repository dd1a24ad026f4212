"""Weights: reading a state dict from a file, and fitting it into a network, all or nothing.

Files are safetensors, or a ``.pth`` that is read without running any code in it. Left out: fetching
pre-trained weights, which timm does (``backbone.py``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from tailor.errors import BadInput, first_line
from tailor.run import SEQUENCE


def weights_file(path: Path) -> Path:
    """The weights file that ``path`` names: itself, or that of a finished teacher's run."""
    if path.is_dir():
        inside = path / "weights.safetensors"
        if not inside.is_file() and (path / "result.json").is_file():
            raise BadInput(
                f"{path} is the run of a student, which leaves no plain weights; name the run of a "
                f"teacher (`tailor teach`, mode finetune or scratch) or a weights file"
            )
        if (path / SEQUENCE).exists():
            raise BadInput(
                f"{path} is a sequence of tasks, which leaves no plain weights; name the run of a "
                f"teacher or a weights file"
            )
        if not inside.is_file():
            raise BadInput(
                f"{path} holds no weights.safetensors: finish that teacher first "
                f"(`tailor teach ... --out {path}`), or name a weights file"
            )
        return inside
    if not path.is_file():
        raise BadInput(
            f"weights {str(path)!r} is no file or run directory; give an existing path, "
            f"`pretrained` or `random`"
        )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a ``.pth`` without running any code in it."""
    state = _safetensors(path) if path.suffix == ".safetensors" else read_pth(path, "weights")
    for key in ("state_dict", "model", "model_state"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise BadInput(f"weights {path}: not a state dict (a map from names to tensors)")
    if state and all(name.startswith("module.") for name in state):  # saved from DataParallel
        state = {name.removeprefix("module."): t for name, t in state.items()}
    return state


def read_pth(path: Path, what: str) -> Any:
    """What ``torch.save`` wrote: tensors, numbers, lists and maps; no code in the file is run.

    Args:
        path: the file.
        what: the word for it in errors.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start[:1] != b"\x80" and start != b"PK":  # a pickle, or a zip archive
            raise ValueError("torch.save did not write it")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = "weights_only" in str(error) or "Unsupported" in str(error)
        why = (
            "it needs unpickling, which would run code stored in the file; save its tensors alone, "
            "such as a state_dict() with safetensors"
            if pickled
            else f"it cannot be read ({first_line(error)}); fetch or write it again"
        )
        raise BadInput(f"{what} {path}: {why}") from error


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as error:
        raise BadInput(
            f"weights {path}: it cannot be read ({first_line(error)}); fetch or write it again"
        ) from error


def head_names(classifier: str) -> list[str]:
    """Modules that a file may keep its head under: timm's name or names for it first."""
    return list(dict.fromkeys([*classifier.strip("()'").split("', '"), "fc", "linear"]))


def load_weights(model: nn.Module, path: Path, classifier: str = "fc") -> None:
    """Fill ``model`` from a file; all or nothing, and every tensor must find its place.

    The head's tensors (``classifier``) are dropped; a first convolution with other input channels
    and position embeddings of another grid are converted as timm does.

    Raises:
        BadInput: missing, extra or differently shaped tensors.
    """
    state, own = read_state(path), model.state_dict()
    head = tuple(f"{name}." for name in head_names(classifier))
    extra = [n for n in state if n not in own and not n.startswith(head)]
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if path.name == "student.safetensors" and (path.parent / "run.json").exists():
        raise BadInput(
            f"weights {path} are a student's part of a run; give the run of a teacher, its folder"
        )
    if missing or extra:
        what = f"lacks {missing[0]!r}" if missing else f"has an unknown {extra[0]!r}"
        raise BadInput(
            f"weights {path} are of another architecture: the file {what} "
            f"({len(missing)} missing, {len(extra)} extra tensors); name the right --backbone"
        )
    fitted = dict(own)
    for name in (n for n in own if n in state):
        fitted[name] = _fit(name, state[name], own[name], path)
    model.load_state_dict(fitted)


def _fit(name: str, given: Tensor, wanted: Tensor, path: Path) -> Tensor:
    if given.shape == wanted.shape:
        return given
    first_conv = given.ndim == 4 and given.shape[2:] == wanted.shape[2:]
    if first_conv and given.shape[0] == wanted.shape[0] and given.shape[1] == 3:
        converted: Tensor = adapt_input_conv(wanted.shape[1], given)
        return converted
    if name == "pos_embed" and given.ndim == 3 and given.shape[2] == wanted.shape[2]:
        grid, prefix = _grid(wanted.shape[1])
        if prefix == _grid(given.shape[1])[1]:
            resampled: Tensor = resample_abs_pos_embed(
                given, [grid, grid], num_prefix_tokens=prefix
            )
            return resampled
    raise BadInput(
        f"weights {path} are of another architecture: {name!r} is {tuple(given.shape)} in the file "
        f"and {tuple(wanted.shape)} in the network; name the backbone they belong to"
    )


def _grid(tokens: int) -> tuple[int, int]:
    side = int(tokens**0.5)
    return side, tokens - side * side
