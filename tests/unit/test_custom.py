"""A user's network: built once, heard by the debug log alone, tried before anything trains."""

from __future__ import annotations

import io
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search.errors import ConfigError
from search.networks import custom, networks
from search.records.network import NetworkSpec
from search.records.steps.pruning import Prune
from search.stages import teacher
from tests.workbench import Workbench

SHAPE = (1, 8, 8)
CALLS: list[str] = []
RELEASED = threading.Event()


@pytest.fixture(autouse=True)
def _afresh() -> Iterator[None]:
    """As in a process that has built nothing yet."""
    CALLS.clear()
    networks._kept.clear()
    yield
    networks._kept.clear()


def spec(name: str, **arguments: Any) -> NetworkSpec:
    given = tuple(sorted(arguments.items()))
    return NetworkSpec("custom", None, f"{__name__}:{name}", given, "0" * 64, SHAPE, 10)


class Plain(nn.Module):
    """A small network whose answers can be spoiled."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Any:
        """Returns logits ``[N, 10]``, or whatever a subclass makes of them."""
        return self.answer(self.head(self.norm(self.conv(images)).relu().mean((2, 3))))

    def answer(self, logits: Tensor) -> Any:
        """Leaves the logits as they are."""
        return logits


def plain(filled: float | None = None, widths: list[int] | None = None) -> nn.Module:
    CALLS.append("plain")
    network = Plain()
    if filled is not None:
        nn.init.constant_(network.conv.weight, filled)
    return network


# ---- called once


def test_the_factory_is_called_once(bench: Workbench) -> None:
    given = spec("plain", filled=0.25, widths=[1, 2])
    first, second = networks.build(given), networks.build(given)
    network = networks.save(first, given, bench.store)
    third = networks.load(network, bench.store)
    networks.with_shapes(given, (), network.shapes)
    assert CALLS == ["plain"]
    assert len({id(one.get_parameter("conv.weight")) for one in (first, second, third)}) == 3
    with torch.no_grad():
        first.get_parameter("conv.weight").zero_()
    assert (second.get_parameter("conv.weight") == 0.25).all()
    networks.build(spec("plain", filled=0.5))
    assert CALLS == ["plain", "plain"]


def test_no_more_than_one_network_is_kept() -> None:
    for filled in (0.1, 0.2, 0.3):
        networks.build(spec("plain", filled=filled))
    assert len(networks._kept) == 1


def test_every_process_has_the_same_network() -> None:
    weights = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        networks._kept.clear()
        before = torch.get_rng_state()
        weights.append(networks.build(spec("plain")).get_parameter("conv.weight"))
        assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(*weights)


def test_the_teacher_starts_from_the_weights_that_the_factory_loaded(bench: Workbench) -> None:
    step = replace(
        bench.teach_step("cnn"), spec=spec("plain", filled=0.25), epochs=1, learning_rate=1e-9
    )
    trained = bench.weights(bench.do(step).network)["conv.weight"]
    assert torch.allclose(trained, torch.full_like(trained, 0.25), atol=1e-4)
    assert CALLS == ["plain"]


class Locked(Plain):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def test_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        networks.build(spec("make", kind="Locked"))
    said = str(caught.value)
    assert said.startswith(
        f"model.factory='{__name__}:make': the network cannot be copied (TypeErr"
    )
    assert "\n" not in said


class Watched(Plain):
    """Keeps what a layer computes, by a hook that is a closure."""

    features: Tensor

    def __init__(self) -> None:
        super().__init__()

        def keep(layer: nn.Module, inputs: Any, output: Tensor) -> None:
            self.features = output

        self.conv.register_forward_hook(keep)


def test_a_network_whose_hooks_keep_what_it_computes_is_copied_again(bench: Workbench) -> None:
    given = spec("make", kind="Watched")
    module = networks.build(given)
    module(torch.rand(2, *SHAPE)).sum().backward()
    networks.build(given)
    taught = bench.do(replace(bench.teach_step("cnn"), spec=given, epochs=1))
    pruned = bench.do(Prune(taught.network, 0.5, 1))
    assert pruned.figures["channels_removed"] > 0


class Remembering(Plain):
    """Holds what it computed when it was built."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self.head.weight.sum()


def test_tensors_with_gradients_are_named_where_they_cannot_be_copied() -> None:
    with pytest.raises(ConfigError, match="open files, tensors that are not detached and the like"):
        networks.build(spec("make", kind="Remembering"))


# ---- heard by the debug log alone


class Talking(Plain):
    """Prints whenever it is asked."""

    def answer(self, logits: Tensor) -> Any:
        """Leaves the logits as they are, and says so."""
        print("answering")
        return logits


def talking() -> nn.Module:
    print("loading the weights")
    print("to the other stream", file=sys.stderr)
    for percent in range(0, 101, 10):
        sys.stderr.write(f"\r{percent}% of them")
    sys.stderr.write("\n")
    sys.stdout.buffer.write("ä".encode())
    logging.getLogger("talking").addHandler(logging.StreamHandler())
    return Talking()


def test_what_it_prints_goes_to_the_debug_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    networks.build(spec("talking"))
    assert tuple(capsys.readouterr()) == ("", "")
    said = [record.getMessage() for record in caplog.records]
    origin = f"model.factory='{__name__}:talking': "
    for line in ("loading the weights", "to the other stream", "100% of them", "ä", "answering"):
        assert origin + line in said
    logging.getLogger("talking").warning("later")  # its handler holds the stream still
    assert not any("later" in line for line in map(str, said))


def mute() -> nn.Module:
    logging.basicConfig(level=logging.ERROR, force=True)
    return Plain()


def test_a_factory_that_sets_up_logging_does_not_silence_the_search(
    caplog: pytest.LogCaptureFixture,
) -> None:
    networks.build(spec("mute"))
    logging.getLogger("search.x").warning("still here")
    assert "still here" in caplog.text


def test_a_live_display_goes_on_meanwhile() -> None:
    from rich.console import Console

    from search.config.factory import prints_to_log

    shown = io.StringIO()
    before, sys.stdout = sys.stdout, shown
    try:
        console = Console()
        with prints_to_log("model.factory"):
            console.print("the display")
            print("the factory")
    finally:
        sys.stdout = before
    assert shown.getvalue() == "the display\n"


# ---- made trainable


class Scaled(Plain):
    """Shares a weight, and keeps a tensor that is neither weight nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.full((10,), 2.0)
        self.again = nn.Linear(8, 10)
        self.again.weight = self.head.weight
        self.rows = nn.GRU(10, 10, batch_first=True)

    def answer(self, logits: Tensor) -> Any:
        """Scales the logits, and asks all layers."""
        return self.rows((logits * self.scale)[:, None])[0][:, 0] + self.again.weight.sum()


@torch.inference_mode()
def inferred() -> nn.Module:
    return Scaled()


def test_what_was_built_in_inference_mode_is_trained(bench: Workbench) -> None:
    given = spec("inferred")
    module = networks.build(given).train()
    assert not any(value.is_inference() for value in module.state_dict().values())
    assert module.get_parameter("again.weight") is module.get_parameter("head.weight")
    module(torch.rand(2, *SHAPE)).sum().backward()
    assert all(one.grad is not None for one in module.parameters() if one.shape != (10,))
    bench.do(replace(bench.teach_step("cnn"), spec=given, epochs=1))


# ---- tried before anything trains


class Endless(Plain):
    """Waits for what never comes."""

    def answer(self, logits: Tensor) -> Any:
        """Waits."""
        RELEASED.wait()
        return logits


def endless() -> nn.Module:
    return Endless()


def slow() -> nn.Module:
    time.sleep(0.3)
    return Plain()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(custom, "TELL_S", 0.05)
    monkeypatch.setattr(custom, "FORWARD_LIMIT_S", 1.0)


@pytest.mark.usefixtures("impatient")
def test_a_forward_pass_that_never_returns_is_told_and_given_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    try:
        with pytest.raises(ConfigError, match=r"gave no answer to 2 images within 1 s; ") as caught:
            networks.build(spec("endless"))
    finally:
        RELEASED.set()
    assert str(caught.value).startswith(f"model.factory='{__name__}:endless': ")
    assert "still waiting for the first forward pass of model.factory=" in caplog.text


@pytest.mark.usefixtures("impatient")
def test_a_slow_factory_is_told_and_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    networks.build(spec("slow"))
    assert f"still waiting for model.factory='{__name__}:slow' to return" in caplog.text


class Classes(Plain):
    """Tells the class instead of logits."""

    def answer(self, logits: Tensor) -> Any:
        """Returns classes, one-hot."""
        return nn.functional.one_hot(logits.argmax(1), 10)


class SideHead(Plain):
    """Gives the logits of a side head too while it is trained, as GoogLeNet."""

    def __init__(self) -> None:
        super().__init__()
        self.side = nn.Linear(10, 10)

    def answer(self, logits: Tensor) -> Any:
        """Returns one tensor or two."""
        return (logits, self.side(logits)) if self.training else logits


class Embedding(Plain):
    """Gives features while it is trained, as networks for metric learning."""

    def answer(self, logits: Tensor) -> Any:
        """Returns ``[N, 10]``, or ``[N, 5]`` while trained."""
        return logits[:, :5] if self.training else logits


class Within(nn.Module):
    """Holds the network that gives two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = SideHead()

    def forward(self, images: Tensor) -> Any:
        """Returns what the inner network gives."""
        return self.inner(images)


class Raising(Plain):
    """Cannot be trained."""

    def answer(self, logits: Tensor) -> Any:
        """Raises while it is trained."""
        if self.norm.training:
            raise ValueError("needs targets")
        return logits


class Named(Plain):
    """Names its answers."""

    def answer(self, logits: Tensor) -> Any:
        """Returns a dictionary."""
        return {"logits": logits}


def make(kind: str) -> nn.Module:
    made: nn.Module = globals()[kind]()
    return made


REFUSED = {
    "Classes": "the network gives numbers of type int64; return logits [2, 10], of type float32",
    "Within": "in training mode the network gives tuple; return a tensor of logits [2, 10], as it",
    "Raising": "the network raised in training mode ValueError: needs targets (test_custom.py:",
    "Named": "the network gives dict; return a tensor of logits",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused_before_anything_trains(kind: str) -> None:
    with pytest.raises(ConfigError) as caught:
        networks.build(spec("make", kind=kind))
    said = str(caught.value)
    assert said.startswith(f"model.factory='{__name__}:make': ")
    assert REFUSED[kind] in said
    assert "\n" not in said


@pytest.mark.parametrize("kind", ["SideHead", "Embedding"])
def test_a_network_that_answers_otherwise_in_training_is_trained_as_in_evaluation(
    kind: str, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    given = spec("make", kind=kind)
    module = networks.build(given).train()
    assert module(torch.rand(2, *SHAPE)).shape == (2, 10)
    assert module.get_submodule("norm").training
    assert "it is trained as in evaluation" in caplog.text
    taught = bench.do(replace(bench.teach_step("cnn"), spec=given, epochs=1))
    bench.export(taught.network)


def test_trying_a_network_leaves_its_statistics_alone() -> None:
    state = networks.build(spec("plain")).state_dict()
    assert int(state["norm.num_batches_tracked"]) == 0
    assert (state["norm.running_mean"] == 0).all()


class Unsound(Plain):
    """Divides by nothing."""

    def answer(self, logits: Tensor) -> Any:
        """Returns NaN where an image has no black pixel."""
        return logits / torch.zeros(())


class Sure(Plain):
    """Ends with a softmax."""

    def answer(self, logits: Tensor) -> Any:
        """Returns probabilities."""
        return logits.softmax(1)


def test_answers_that_are_not_finite_are_told_before_the_training(bench: Workbench) -> None:
    with pytest.raises(ConfigError, match="gives NaN or infinity for images of the data; check"):
        teacher.check(spec("make", kind="Unsound"), None, "model.checkpoint=None", bench.data)


def test_weights_without_sense_are_told_before_the_training(
    bench: Workbench, tmp_path: Path
) -> None:
    state = networks.build(bench.spec("cnn")).state_dict()
    torch.save({name: torch.full_like(v, 1e38) for name, v in state.items()}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"^model\.checkpoint='w\.pt': the network gives NaN or"):
        teacher.check(bench.spec("cnn"), tmp_path / "w.pt", "model.checkpoint='w.pt'", bench.data)


@pytest.mark.parametrize(("kind", "warned"), [("Sure", True), ("Plain", False)])
def test_a_softmax_is_warned_of(
    kind: str, warned: bool, bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    teacher.check(spec("make", kind=kind), None, "model.checkpoint=None", bench.data)
    assert ("leave out its softmax" in caplog.text) == warned
