"""What pruning promises, however the channels of a network hang together.

In every network a share of the channels is made to do nothing, by weights of zero in the layers
that are named here. Pruned by that share it must lose these channels and no others, and give the
same logits.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.errors import InfeasiblePoint
from search.networks import networks
from search.networks.pruning.prune import macs_at, prune
from search.records.network import Network, NetworkSpec
from search.records.steps.editing import Edited
from search.records.steps.pruning import Prune, Sweep
from tests import couplings, zoo
from tests.workbench import Workbench

SHAPE = (1, 28, 28)
RATIOS = (0.25, 0.5, 0.75)
ROUND_TO = 1  # so that every width is allowed


@dataclass(frozen=True)
class Kind:
    """Which channels of a network belong together, as its author says.

    Attributes:
        factory: Of the network, ``module:function``.
        coupled: Layers that must lose the same channels, by names with spaces between.
        whole: Layers whose outputs must stay.
        groups: How many groups lose channels at the same places, by number of ``coupled``.
        averaging: A layer whose first input is a mean over channels, of which fewer are left.
    """

    factory: str
    coupled: tuple[str, ...]
    whole: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    averaging: str | None = None


def own(factory: str, *coupled: str, **more: object) -> Kind:
    return Kind(f"{couplings.__name__}:{factory}", coupled, **more)  # type: ignore[arg-type]


def of_zoo(factory: str, *coupled: str, **more: object) -> Kind:
    return Kind(f"{zoo.__name__}:{factory}", coupled, **more)  # type: ignore[arg-type]


KINDS = {
    "batch norm without weights": own("bare_norm", "stem", "body.0 body.1", "body.3"),
    "frozen batch norm": own("frozen_norm", "stem", "body.0 body.1", "body.3"),
    "frozen batch norm of buffers": own("buffer_norm", "stem", "body.0 body.1", "body.3"),
    "one batch norm twice": own("shared_norm", "stem", "body.0 body.1 body.3"),
    "one convolution twice": of_zoo("shared", "stem body.layer"),
    "one convolution under two names": own("two_names", "stem body.0", "body.4"),
    "tied convolutions": of_zoo("tied", "stem body.0 body.2"),
    "tied batch norms": own("tied_norms", "stem", "body.0 body.1 body.3 body.4"),
    "tied gains": own("tied_gains", "stem", "body.0 body.1 body.3 body.4"),
    "nested": own("nested", "stem", "body.0.0 body.0.1.0", "body.1.0.0"),
    "residual": own(
        "residual", "stem body.0.inner.3 body.0.inner.4", "body.0.inner.0 body.0.inner.1"
    ),
    "concatenated": of_zoo("concatenated", "stem", "body.narrow", "body.left", "body.right"),
    "depthwise": own("depthwise", "stem body.0 body.1", "body.3 body.4"),
    "grouped": of_zoo("grouped", "stem", "body.0", "body.2", "body.4", groups=(4, 4, 1, 1)),
    "shuffled": own(
        "shuffled",
        "stem body.0.inner.6 body.0.inner.7",
        whole=("body.0.inner.0", "body.0.inner.4"),
        groups=(4,),
    ),
    "halves": own(
        "halves",
        "body.branch.0 body.branch.1 body.branch.3 body.branch.4",
        whole=("stem", "body.branch.5"),
    ),
    "partial stage": own(
        "partial_stage",
        "stem",
        "body.inner.0 body.inner.1",
        "body.inner.3",
        "body.last",
        whole=("body.first",),
    ),
    "squeeze and excitation": own("excited", "stem", "body.0 body.2.expand", "body.2.reduce"),
    "attention by mean and maximum": own(
        "attended",
        "stem",
        "body.0 body.2.shared.2",
        "body.2.shared.0",
        whole=("body.2.spatial",),
        averaging="body.2.spatial",
    ),
}
EXPORTED = (  # what no published architecture in the gate has
    "frozen batch norm of buffers",
    "one convolution under two names",
    "tied convolutions",
    "partial stage",
)
# Names of what must be one and the same object.
SHARED = {
    "one batch norm twice": ("body.1", "body.4"),
    "one convolution under two names": ("body.0", "body.2"),
    "tied convolutions": ("body.0.weight", "body.2.weight"),
    "tied batch norms": ("body.1.weight", "body.4.weight"),
    "tied gains": ("body.1.weight", "body.4.weight"),
}


# ---- planting


def dead_channels(kind: Kind, ratio: float, module: nn.Module) -> list[list[int]]:
    """Chooses for every coupling which channels are to do nothing."""
    chosen = []
    generator = torch.Generator().manual_seed(1)
    for names, groups in zip(kind.coupled, kind.groups or [1] * len(kind.coupled), strict=True):
        size = len(module.get_parameter(f"{names.split()[0]}.weight")) // groups
        places = torch.randperm(size, generator=generator)[: round(ratio * size)].tolist()
        chosen.append([group * size + place for group in range(groups) for place in places])
    return chosen


def enliven(module: nn.Module) -> None:
    """Gives normalisations statistics and weights by which channels can be told apart."""
    generator = torch.Generator().manual_seed(2)
    ranges = {"weight": (0.5, 1.5), "running_var": (0.5, 1.5), "bias": (0.0, 0.5)}
    for layer in module.modules():
        if isinstance(getattr(layer, "running_var", None), Tensor):
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(layer, name, None)
                if tensor is not None:
                    tensor.data.uniform_(*ranges.get(name, (-0.5, 0.5)), generator=generator)


def silence(layer: nn.Module, channels: list[int]) -> None:
    """Has a layer make nothing but zeros in some channels; a normalisation if it is given zeros."""
    for name in ("weight", "bias", "running_mean"):
        tensor = getattr(layer, name, None)
        if tensor is not None:
            tensor.data[channels] = 0


def ignore_zeros(module: nn.Module) -> None:
    """Gives weights of zero to inputs that are always zero: these are worth nothing then.

    Which inputs these are is seen in the numbers that arrive, whatever the network is made of.
    """
    seen: dict[nn.Module, Tensor] = {}

    def see(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        size = inputs[0].abs()
        most = size.flatten(0, -2).amax(0) if isinstance(layer, nn.Linear) else size.amax((0, 2, 3))
        seen[layer] = torch.maximum(most, seen.get(layer, most))

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_pre_hook(see) for layer in layers]
    module(images(8))
    for hook in hooks:
        hook.remove()
    for layer, most in seen.items():
        weight = layer.get_parameter("weight").data
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        lives = (most > 0).view(groups, 1, -1, 1).to(weight.dtype)
        weight.view(groups, -1, weight.shape[1], weight[0, 0].numel()).mul_(lives)


def images(count: int) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class Case:
    """A network of which a share of the channels does nothing, before and after pruning.

    Attributes:
        kind: What it is made of.
        ratio: That share, and how much was pruned.
        dead: The channels, for every coupling.
        whole: Its record.
        module: The whole network.
        edited: What the step left.
        smaller: What the function left.
    """

    kind: Kind
    ratio: float
    dead: list[list[int]]
    whole: Network
    module: nn.Module
    edited: Edited
    smaller: nn.Module

    def logits(self, count: int) -> Tensor:
        """Returns the pruned network's logits ``[count, classes]``."""
        with torch.no_grad():
            found: Tensor = self.smaller(images(count))
        return found


def spec_of(factory: str) -> NetworkSpec:
    return NetworkSpec("custom", None, factory, (), None, SHAPE, zoo.CLASSES)


@torch.no_grad()
def plant(kind: Kind, ratio: float) -> tuple[nn.Module, list[list[int]]]:
    module = networks.build(spec_of(kind.factory)).eval()
    dead = dead_channels(kind, ratio, module)
    enliven(module)
    for names, channels in zip(kind.coupled, dead, strict=True):
        for name in names.split():
            silence(module.get_submodule(name), channels)
    ignore_zeros(module)
    return module, dead


@pytest.fixture(
    scope="module", params=[(k, r) for k in KINDS for r in RATIOS], ids=lambda p: f"{p[0]} {p[1]}"
)
def case(request: pytest.FixtureRequest, bench: Workbench) -> Case:
    name, ratio = request.param
    kind = KINDS[name]
    module, dead = plant(kind, ratio)
    whole = networks.save(module, spec_of(kind.factory), bench.store)
    edited = bench.do(Prune(whole, ratio, ROUND_TO))
    smaller, _ = prune(module, SHAPE, ratio, ROUND_TO)
    return Case(kind, ratio, dead, whole, module, edited, smaller)


# ---- what holds for all


def test_exactly_the_channels_that_do_nothing_go(case: Case) -> None:
    assert case.edited.figures["channels_removed"] == pytest.approx(case.ratio)
    for names, channels in zip(case.kind.coupled, case.dead, strict=True):
        for name in names.split():
            layer, whole = case.smaller.get_submodule(name), case.module.get_submodule(name)
            assert_kept(layer, whole, channels)
    for name in case.kind.whole:
        assert_kept(case.smaller.get_submodule(name), case.module.get_submodule(name), [])


def assert_kept(layer: nn.Module, whole: nn.Module, gone: list[int]) -> None:
    """Numbers of which there is one for each channel are those of the channels that are left."""
    for name, value in whole.state_dict().items():
        if value.ndim == 1:
            kept = [n for n in range(len(value)) if n not in gone]
            assert torch.equal(layer.state_dict()[name], value[kept]), name


def test_the_logits_stay(case: Case) -> None:
    module = case.module
    if case.kind.averaging:  # the mean of the channels that are left is that much larger
        module = copy.deepcopy(module)
        weight = module.get_parameter(f"{case.kind.averaging}.weight").data
        weight[:, 0] /= 1 - case.ratio
    with torch.no_grad():
        wanted = module(images(5))
    assert wanted.std() > 1e-3  # the channels that are left do something
    torch.testing.assert_close(case.logits(5), wanted, rtol=1e-5, atol=1e-5)


def test_any_number_of_images_is_taken(case: Case) -> None:
    together = case.logits(5)
    for count in (1, 2):
        torch.testing.assert_close(case.logits(count), together[:count], rtol=1e-5, atol=1e-6)


def test_less_is_left_to_compute(case: Case) -> None:
    whole, left = case.whole, case.edited.network
    assert left.macs < whole.macs
    assert left.parameters < whole.parameters
    assert macs_at(case.module, SHAPE, [case.ratio], ROUND_TO) == [left.macs]
    for (name, before), (same, after) in zip(whole.shapes, left.shapes, strict=True):
        assert name == same
        assert all(a >= b for a, b in zip(before, after, strict=True)), name


def test_the_record_rebuilds_the_same_network(case: Case, bench: Workbench) -> None:
    rebuilt = networks.load(case.edited.network, bench.store)
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(images(5)), case.logits(5))
    assert str(rebuilt) == str(case.smaller)  # channels and groups as layers tell them


def test_what_is_left_learns(case: Case, bench: Workbench) -> None:
    found = []
    for network in (case.edited.network, case.whole):
        module = networks.load(network, bench.store).train()
        F.cross_entropy(module(images(4)), torch.arange(4)).backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
        found.append({name for name, grad in gradients.items() if grad is not None})
        for name, grad in gradients.items():
            assert grad is None or grad.isfinite().all(), name
    assert found[0] == found[1]


# ---- what holds for some


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_stays_shared(name: str, ratio: float, bench: Workbench) -> None:
    spec = spec_of(KINDS[name].factory)
    module = networks.build(spec)  # not planted: of random weights each layer has its own opinion
    smaller, _ = prune(module, SHAPE, ratio, ROUND_TO)
    whole = networks.save(module, spec, bench.store)
    rebuilt = networks.load(bench.do(Prune(whole, ratio, ROUND_TO)).network, bench.store)
    for network in (smaller, rebuilt):
        one, other = (find(network, path) for path in SHARED[name])
        assert one is other


def find(module: nn.Module, path: str) -> object:
    """Returns a layer or a parameter."""
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", ["frozen batch norm", "frozen batch norm of buffers"])
def test_what_is_frozen_stays_frozen(name: str, ratio: float, bench: Workbench) -> None:
    module, (_, dead, _) = plant(KINDS[name], ratio)
    whole = networks.save(module, spec_of(KINDS[name].factory), bench.store)
    rebuilt = networks.load(bench.do(Prune(whole, ratio, ROUND_TO)).network, bench.store)
    rebuilt.train()(images(4))
    assert_kept(rebuilt.get_submodule("body.1"), module.get_submodule("body.1"), dead)


@pytest.mark.parametrize("name", EXPORTED)
def test_pruned_networks_are_exported(name: str, bench: Workbench) -> None:
    kind = KINDS[name]
    module, _ = plant(kind, 0.5)
    whole = networks.save(module, spec_of(kind.factory), bench.store)
    exported = bench.export(bench.do(Prune(whole, 0.5, ROUND_TO)).network)
    assert exported.parity_error is not None
    assert exported.parity_error < 1e-4


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("name", ["all_shuffled", "all_split"])
def test_what_cannot_be_pruned_is_refused_in_a_line(
    name: str, ratio: float, bench: Workbench
) -> None:
    spec = spec_of(f"{couplings.__name__}:{name}")
    module = networks.build(spec).eval()
    with pytest.raises(InfeasiblePoint) as caught:
        prune(module, SHAPE, ratio, ROUND_TO)
    assert "does not follow" in str(caught.value)
    assert "\n" not in str(caught.value)
    swept = bench.do(Sweep(networks.save(module, spec, bench.store), (1 - ratio,), ROUND_TO))
    assert swept.cuts == ()
    assert swept.reason == str(caught.value)
