"""Everything that is found by a name is there, and what another package adds can be chosen."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.config_store import ConfigStore
from optuna.samplers import RandomSampler

import search.records.steps
from search.cli import command, plugins
from search.config.commands import SearchConfig
from search.config.data import CustomDataConfig
from search.config.device import PluginDeviceConfig
from search.config.model import CustomModelConfig
from search.config.parsing import parse
from search.config.study import PluginSamplerConfig
from search.data import describe
from search.devices import reaching
from search.devices.local import LocalTransport
from search.devices.reaching import on_device, open_device
from search.engine.store import Store
from search.errors import ConfigError, DeviceLost
from search.networks import networks
from search.process import registry
from search.recipes.setup import make_bench
from search.records.network import Edit
from search.records.steps.step import Step
from search.records.steps.training import Reestimate
from search.space.dimension import dimensions, known_dimensions
from search.space.parsing import parse_space
from search.study.sampling import History, check_sampler, make_sampler
from search.techniques import techniques
from tests import extras
from tests.deployables import make_quantize
from tests.fakes import DATA, NETWORK, FakeEngine, file

KINDS = tuple(registry.BUILT_IN)
Install = Callable[..., None]


def steps() -> Iterator[type[Step[Any]]]:
    for module in pkgutil.iter_modules(search.records.steps.__path__):
        importlib.import_module(f"search.records.steps.{module.name}")
    yield from Step.__subclasses__()


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_thing_is_there(kind: registry.Kind) -> None:
    found = registry.load_all(kind)
    assert list(found)[: len(registry.BUILT_IN[kind])] == list(registry.BUILT_IN[kind])
    for name, thing in found.items():
        if kind in registry.OBJECTS:
            assert thing.name == name


def test_every_step_has_a_stage() -> None:
    kinds = set()
    for step in steps():
        if step.__module__.startswith("search."):
            assert callable(registry.load(f"search.stages.{step.kind}:run")), step
            kinds.add(step.kind)
    assert len(kinds) > 10


def test_our_own_modules_are_no_plug_ins() -> None:
    assert registry.origin("search.records.steps.pruning") == ""
    assert registry.origin("numpy.linalg").startswith("numpy ")


# ---- what another package adds


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Has entry points be there, as those of packages that are installed."""

    def install(*points: EntryPoint) -> None:
        def found(group: str) -> list[EntryPoint]:
            return [one for one in points if one.group == group]

        monkeypatch.setattr(registry, "entry_points", found)
        registry.load_all.cache_clear()

    yield install
    registry.load_all.cache_clear()
    for group, kind in plugins.GROUPS.items():
        ConfigStore.instance().repo.get(group, {}).pop(f"{extras.NAMES[kind]}.yaml", None)


@pytest.fixture
def extra(install: Install) -> None:
    install(*extras.POINTS)


def composed(*words: str) -> SearchConfig:
    found: list[Any] = []

    def keep(raw: Any, _: str) -> int:
        found.append(raw)
        return 0

    assert command.main(keep, words, check=partial(parse, shape=SearchConfig)) == 0
    return parse(found[0], SearchConfig)


@pytest.mark.usefixtures("extra")
def test_its_options_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    config = composed("model=tiny", "data=shades", "sampler=dice", "device=rack")
    assert isinstance(config.model, CustomModelConfig)
    assert isinstance(config.data, CustomDataConfig)
    assert isinstance(config.sampler, PluginSamplerConfig)
    assert isinstance(config.device, PluginDeviceConfig)
    names = (config.model.name, config.data.name, config.sampler.name, config.device.name)
    assert names == ("tiny", "shades", "dice", "rack")
    changed = composed("sampler=dice", "sampler.arguments.step=5").sampler
    assert changed == replace(config.sampler, arguments={"step": 5})
    assert command.main(lambda raw, text: 1, ["sampler=none"]) == 2
    assert "give one of dice, gp, nsga2, random, tpe" in capsys.readouterr().err


@pytest.mark.usefixtures("extra")
def test_what_they_name_is_made() -> None:
    config = composed("model=tiny", "data=shades", "sampler=dice", "device=rack")
    study = optuna.create_study(directions=["minimize", "minimize"])
    check_sampler(config.sampler)
    sampler = make_sampler(config.sampler, {}, 7, History(study), [])
    assert isinstance(sampler, RandomSampler)
    assert sampler._rng.rng.random() == RandomSampler(seed=14)._rng.rng.random()
    asked = {"request": "hello"}
    for _ in range(2):  # the second time it is known
        assert on_device(config.device, lambda device: device.ask(asked, 60.0))["pid"]
    dataset = describe(config.data)
    assert dataset.labels == ("dark", "bright")


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("retry_s", [0, 60])
def test_a_device_that_went_away_is_waited_for_as_its_option_says(
    retry_s: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reaching, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(extras, "OUTAGES", [DeviceLost("the rack restarts")])
    config = composed("device=rack", f"device.retry_s={retry_s}").device
    waits = nullcontext() if retry_s else pytest.raises(DeviceLost, match="the rack restarts")
    with waits:
        assert on_device(config, lambda device: device.ask({"request": "hello"}, 60.0))["pid"]


@pytest.mark.usefixtures("extra")
def test_a_bench_is_made_of_them(tmp_path: Path) -> None:
    words = ("model=tiny", "data=shades", "sampler=dice", "device=rack", "space.dust=coarse")
    config = composed(*words)
    bench, space = make_bench(config, Store(tmp_path), FakeEngine())
    assert not bench.is_here
    assert space.axes["dust"].describe() == "coarse"
    built = networks.build(bench.spec)
    assert sum(parameter.numel() for parameter in built.parameters()) == 4 * 9 + 4 + 8 + 8 + 2


@pytest.mark.usefixtures("extra")
def test_objects_are_found_as_ours_are() -> None:
    assert techniques()[-1] is extras.SWEEPING
    assert registry.load_all("runtimes")["dusty"] is extras.DUSTY
    assert known_dimensions()["dust"] is extras.DUST
    assert composed().space["dust"] == ["fine", "coarse"]


@pytest.mark.usefixtures("extra")
def test_a_study_has_the_dimensions_of_its_devices_runtime_alone() -> None:
    """Two runtimes may have one of the same name."""
    raw = {**composed().space, "dust": "fine"}
    assert "grain" not in parse_space(raw, 2).axes
    names = [one.name for one in dimensions("dusty")]
    assert names.count("bits") == names.count("grain") == names.count("dust") == 1
    assert "threads" not in names
    del raw["threads"]
    there = parse_space({**raw, "grain": "coarse"}, 2, "dusty")
    assert there.axes["grain"].describe() == "coarse"


WRONG = {
    "techniques": (extras.point("techniques", "mopping", "tests.extras:SWEEPING"), "give it that"),
    "runtimes": (extras.point("runtimes", "onnxruntime", "tests.extras:DUSTY"), "already"),
    "devices": (extras.point("devices", "rack", "tests.extras:reach"), "is no mapping"),
    "samplers": (extras.point("samplers", "tpe", "tests.extras:DICE"), "sampler=tpe"),
    "models": (extras.point("models", "gone", "tests.extras:GONE"), "cannot be imported"),
    "data": (extras.point("data", "digits", "tests.extras:SHADES"), "data=digits"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_added_is_refused_in_one_line(
    kind: registry.Kind, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, reason = WRONG[kind]
    install(wrong)
    assert command.main(lambda raw, text: 0, []) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert reason in said
    assert f"cnn_search.{kind}" in said


FACTORIES = {
    "": "is not of the form",
    "tests.extras:gone": "has no 'gone'",
    "tests.extras:make_source": "called with|returned Source",
    "builtins:dict": "returned dict",
}


@pytest.mark.usefixtures("extra")
@pytest.mark.parametrize("factory", FACTORIES)
def test_a_factory_that_makes_something_else_is_told(factory: str) -> None:
    config = composed("sampler=dice", "device=rack")
    assert isinstance(config.sampler, PluginSamplerConfig)
    assert isinstance(config.device, PluginDeviceConfig)
    with pytest.raises(ConfigError, match=FACTORIES[factory]) as sampler:
        check_sampler(replace(config.sampler, factory=factory, arguments={}))
    with pytest.raises(ConfigError, match=FACTORIES[factory]) as device:
        open_device(replace(config.device, factory=factory, arguments={}), 60.0)
    assert str(sampler.value).startswith("sampler.factory=")
    assert str(device.value).startswith("device.factory=")


def test_the_version_of_a_package_that_edited_a_network_is_part_of_steps_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(apply: str) -> str:
        network = replace(NETWORK, edits=(Edit(apply, (("layer", "head"),)),))
        return Reestimate(network, DATA, 64, "float32", "channels_last", "cpu", seed=0).key

    own = key("search.networks.networks:split")
    before = key("plugged.edits:split")
    monkeypatch.setattr(registry, "origin", lambda module: f"{module.partition('.')[0]} 2.0")
    assert key("plugged.edits:split") != before
    monkeypatch.setattr(
        registry, "origin", lambda module: "" if module.startswith("search") else "plugged 3.0"
    )
    assert key("search.networks.networks:split") == own


@pytest.mark.usefixtures("extra")
def test_the_version_of_a_package_that_converts_models_is_part_of_steps_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def key(runtime: str) -> str:
        return replace(make_quantize(file("model"), 32, "u8s8", DATA), runtime=runtime).key

    own, before = key("onnxruntime"), key("dusty")
    monkeypatch.setattr(registry, "origin", lambda module: "plugged 2.0" * ("tests" in module))
    assert key("dusty") != before
    assert key("onnxruntime") == own


def test_a_transport_of_ours_is_one() -> None:
    from search.devices.transport import Transport

    assert isinstance(LocalTransport(), Transport)
