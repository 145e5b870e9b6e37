"""Pruning: which channels go, how many, and that what is left is still the same network."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from search.errors import InfeasiblePoint
from search.networks import networks
from search.networks.pruning.groups import widths_of
from search.networks.pruning.prune import look, macs_at, prune
from search.records.network import Network, NetworkSpec
from search.records.steps.pruning import Prune
from tests import zoo
from tests.workbench import NETWORKS, Workbench

SHAPE = (1, 28, 28)
RATIOS = [round(0.05 * n, 2) for n in range(19)]
# How far the share that is removed may be from the share that is asked for. These layers are
# narrow: 16 channels become 16 or 8, so that up to a quarter is lost to rounding.
BOUND = 0.25

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Family:
    """A teacher pruned at every ratio."""

    full: Shapes
    smaller: list[Shapes]
    macs: list[int]
    removed: list[float]


def shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def pixels(count: int = 3) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=[(n, r) for n in NETWORKS for r in (8, 16)], ids=str)
def family(request: pytest.FixtureRequest, bench: Workbench) -> Family:
    name, round_to = request.param
    module = networks.load(bench.teacher(name).network, bench.store)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    pruned = [prune(module, SHAPE, ratio, round_to) for ratio in RATIOS]
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    for smaller, _ in pruned:
        assert smaller(pixels()).shape == (3, 10)
    return Family(
        full=shapes_of(module),
        smaller=[shapes_of(smaller) for smaller, _ in pruned],
        macs=[networks.count_macs(smaller, SHAPE) for smaller, _ in pruned],
        removed=[removed for _, removed in pruned],
    )


def test_nothing_is_removed_at_ratio_zero(family: Family) -> None:
    assert family.smaller[0] == family.full
    assert family.removed[0] == 0.0


def test_no_layer_is_wider_at_a_higher_ratio(family: Family) -> None:
    for less, more in itertools.pairwise(family.smaller):
        for name, shape in more.items():
            assert all(a <= b for a, b in zip(shape, less[name], strict=True)), name
    assert family.macs == sorted(family.macs, reverse=True)
    assert family.removed == sorted(family.removed)


def test_a_high_ratio_makes_much_smaller(family: Family) -> None:
    assert family.macs[-1] < 0.25 * family.macs[0]


def test_every_layer_has_a_width_that_is_allowed(
    family: Family, request: pytest.FixtureRequest
) -> None:
    _, round_to = request.node.callspec.params["family"]
    for shapes in family.smaller:
        for name, shape in shapes.items():
            if shape and not name.startswith("head") and name != "gain":
                assert shape[0] in widths_of(family.full[name][0], round_to), name
            assert all(size >= 1 for size in shape)


def test_the_outputs_stay(family: Family) -> None:
    for shapes in family.smaller:
        assert shapes["head.weight"][0] == shapes["head.bias"][0] == 10


def test_the_removed_share_is_near_the_ratio(family: Family) -> None:
    for ratio, removed in zip(RATIOS, family.removed, strict=True):
        assert removed == pytest.approx(ratio, abs=BOUND)


# ---- single networks


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_the_share_counts_channels(bench: Workbench, ratio: float) -> None:
    shapes = dict(bench.prune("cnn", ratio).network.shapes)
    left = shapes["conv.weight"][0] + shapes["hidden.weight"][0]
    assert bench.prune("cnn", ratio).figures["channels_removed"] == pytest.approx(1 - left / 24)


def test_coupled_layers_lose_the_same_channels(bench: Workbench) -> None:
    module = networks.load(bench.prune("resnet8", 0.6).network, bench.store)
    outputs = {n: m.out_channels for n, m in module.named_modules() if isinstance(m, nn.Conv2d)}
    assert outputs["conv"] == outputs["stages.0.conv2"] < 8
    assert outputs["stages.1.conv2"] == outputs["stages.1.shortcut.0"] < 16
    assert outputs["stages.2.conv2"] == outputs["stages.2.shortcut.0"] < 32

    module = networks.load(bench.prune("ds_cnn", 0.6).network, bench.store)
    for block in module.get_submodule("blocks").children():
        depthwise = block.get_submodule("depthwise")
        assert isinstance(depthwise, nn.Conv2d)
        assert depthwise.groups == depthwise.in_channels == depthwise.out_channels < 16


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.9])
def test_weights_alone_rebuild_the_network(bench: Workbench, name: str, ratio: float) -> None:
    teacher = bench.teacher(name).network
    pruned, removed = prune(networks.load(teacher, bench.store), SHAPE, ratio, 8)
    step = Prune(teacher, ratio, 8)
    answer = bench.do(step)
    assert answer.figures["channels_removed"] == removed
    assert (answer.network == teacher) == (removed == 0)
    rebuilt = networks.load(answer.network, bench.store)
    assert not rebuilt.training
    with torch.no_grad():
        assert torch.equal(rebuilt(pixels()), pruned(pixels()))


@pytest.mark.parametrize("ratio", [0.3, 0.7])
def test_the_ratio_acts(bench: Workbench, ratio: float) -> None:
    assert bench.prune("cnn", ratio).network.weights != bench.prune("cnn", 0.5).network.weights


def test_macs_and_parameters_by_their_formulas(bench: Workbench) -> None:
    network = bench.teacher("cnn").network
    assert network.macs == 28 * 28 * 9 * 8 + 14 * 14 * 8 * 16 + 16 * 10
    assert network.parameters == (9 + 1) * 8 + (14 * 14 * 8 + 1) * 16 + (16 + 1) * 10
    network = bench.teacher("ds_cnn").network
    block = 14 * 14 * (9 * 16 + 16 * 16)
    assert network.macs == 14 * 14 * 9 * 16 + 4 * block + 16 * 10
    shapes = dict(bench.prune("cnn", 0.5).network.shapes)
    conv, hidden = shapes["conv.weight"][0], shapes["hidden.weight"][0]
    macs = 28 * 28 * 9 * conv + 14 * 14 * conv * hidden + hidden * 10
    assert bench.prune("cnn", 0.5).network.macs == macs


@pytest.mark.parametrize("name", NETWORKS)
def test_multiplications_are_known_without_pruning(bench: Workbench, name: str) -> None:
    module = networks.load(bench.teacher(name).network, bench.store)
    pruned = [prune(module, SHAPE, ratio, 8)[0] for ratio in RATIOS[::3]]
    wanted = [networks.count_macs(smaller, SHAPE) for smaller in pruned]
    assert macs_at(module, SHAPE, RATIOS[::3], 8) == wanted


# ---- which channels go


def silence(layer: nn.Module, channels: list[int]) -> None:
    """Makes output channels of a convolution, dense layer or normalisation zero for any input."""
    for tensor in layer.parameters():
        tensor.data[channels] = 0


def ignore(layer: nn.Module, channels: list[int]) -> None:
    """Makes a convolution or dense layer, fed by flattened images too, not look at channels."""
    weight = layer.get_parameter("weight").data
    by_channel = weight.view(len(weight), 2 * len(channels), -1)  # half of the channels
    by_channel[:, channels] = 0


USELESS = {8: [1, 4, 6, 7], 16: [0, 1, 2, 5, 9, 10, 12, 15], 32: list(range(1, 32, 2))}
# Layers that make the same channels, and layers that look at these.
COUPLED = {
    "cnn": [("conv", "hidden"), ("hidden", "head")],
    "resnet8": [
        (
            "conv norm stages.0.conv2 stages.0.norm2",
            "stages.0.conv1 stages.1.conv1 stages.1.shortcut.0",
        ),
        ("stages.0.conv1 stages.0.norm1", "stages.0.conv2"),
        ("stages.1.conv1 stages.1.norm1", "stages.1.conv2"),
        (
            "stages.1.conv2 stages.1.norm2 stages.1.shortcut.0 stages.1.shortcut.1",
            "stages.2.conv1 stages.2.shortcut.0",
        ),
        ("stages.2.conv1 stages.2.norm1", "stages.2.conv2"),
        ("stages.2.conv2 stages.2.norm2 stages.2.shortcut.0 stages.2.shortcut.1", "head"),
    ],
    "ds_cnn": [
        ("conv norm blocks.0.depthwise blocks.0.norm1", "blocks.0.pointwise"),
        *(
            (
                f"blocks.{n}.pointwise blocks.{n}.norm2 "
                f"blocks.{n + 1}.depthwise blocks.{n + 1}.norm1",
                f"blocks.{n + 1}.pointwise",
            )
            for n in range(3)
        ),
        ("blocks.3.pointwise blocks.3.norm2", "head"),
    ],
}


@pytest.mark.parametrize("name", COUPLED)
def test_exactly_the_channels_that_do_nothing_go(bench: Workbench, name: str) -> None:
    module = networks.load(bench.teacher(name).network, bench.store)
    for makers, users in COUPLED[name]:
        first, *_ = makers.split()
        useless = USELESS[len(module.get_parameter(f"{first}.weight"))]
        for maker in makers.split():
            silence(module.get_submodule(maker), useless)
        for user in users.split():
            ignore(module.get_submodule(user), useless)
    smaller, removed = prune(module, SHAPE, 0.5, 4)
    assert removed == 0.5
    with torch.no_grad():
        torch.testing.assert_close(smaller(pixels()), module(pixels()), rtol=1e-4, atol=1e-4)
    whole = module.get_parameter("conv.weight")
    kept = [n for n in range(len(whole)) if n not in USELESS[len(whole)]]
    assert torch.equal(smaller.get_parameter("conv.weight"), whole[kept])


def test_a_layer_of_useless_channels_loses_more_than_others() -> None:
    torch.manual_seed(0)
    module = zoo.Zoo(nn.Sequential(zoo.conv(), nn.ReLU(), zoo.conv()))
    silence(module.get_submodule("body.0"), list(range(24)))
    module.get_parameter("body.2.weight").data[:, :24] = 0
    smaller, _ = prune(module, SHAPE, 0.25, 8)
    shapes = shapes_of(smaller)
    # Its fair rest is 24 of 32; it may lose down to the half of that, rounded to 16 or 8.
    assert shapes["body.0.weight"][0] == 16
    assert shapes["stem.weight"][0] == shapes["body.2.weight"][0] == 32


def test_of_equal_layers_the_one_that_costs_more_goes_first() -> None:
    # The same weights twice, once on four times the pixels.
    torch.manual_seed(0)
    early, late = zoo.conv(), zoo.conv()
    late.load_state_dict(early.state_dict())
    module = nn.Sequential(
        nn.Conv2d(1, zoo.WIDTH, 1), early, nn.MaxPool2d(2), late, zoo.conv(), nn.Flatten(),
        nn.LazyLinear(10),
    )  # fmt: skip
    module(pixels())
    shapes = shapes_of(prune(module, SHAPE, 0.3, 4)[0])
    assert shapes["1.weight"][0] < shapes["3.weight"][0]


def test_the_price_of_a_channel_by_its_formula() -> None:
    prunable = look(zoo.Zoo(zoo.conv()), SHAPE)
    # 7x7 pixels after a stride of 4; the head sees one.
    assert prunable.channels.positions == {"stem": 49, "body": 49, "head": 1}
    stem, body = 49 * 9 * 1 + 49 * 9 * zoo.WIDTH, 49 * 9 * zoo.WIDTH + zoo.CLASSES
    mean = (stem + body) / 2
    assert [group.price for group in prunable.groups] == pytest.approx([stem / mean, body / mean])


# ---- networks that users might bring


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return networks.build(spec(name))


def spec(name: str) -> NetworkSpec:
    return NetworkSpec("custom", None, f"tests.zoo:{name}", (), None, SHAPE, zoo.CLASSES)


def save(bench: Workbench, module: nn.Module, name: str) -> Network:
    return networks.save(module, spec(name), bench.store)


@pytest.mark.parametrize(
    "name",
    [
        "group_norm",
        "layer_norm",
        "instance_norm",
        "bare_batch_norm",
        "dense_batch_norm",
        "prelu",
        "transposed",
        "shared",
        "tied",
        "grouped",
        "frozen",
        "concatenated",
        "echo",
    ],
)
def test_pruned_and_rebuilt(bench: Workbench, name: str) -> None:
    whole = save(bench, build(name), name)
    pruned = bench.do(Prune(whole, 0.5, 8))
    assert 0.35 < pruned.figures["channels_removed"] <= 0.5
    assert pruned.network.macs < 0.6 * whole.macs
    assert pruned.network.parameters < whole.parameters
    smaller, _ = prune(networks.load(whole, bench.store), SHAPE, 0.5, 8)
    rebuilt = networks.load(pruned.network, bench.store)
    with torch.no_grad():
        assert torch.equal(rebuilt(pixels()), smaller(pixels()))
        assert rebuilt(pixels()).shape == (3, zoo.CLASSES)
    again = bench.do(Prune(pruned.network, 0.5, 8))
    assert (
        0.3 < again.figures["channels_removed"] <= 0.5
    )  # rounding counts for more in narrow layers


def test_groups_of_a_convolution_lose_channels_at_the_same_places() -> None:
    shapes = shapes_of(prune(build("grouped"), SHAPE, 0.9, 8)[0])
    # Four groups of eight channels keep two each: with one each it would be a depthwise one.
    assert shapes["stem.weight"] == (8, 1, 3, 3)
    assert shapes["body.0.weight"] == (8, 2, 3, 3)
    assert shapes["body.2.weight"] == (2, 8, 3, 3)


def test_frozen_parameters_are_pruned_like_others(bench: Workbench) -> None:
    module = copy.deepcopy(build("frozen")).requires_grad_(False)
    free = copy.deepcopy(module).requires_grad_(True)
    assert shapes_of(prune(module, SHAPE, 0.5, 8)[0]) == shapes_of(prune(free, SHAPE, 0.5, 8)[0])
    assert not any(p.requires_grad for p in module.parameters())


def test_frozen_parameters_learn_again(bench: Workbench) -> None:
    whole = save(bench, build("frozen"), "frozen")
    rebuilt = networks.load(bench.do(Prune(whole, 0.5, 8)).network, bench.store)
    assert all(p.requires_grad for p in rebuilt.parameters())


def test_outputs_that_feed_a_layer_stay(bench: Workbench) -> None:
    shapes = shapes_of(prune(build("echo"), SHAPE, 0.9, 8)[0])
    assert shapes["features.head.weight"][0] == 10
    assert shapes["mix.weight"] == (10, 10)
    assert shapes["features.body.weight"][0] < 8


def test_layers_with_computed_weights_stay_whole(bench: Workbench) -> None:
    whole = save(bench, build("weight_norm"), "weight_norm")
    pruned = bench.do(Prune(whole, 0.5, 8))
    layers = networks.load(pruned.network, bench.store)
    widths = {
        n: tuple(m.weight.shape[:2]) for n, m in layers.named_modules() if isinstance(m, nn.Conv2d)
    }
    assert widths["stem"][0] < 32
    assert widths["body.0"] == (32, widths["stem"][0])
    assert widths["body.1"] == (32, 32)
    assert widths["body.2"][0] < 32 == widths["body.2"][1]
    assert macs_at(networks.load(whole, bench.store), SHAPE, [0.5], 8) == [pruned.network.macs]


@pytest.mark.parametrize("name", ["fixed_width", "asserting"])
def test_layers_that_the_code_counts_on_stay_whole(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        shapes = shapes_of(prune(build(name), SHAPE, 0.5, 8)[0])
    assert shapes["body.0.weight"] == (32, 16, 3, 3)
    if name == "asserting":  # a reshape is seen before anything is tried
        assert "body.0: left whole" in caplog.text
        assert "AssertionError" in caplog.text


def test_too_few_channels_for_the_code_are_infeasible() -> None:
    assert prune(build("needs_twelve"), SHAPE, 0.5, 8)[1] > 0
    with pytest.raises(InfeasiblePoint) as caught:
        prune(build("needs_twelve"), SHAPE, 0.9, 8)
    assert "(AssertionError); its code must not fix channel counts" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["dense_only", "multiplied"])
def test_a_network_without_prunable_layers_is_infeasible(name: str) -> None:
    with pytest.raises(InfeasiblePoint, match=r"^no layer's channels can be removed \(.*\); set"):
        prune(build(name), SHAPE, 0.5, 8)
    assert prune(build(name), SHAPE, 0.0, 8)[1] == 0.0


class OwnNorm(nn.Module):
    """Normalises a batch without any of torch's layers."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps ``[n, c, h, w]`` to the same shape."""
        return nn.functional.batch_norm(images, None, None, training=True)


def between(layer: nn.Module) -> nn.Module:
    layers = nn.Conv2d(1, 16, 3), layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(16, 10))


def computed() -> nn.Module:
    module = between(nn.Identity())
    for name in ("0", "5"):
        nn.utils.parametrizations.weight_norm(module.get_submodule(name))
    return module


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (between(OwnNorm()), "does not follow: NativeBatchNorm)"),
        (between(nn.InstanceNorm2d(16, track_running_stats=True)), "InstanceNorm2d with running"),
        (computed(), "(the weights of its layers are computed from others)"),
    ],
    ids=["unknown operation", "instance norm", "computed weights"],
)
def test_why_nothing_can_be_pruned_is_told(module: nn.Module, told: str) -> None:
    with pytest.raises(InfeasiblePoint) as caught:
        prune(module, SHAPE, 0.5, 8)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_synchronised_batch_norm_is_pruned_like_any_other() -> None:
    torch.manual_seed(0)
    plain = between(nn.BatchNorm2d(16))
    sync = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    (smaller, removed), (wanted, share) = (prune(m, SHAPE, 0.5, 8) for m in (sync, plain))
    assert removed == share > 0
    assert shapes_of(smaller) == shapes_of(wanted)
    assert torch.equal(smaller.eval()(pixels()), wanted.eval()(pixels()))
    networks.resize(sync, smaller.state_dict())
    assert sync.get_submodule("1").num_features == smaller.get_submodule("1").num_features == 8
