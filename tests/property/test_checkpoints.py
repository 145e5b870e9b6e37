"""Weights are found in whatever training scripts wrap them in, and never two sets mixed up."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import models
from search.errors import ConfigError
from search.networks.checkpoints import load_checkpoint

State = dict[str, Tensor]
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.", "net.", "network.", "0.")
WRAPPERS = (
    "state_dict", "model_state_dict", "model_ema", "ema", "model", "net", "network", "weights",
)  # fmt: skip
TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Tiny(nn.Sequential):
    """Every kind of tensor a checkpoint has: weights, running statistics, a counter."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))


def networks() -> tuple[nn.Module, ...]:
    return Tiny(), models.build("cnn", (1, 8, 8), 10, 2), models.build("resnet8", (1, 8, 8), 10, 2)


def random_state(network: nn.Module, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator).to(value.dtype)
        for name, value in network.state_dict().items()
    }


def load(network: nn.Module, content: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(content, path)
        load_checkpoint(network, path, "model.checkpoint='weights.pt'")


def beside(network: nn.Module) -> dict[str, Any]:
    """What a training script saves beside the weights."""
    optimizer = torch.optim.Adam(network.parameters())
    sum(p.square().sum() for p in network.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    return {
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "epoch": 7,
        "best": np.float64(0.91),
        "args": argparse.Namespace(lr=0.1, out=Path("runs"), best=np.float32(0.5)),
        "hyper_parameters": {"lr": 0.1, "layers": [1, 2], "name": None},
        "rng": torch.get_rng_state(),
    }


@settings(max_examples=30)
@given(
    number=st.integers(0, 2),
    prefixes=st.lists(st.sampled_from(PREFIXES), max_size=2),
    wrappers=st.lists(st.sampled_from(WRAPPERS), max_size=4),
    kind=st.sampled_from(TYPES),
    has_others=st.booleans(),
    has_counters=st.booleans(),
    others=st.lists(st.sampled_from(["loss.weight", "ema.n_averaged", "head2.bias"]), max_size=2),
)
def test_wrapped_weights_are_found(
    number: int,
    prefixes: list[str],
    wrappers: list[str],
    kind: torch.dtype,
    has_others: bool,
    has_counters: bool,
    others: list[str],
) -> None:
    network = networks()[number]
    wanted = {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in random_state(network, 1).items()
    }
    content: dict[str, Any] = {"".join(prefixes) + name: value for name, value in wanted.items()}
    if not has_counters:
        content = {n: v for n, v in content.items() if not n.endswith("num_batches_tracked")}
    if prefixes and prefixes[0] != "_orig_mod.":  # what a training module holds beside its network
        content.update(dict.fromkeys(others, torch.zeros(2)))
    for wrapper in wrappers:
        content = {wrapper: content, **(beside(network) if has_others else {})}
    load(network, content)
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32
            assert torch.equal(value, wanted[name].float()), name


@settings(max_examples=20)
@given(
    places=st.lists(st.sampled_from(WRAPPERS), min_size=2, max_size=2, unique=True),
    prefixes=st.tuples(*2 * [st.sampled_from(["", *PREFIXES])]),
    seeds=st.tuples(*2 * [st.integers(1, 2)]),
)
def test_two_sets_are_taken_only_if_they_are_the_same(
    places: list[str], prefixes: tuple[str, str], seeds: tuple[int, int]
) -> None:
    network = Tiny()
    before = random_state(network, 0)
    network.load_state_dict(before)
    content = {
        place: {prefix + name: value for name, value in random_state(network, seed).items()}
        for place, prefix, seed in zip(places, prefixes, seeds, strict=True)
    }
    if seeds[0] == seeds[1]:
        load(network, content)
        before = random_state(network, seeds[0])
    else:
        with pytest.raises(ConfigError, match="two different sets of weights fit") as caught:
            load(network, content)
        assert all(place in str(caught.value) for place in places)
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())


class Wrapped(nn.Module):
    """What a user's own module makes of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Tiny()


@pytest.mark.parametrize("prefix", ["", "model.", "backbone.", "module.backbone."])
@pytest.mark.parametrize(
    "make", [Wrapped, lambda: nn.DataParallel(Tiny()), lambda: nn.DataParallel(Wrapped())]
)
def test_weights_of_the_network_inside_a_wrapper_are_found(
    make: Callable[[], nn.Module], prefix: str
) -> None:
    network, wanted = make(), random_state(Tiny(), 1)
    load(network, {"model": {prefix + name: value for name, value in wanted.items()}})
    inside = next(layer for layer in network.modules() if isinstance(layer, Tiny))
    assert all(torch.equal(value, wanted[name]) for name, value in inside.state_dict().items())


def test_a_wrapper_changes_nothing_where_the_whole_fits() -> None:
    network = Wrapped()
    wanted, other = random_state(network, 1), random_state(Tiny(), 2)
    load(network, {"model": wanted, "inside": other})
    assert all(torch.equal(value, wanted[n]) for n, value in network.state_dict().items())
    other.pop("3.bias")
    with pytest.raises(ConfigError, match=r"it has no backbone\.3\.bias .* in 'inside'$"):
        load(network, {"inside": other})


def test_two_sets_for_the_inside_of_a_wrapper_are_refused() -> None:
    sets = {place: random_state(Tiny(), seed) for seed, place in enumerate(["one", "two"])}
    with pytest.raises(ConfigError, match="two different sets of weights fit"):
        load(Wrapped(), sets)


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize("is_coarse_first", [True, False])
def test_the_finer_of_two_equal_sets_is_taken(kind: torch.dtype, is_coarse_first: bool) -> None:
    wanted = random_state(Tiny(), 1)
    other = {name: value.to(kind, copy=True) for name, value in wanted.items()}
    sets = {"ema": other, "model": wanted} if is_coarse_first else {"model": wanted, "ema": other}
    network = Tiny()
    load(network, sets)
    assert all(torch.equal(value, wanted[n]) for n, value in network.state_dict().items())
    other["3.bias"][0] += 0.1
    with pytest.raises(ConfigError, match="two different sets of weights fit"):
        load(network, sets)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "but a list; save"),
        ({}, "but an empty dictionary; save"),
        ({"epoch": 3, "log": [1.0]}, "but a dictionary of 'epoch', 'log' without tensors in 4"),
        ({"a": {"b": {"c": {"d": {"e": {"w": torch.ones(1)}}}}}}, "without tensors in 4 levels"),
    ],
)
def test_what_is_no_state_dict_is_told(content: object, told: str) -> None:
    with pytest.raises(ConfigError, match="holds no state dict, ") as caught:
        load(Tiny(), content)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dictionaries_that_hold_themselves_are_looked_at_once() -> None:
    network, wanted = Tiny(), random_state(Tiny(), 1)
    content: dict[str, Any] = {"state_dict": wanted}
    content.update((f"again{number}", content) for number in range(300))
    load(network, content)
    assert all(torch.equal(value, wanted[n]) for n, value in network.state_dict().items())


CHANGES: dict[str, Callable[[State, str], object]] = {
    "missing": lambda state, name: state.pop(name),
    "another shape": lambda state, name: state.update({name: torch.zeros(5, 5)}),
    "too many": lambda state, name: state.update({f"{name}_again": torch.zeros(1)}),
    "not a number": lambda state, name: state[name].fill_(torch.nan),
    "quantized": lambda state, name: state.update({name: state[name].to(torch.int8)}),
    "complex": lambda state, name: state.update({name: state[name].to(torch.complex64)}),
    "beyond float32": lambda state, name: state.update(
        {name: torch.full_like(state[name], 1e300, dtype=torch.float64)}
    ),
}


@settings(max_examples=30)
@given(
    change=st.sampled_from(sorted(CHANGES)),
    name=st.sampled_from(["0.weight", "1.running_var", "3.bias"]),
    prefix=st.sampled_from(["", "module.", "model."]),
    wrapper=st.sampled_from(["", "state_dict"]),
)
def test_what_nearly_fits_is_refused_and_leaves_the_network_alone(
    change: str, name: str, prefix: str, wrapper: str
) -> None:
    network = Tiny()
    before = random_state(network, 0)
    network.load_state_dict(before)
    state = random_state(network, 1)
    CHANGES[change](state, name)
    content: dict[str, Any] = {prefix + n: value for n, value in state.items()}
    with pytest.raises(ConfigError) as caught:
        load(network, {wrapper: content} if wrapper else content)
    said = str(caught.value)
    assert said.startswith("model.checkpoint='weights.pt': ")
    assert "\n" not in said
    assert name.removesuffix("_again") in said
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())


EIGHT = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


@pytest.mark.parametrize("kind", EIGHT, ids=str)
def test_eight_bit_floats_are_cast(kind: torch.dtype) -> None:
    network = Tiny()
    wanted = {n: v.to(kind) for n, v in random_state(network, 1).items() if v.is_floating_point()}
    load(network, {"model": wanted, "ema": wanted})
    state = network.state_dict()
    assert all(torch.equal(state[name], value.float()) for name, value in wanted.items())


def test_types_of_half_a_byte_are_refused_in_a_line() -> None:
    network = Tiny()
    state = random_state(network, 1)
    packed = torch.zeros(state["3.bias"].shape, dtype=torch.uint8)
    state["3.bias"] = packed.view(torch.float4_e2m1fn_x2)
    with pytest.raises(ConfigError, match=r"3\.bias .*save the weights in float32$"):
        load(network, state)


class Objective:
    """A user's own class, as Lightning keeps it among the hyper-parameters."""


def test_what_may_be_code_is_named_with_a_remedy() -> None:
    network = Tiny()
    content = {
        "state_dict": {f"model.{n}": v for n, v in random_state(network, 1).items()},
        "hyper_parameters": {"loss": Objective()},
        "pytorch-lightning_version": "2.5.0",
    }
    with pytest.raises(ConfigError) as caught:
        load(network, content)
    said = str(caught.value)
    assert f"it holds {Objective.__module__}.Objective, which may be code" in said
    assert "weights_only=False" in said
    assert "\n" not in said


def test_a_file_of_optimizer_states_holds_no_weights() -> None:
    network = Tiny()
    with pytest.raises(ConfigError, match=r"belongs to another network: it has no 0\.weight"):
        load(network, beside(network))


def test_an_old_format_with_a_prefix() -> None:
    network = Tiny()
    wanted = random_state(network, 1)
    buffer = io.BytesIO()
    content = {
        "net": {f"module.{n}": nn.Parameter(v, v.is_floating_point()) for n, v in wanted.items()}
    }
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old.pth"
        path.write_bytes(buffer.getvalue())
        load_checkpoint(network, path, "model.checkpoint")
    assert all(torch.equal(value, wanted[n]) for n, value in network.state_dict().items())
