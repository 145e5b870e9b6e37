"""Published architectures, small, through everything that a trial does with its network.

Each is traced, exported, pruned at every ratio, exported again at one half, stored in 8 bits and
trained. Kinds that differ in how their channels run are exported again at every ratio;
``make bench`` does so with all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from search.engine.store import Store
from search.networks import batch_norm, networks
from search.networks.pruning import groups
from search.networks.pruning import prune as pruning
from tests.architectures import PAGE, RATIOS, ROUND_TO, close, figures, spec_of, walk
from tests.families import FAMILIES

SMALL = [name for name, family in FAMILIES.items() if family.is_small]
# Residual sums, groups, depthwise and shuffled channels, concatenations, branches, resolutions.
EXPORTED = (
    "resnet",
    "resnext",
    "mobilenetv2",
    "shufflenet",
    "densenet",
    "inception",
    "hrnet",
    "unet",
)
# Of the multiply-accumulates, what a ratio of one half leaves at most where code fixes channels.
HALF_LEAVES = {"shufflenet": 0.6, "mixnet": 0.6, "shufflenetv2": 0.5, "resnext": 0.5, "regnet": 0.5}


@pytest.mark.parametrize("family", SMALL)
def test_works_in_every_stage(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_norm, "SMALLEST", 0)
    found = walk(family, Store(tmp_path), RATIOS if family in EXPORTED else (0.5,))
    assert found.reasons == {}
    assert found.traces >= 1
    assert len(found.left) == len(RATIOS)
    assert found.left == sorted(found.left, reverse=True)
    assert found.left[1] < HALF_LEAVES.get(family, 0.3)
    assert figures(found) in PAGE.read_text(), "the docs tell something else"


@pytest.mark.parametrize("family", [name for name in SMALL if name != "cbam"])
def test_pruned_as_if_nobody_looked_at_the_channels(family: str) -> None:
    # CBAM's gates look at the mean over all channels, of which fewer are left.
    spec = spec_of(family)
    torch.manual_seed(0)
    module = networks.build(spec).eval()
    seen = pruning.look(module, spec.image_shape)
    images = torch.rand(2, *spec.image_shape)
    for ratio in RATIOS:
        removed = np.concatenate(groups.removed_at(seen.groups, ratio, ROUND_TO))
        masked = networks.build(spec).eval()
        masked.load_state_dict(module.state_dict())
        for use in seen.channels.uses:
            if use.side == "in":
                weight = masked.get_parameter(f"{use.name}.weight").data
                axis = int(not isinstance(masked.get_submodule(use.name), torch.nn.ConvTranspose2d))
                gone = np.isin(use.atoms, removed)[: weight.shape[axis]]
                weight.movedim(axis, 0)[torch.from_numpy(gone)] = 0
        smaller, _ = pruning.prune(module, spec.image_shape, ratio, ROUND_TO)
        with torch.no_grad():
            close(smaller(images), masked(images), f"{family} at {ratio}")
