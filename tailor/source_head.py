"""Source head: the classifier that a backbone's weights came with.

A ``Backbone`` has no head, because each task has its own. A method that must not forget the source
task asks for it here; only then is the file opened, or timm's network built, once more. Left out:
classifiers that are no single linear layer on the pooled features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from tailor.backbone import Backbone
from tailor.errors import BadInput, first_line
from tailor.weights import head_names, read_state, weights_file


def source_head(backbone: Backbone) -> nn.Linear | None:
    """The frozen linear classifier (D -> source classes) of the backbone's weights.

    Returns:
        None where they have none: random weights, a file without a head, or a classifier that is
        not one linear layer on D features.

    Raises:
        BadInput: the weights that the backbone was made from cannot be read any more.
    """
    if backbone.weights == "random" or backbone.dense:  # a map has no pooled features
        return None
    if backbone.weights == "pretrained":
        weight, bias = _of_timm(backbone)
    else:
        weight, bias = _of_file(backbone, weights_file(Path(backbone.weights)))
    if weight is None or weight.ndim != 2 or weight.shape[1] != backbone.num_features:
        return None
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    tensors = {"weight": weight} | ({} if bias is None else {"bias": bias})
    head.load_state_dict({n: t.detach().float() for n, t in tensors.items()}, assign=True)
    return head.requires_grad_(False)


def _of_timm(backbone: Backbone) -> tuple[Tensor | None, Tensor | None]:
    with torch.random.fork_rng(devices=[]):
        try:
            network: Any = timm.create_model(backbone.name, pretrained=True)
        except Exception as error:
            raise BadInput(
                f"no pre-trained classifier of {backbone.name!r} ({first_line(error)}); give "
                f"--weights FILE with one"
            ) from error
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return None, None
    return classifier.weight, classifier.bias


def _of_file(backbone: Backbone, path: Path) -> tuple[Tensor | None, Tensor | None]:
    config: Any = getattr(backbone.model, "pretrained_cfg", {})
    state = read_state(path)
    for name in head_names(str(config.get("classifier", "fc"))):
        if f"{name}.weight" in state:
            return state[f"{name}.weight"], state.get(f"{name}.bias")
    return None, None
