"""What the technique does with torch.

Source: Denton et al. 2014 (arXiv 1404.0736), for dense layers by their singular values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cnn_search_example import Factorise
from search.networks import networks
from search.records.network import Edit
from search.records.steps.editing import Edited
from search.records.steps.step import ArtifactStore

STEP = 4  # ranks are multiples of this, because each is traced anew


def run(step: Factorise, artifacts: ArtifactStore) -> Edited:
    """Does the step."""
    module = networks.load(step.network, artifacts)
    dense = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    name = max(dense, key=lambda one: dense[one].weight.numel(), default=None)
    if name is None:
        return Edited(step.network)
    weight, bias = dense[name].weight.detach(), dense[name].bias
    rank = max(STEP, STEP * round(step.share * min(weight.shape) / STEP))
    if rank * sum(weight.shape) >= weight.numel():  # two layers would be more than the one
        return Edited(step.network)
    edit = Edit("cnn_search_example.factorising:split", (("layer", name), ("rank", rank)))
    first, second = split(module, dict(edit.values)).get_submodule(name).children()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    with torch.no_grad():
        first.weight.copy_(values[:rank].sqrt()[:, None] * right[:rank])
        second.weight.copy_(left[:, :rank] * values[:rank].sqrt())
        if bias is not None:
            second.bias.copy_(bias)
    network = networks.save(module, step.network.spec, artifacts, (*step.network.edits, edit))
    return Edited(network, {"rank": float(rank)})


def split(module: nn.Module, values: Mapping[str, Any]) -> nn.Module:
    """Puts two dense layers in the place of one; their weights are fresh."""
    layer = module.get_submodule(values["layer"])
    assert isinstance(layer, nn.Linear)
    pair = nn.Sequential(
        nn.Linear(layer.in_features, values["rank"], bias=False),
        nn.Linear(values["rank"], layer.out_features, bias=layer.bias is not None),
    )
    module.set_submodule(values["layer"], pair)
    return module
