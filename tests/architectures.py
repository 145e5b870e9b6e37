"""Takes an architecture through everything that a trial does with its network, and says how far."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.engine.base import Event
from search.engine.driving import drive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.errors import SearchError
from search.networks import batch_norm, networks
from search.networks.pruning import prune as pruning
from search.networks.strided import skip_first
from search.recipes.deploying import export
from search.records.bench import Bench
from search.records.network import Network, NetworkSpec
from search.records.steps.exporting import Exported, Trace
from search.records.steps.pruning import Prune
from search.records.steps.step import Step
from search.runtimes.quantization import static_int8
from search.stages import prune
from tests.fakes import DATA, lab
from tests.families import CLASSES, FAMILIES

R = TypeVar("R")

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"
RATIOS = (0.25, 0.5, 0.75)
ROUND_TO = 8
MEAN, STD = (0.5, 0.4, 0.45), (0.25, 0.2, 0.22)
STEPS = 2
# Of gradients in double precision, relative to the layer's largest, or to a thousandth of the
# network's: a bias before a batch normalisation has none but rounding.
SAME, NONE = 1e-6, 1e-3


@dataclass
class Walk:
    """How far an architecture came.

    Attributes:
        family: Its name in ``FAMILIES``.
        parameters: Of the whole network.
        macs: Of the whole network, for one image.
        prunable: Share of its channels that may be removed.
        left: Share of the multiply-accumulates that each ratio of ``RATIOS`` leaves.
        traces: Traces that all exports together took; one is enough where no code counts channels.
        reasons: Why a stage could not be done, by its name.
    """

    family: str
    parameters: int = 0
    macs: int = 0
    prunable: float = 0.0
    left: list[float] = field(default_factory=list)
    traces: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


def spec_of(family: str) -> NetworkSpec:
    """The architecture as a user would name it."""
    side = FAMILIES[family].side
    arguments = (("family", family),)
    factory = "tests.families:build"
    return NetworkSpec("custom", None, factory, arguments, None, (3, side, side), CLASSES)


def walk(family: str, store: Store, exported_at: Sequence[float] = RATIOS) -> Walk:
    """Traces, exports, prunes, exports again, quantizes and trains an architecture.

    Reasons that the stages name are noted; every other error passes.

    Args:
        family: Its name in ``FAMILIES``.
        store: For all that is made of it.
        exported_at: Ratios at which it is exported again; 8 bits follow at 0.5 alone.
    """
    found, spec = Walk(family), spec_of(family)
    started: list[Step[object]] = []

    def note(event: Event) -> None:
        if event.state == "began":
            started.append(event.step)

    engine = InlineEngine(store, note)
    bench: Bench = replace(lab().bench, spec=spec, data=replace(DATA, mean=MEAN, std=STD))

    def exported(network: Network) -> Exported:
        made: Exported = drive(export(network, bench), engine)
        return made

    def tried(stage: str, do: Callable[[], R]) -> R | None:
        try:
            return do()
        except SearchError as error:
            found.reasons[stage] = str(error)
            return None

    torch.manual_seed(0)
    whole = networks.save(networks.build(spec), spec, store)
    found.parameters, found.macs = whole.parameters, whole.macs
    tried("export", partial(exported, whole))
    for ratio in RATIOS:
        step = Prune(whole, ratio, ROUND_TO)
        smaller = tried(f"prune {ratio}", partial(prune.run, step, store))
        if smaller is None:
            continue
        found.left.append(smaller.network.macs / whole.macs)
        if ratio in exported_at:
            model = tried(f"export {ratio}", partial(exported, smaller.network))
            if model is None:
                continue
            if ratio == 0.5:
                content = store.path(model.model).read_bytes()
                tried("int8", partial(run_int8, content, spec.image_shape))
        if ratio == 0.5:
            train(networks.load(smaller.network, store), spec.image_shape)
    found.traces = sum(isinstance(step, Trace) for step in started)
    found.prunable = prunable_share(networks.load(whole, store), spec.image_shape)
    return found


def title(family: str) -> str:
    """Returns what the table of the docs calls an architecture."""
    return FAMILIES[family].title + (", narrow" if FAMILIES[family].is_small else "")


def figures(found: Walk) -> str:
    """Returns the beginning of an architecture's line in that table."""
    left = [f"{share:.0%}" for share in found.left]
    left += ["-"] * (len(RATIOS) - len(left))
    many = found.parameters >= 1e5
    parameters = f"{found.parameters / 1e6:.2f} M" if many else f"{found.parameters:,}"
    cells = [title(found.family), parameters, f"{found.prunable:.0%}", *left]
    return f"| {' | '.join(cells)} |"


def prunable_share(module: nn.Module, image_shape: tuple[int, int, int]) -> float:
    """Returns the share of all channels made in a network that may be removed."""
    try:
        seen = pruning.look(module, image_shape)
    except SearchError:
        return 0.0
    free = np.concatenate([group.atoms for group in seen.groups])
    makers = [use.atoms for use in seen.channels.uses if use.side == "out"]
    return float(np.isin(np.concatenate(makers), free).mean())


def run_int8(content: bytes, image_shape: tuple[int, int, int]) -> None:
    """Quantizes a model and runs it."""
    images = np.random.default_rng(0).random((8, *image_shape), np.float32)
    model = static_int8(content, [images], "u8s8")
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images[:3]})
    assert logits.shape == (3, CLASSES)
    assert np.isfinite(logits).all()


def train(module: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Trains a network a few steps with layers of our own and without, and compares.

    In double precision: with few images and pixels the order of summing decides the last digits.
    """
    plain = copy.deepcopy(module).double()
    fast = copy.deepcopy(plain)
    skip_first(fast)  # double precision does without
    batch_norm.widen_narrow(fast)
    layout = layout_for(plain, image_shape)
    wanted, logits = trained(plain, image_shape, layout)
    with calls_of_ours() as calls:
        found, fast_logits = trained(fast, image_shape, layout)
    narrow = [m for m in fast.modules() if isinstance(m, batch_norm.NarrowBatchNorm2d)]
    computes = bool(narrow) and layout == torch.channels_last
    assert bool(calls) == computes, "no layer of ours was compared"
    largest = max(gradient.abs().max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = torch.maximum(gradient.abs().max(), NONE * largest)
        assert ((found[name] - gradient).abs().max() <= SAME * scale).item(), f"{name}'s gradient"
    for name, value in plain.state_dict().items():
        assert torch.isfinite(value).all(), name
        close(fast.state_dict()[name], value, name)
    close(fast_logits, logits, "logits")


@contextmanager
def calls_of_ours() -> Iterator[list[torch.Size]]:
    """Notes the shapes that our own batch normalisation computes."""
    shapes: list[torch.Size] = []
    forward = batch_norm._Normalise.forward

    def noted(ctx: Any, images: Tensor, *others: Any) -> Tensor:
        shapes.append(images.shape)
        return forward(ctx, images, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_norm._Normalise, "forward", staticmethod(noted))
        yield shapes


def layout_for(network: nn.Module, image_shape: tuple[int, int, int]) -> torch.memory_format:
    """Returns channels last, but for code that views a convolution's output as a vector."""
    images = torch.rand(2, *image_shape).double().to(memory_format=torch.channels_last)
    tried = copy.deepcopy(network).eval()
    tried.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            tried(images)
    except RuntimeError as error:
        if "view size is not compatible" not in str(error):
            raise
        return torch.contiguous_format
    return torch.channels_last


def trained(
    network: nn.Module, image_shape: tuple[int, int, int], layout: torch.memory_format
) -> tuple[dict[str, Tensor], Tensor]:
    """Takes a few steps of gradient descent.

    Returns:
        The first step's gradients by the parameters' names, and logits in evaluation afterwards.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, *image_shape, generator=generator)
    images = images.double().to(memory_format=layout)
    labels = torch.randint(CLASSES, (4,), generator=generator)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    network.train()
    gradients: dict[str, Tensor] = {}
    with torch.random.fork_rng():
        for step in range(STEPS):
            torch.manual_seed(step)  # dropout's
            optimizer.zero_grad()
            F.cross_entropy(network(images), labels).backward()
            for name, parameter in network.named_parameters():
                if step == 0 and parameter.grad is not None:
                    gradients[name] = parameter.grad.clone()
            optimizer.step()
    with torch.no_grad():
        logits: Tensor = network.eval()(images)
    return gradients, logits


def close(got: Tensor, wanted: Tensor, what: str) -> None:
    """Compares within what another order of summing explains."""
    scale = wanted.abs().max().clamp_min(1e-3)
    assert ((got - wanted).abs().max() <= 1e-3 * scale).item(), what
