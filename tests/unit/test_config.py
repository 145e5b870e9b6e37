"""Every default is accepted, every range is kept, and every fault is named by its key."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from search import config
from search.cli import command as cli
from search.cli.remarks import comments
from search.config.commands import PickConfig, SearchConfig
from search.config.parsing import parse
from search.errors import ConfigError
from search.recipes.setup import settings_of
from search.space.parsing import parse_space
from search.study.settings import THE_DEVICE
from tests.fakes import lab

GIVEN = ("data.root=pets", "data.factory=a:b", "model.factory=a:b", "storage.url=postgresql://a/b")
GROUPS = sorted(path.name for path in cli.CONF.iterdir() if path.is_dir())
CORES = 8


OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((cli.CONF / group).glob("*.yaml"))
]


@functools.cache
def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return OmegaConf.to_container(compose("config", list(overrides)), resolve=True)


def raw(*overrides: str) -> Any:
    """The configuration that overrides compose, with what is mandatory given."""
    chosen = set(overrides)
    given = [
        key
        for key in GIVEN
        if (key.startswith("data.root") and "data=image_folder" in chosen)
        or (key.startswith("data.factory") and "data=custom" in chosen)
        or (key.startswith("model.factory") and "model=custom" in chosen)
        or (key.startswith("storage.url") and "storage=postgres" in chosen)
    ]
    return copy.deepcopy(composed(*overrides, *given))


def put(tree: Any, key: str, value: Any) -> Any:
    *path, last = key.split(".")
    for part in path:
        tree = tree[part]
    tree[last] = value


def fault(tree: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(tree, SearchConfig)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- defaults


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_is_accepted(group: str, option: str) -> None:
    parsed = parse(raw(f"{group}={option}"), SearchConfig)
    parse_space(parsed.space, CORES)
    assert isinstance(parsed, SearchConfig)


MODULES = [
    importlib.import_module(f"search.config.{path.stem}")
    for path in sorted(Path(config.__path__[0]).glob("[a-z]*.py"))
]
CLASSES = [
    value
    for module in MODULES
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and getattr(value, "__module__", "") == module.__name__
]


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_live_in_conf_only(kind: type) -> None:
    for field in dataclasses.fields(kind):
        assert field.default is dataclasses.MISSING, field.name
        assert field.default_factory is dataclasses.MISSING, field.name
    assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]  # not in the stubs


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_no_section_takes_another_key(group: str, option: str) -> None:
    tree = raw(f"{group}={option}")
    for section in set(tree) - {"space"}:
        tree[section]["stranger"] = 1
    found = re.findall(r"(\w+)\.stranger=1: there is no such key; ", fault(tree))
    assert sorted(found) == sorted(set(tree) - {"space"})


def test_a_study_keeps_what_its_arithmetic_depends_on() -> None:
    """Two virtual machines may have one name of their processor and other instructions."""
    config, bench = parse(raw(), SearchConfig), lab().bench
    space = parse_space(config.space, CORES)

    def kept(**changes: Any) -> dict[str, Any]:
        device = dataclasses.replace(bench.device, **changes)
        return settings_of(config, dataclasses.replace(bench, device=device), space)

    for key, value in {"cpu": "other", "arch": "aarch64", "flags": ("avx512_vnni",)}.items():
        own, other = kept(), kept(**{key: value})
        assert {name for name in own if own[name] != other[name]} == {f"device.{key}"}
        assert f"device.{key}" in THE_DEVICE


# ---- ranges that comments state


PROGRAMS = {("", path.stem) for path in cli.CONF.glob("*.yaml")} - {("", "config")}
BELOW = re.compile(r"([\d.]+) or more and below ([\d.]+)")
LEAST = re.compile(r"(?:at least ([\d.]+)|([\d.]+) or more)")
ABOVE = re.compile(r"\babove ([\d.]+)(?: and below ([\d.]+))?")
BETWEEN = re.compile(r"(?<![\d.])([\d.]+) to ([\d.]+)\b")
OTHERWISE = {
    "data.channels",  # one of two
    "device.timeout_s",  # above another key
    "train.rungs",  # a list with a rule of its own
    "objective.names",  # the same
}


def limits(remark: str) -> tuple[list[float], list[float]]:
    """Returns values that a comment allows and values that it forbids."""
    if match := BETWEEN.search(remark):
        low, high = float(match[1]), float(match[2])
        return [low, high], [low - 1, high + 1]
    if match := BELOW.search(remark):
        low, high = float(match[1]), float(match[2])
        return [low, (low + high) / 2], [low - 1, high]
    if match := LEAST.search(remark):
        low = float(match[1] or match[2])
        return [low, low + 1], [low - 1]
    if match := ABOVE.search(remark):
        if match[2]:
            low, high = float(match[1]), float(match[2])
            return [(low + high) / 2], [low, high, high + 1]
        return [float(match[1]) + 1], [float(match[1]), float(match[1]) - 1]
    return [], []


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def documented() -> Iterator[tuple[str, str, str]]:
    """Yields override, key and comment of every key of every option."""
    for (group, option), remarks in comments().items():
        if (group, option) in PROGRAMS:
            continue  # their files hold the keys of another command line
        override = f"{group}={option}" if group else "model=cnn"
        for key, remark in remarks.items():
            yield override, key, remark


def accepts(override: str, key: str, value: float) -> bool:
    tree = raw(override)
    if key.startswith("space.") and key.count(".") == 2:
        key = key.rpartition(".")[0]  # alone, low would have to fit high
    whole = int(value) if value == int(value) else value
    put(tree, key, whole)
    try:
        parse_space(parse(tree, SearchConfig).space, CORES)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("override", "key", "remark"),
    [row for row in documented() if row[1] not in OTHERWISE and any(limits(row[2]))],
)
def test_ranges_in_comments_are_those_of_the_types(override: str, key: str, remark: str) -> None:
    allowed, forbidden = limits(remark)
    assert [value for value in allowed if not accepts(override, key, value)] == []
    assert [value for value in forbidden if accepts(override, key, value)] == []


@pytest.mark.parametrize(
    ("key", "remark"),
    [row for row in comments()["", "pick"].items() if any(limits(row[1]))],
)
def test_ranges_of_picking_are_those_of_the_types(key: str, remark: str) -> None:
    def accepted(value: float) -> bool:
        tree = yaml.safe_load((cli.CONF / "pick.yaml").read_text())
        given = {name: other for name, other in tree.items() if name not in ("defaults", "hydra")}
        whole = int(value) if value == int(value) else value
        try:
            groups = {"storage": {"name": "journal"}, "tracking": {"uri": None, "timeout_s": 1.0}}
            parse({**given, **groups, key: whole}, PickConfig)
        except ConfigError:
            return False
        return True

    allowed, forbidden = limits(remark)
    assert [value for value in allowed if not accepted(value)] == []
    assert [value for value in forbidden if accepted(value)] == []


def test_every_number_has_its_range_in_a_comment() -> None:
    remarks = {(override, key): remark for override, key, remark in documented()}
    for group, option in OPTIONS:
        if group == "experiment":
            continue
        for key, value in leaves(raw(f"{group}={option}")):
            if key.startswith(f"{group}.") and type(value) in (int, float):
                whole = "local" if group == "device" else "default"
                inherited = remarks.get((f"{group}={whole}", key), "")
                remark = remarks.get((f"{group}={option}", key), inherited)
                assert key in OTHERWISE or any(limits(remark)) or "usable cores" in remark, key


@pytest.mark.parametrize(
    ("overrides", "epochs"),
    [
        (["model=cnn"], 1.5),
        (["model=resnet8"], 6.0),
        (["model=ds_cnn"], 6.0),
        (["model=cnn", "train=deep"], 6.0),
        (["model=resnet8", "train=default"], 1.5),
        (["model=resnet8", "experiment=thorough"], 8.0),
    ],
)
def test_deep_networks_are_fine_tuned_longer(overrides: list[str], epochs: float) -> None:
    assert raw(*overrides)["train"]["epochs"] == epochs


def test_every_choice_of_a_comment_is_accepted() -> None:
    names = ["accuracy", "latency", "size", "cpu", "memory"]
    remark = comments()["objective", "default"]["objective.names"]
    assert remark.endswith("2 or more of " + ", ".join(names))
    tree = raw()
    put(tree, "objective.names", names)
    assert parse(tree, SearchConfig).objective.names == tuple(names)


# ---- what the messages say


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("study.n_trials", -1, "study.n_trials=-1: input should be greater than or equal to 0"),
        ("study.n_trials", 2.5, "study.n_trials=2.5: input should be a whole number"),
        ("study.n_trials", "abc", "study.n_trials='abc': input should be a whole number"),
        ("study.n_trials", True, "study.n_trials=true: input should be a number"),
        ("study.seed", -1, "study.seed=-1: input should be greater than or equal to 0"),
        ("study.seed", 2**32, "study.seed=4294967296: input should be less than 4294967296"),
        ("study.timeout_s", 0, "study.timeout_s=0: input should be greater than 0"),
        ("study.name", None, "study.name=null: input should be text"),
        ("study.name", "", "study.name='': input should be 1 to 100 letters, digits, dots"),
        ("study.name", "a/b", "study.name='a/b': input should be 1 to 100 letters, digits, dots"),
        ("study.name", "../a", "study.name='../a': input should be 1 to 100 letters"),
        ("study.name", "a\n", "study.name='a\\n': input should be 1 to 100 letters"),
        ("study.name", "a" * 101, "a': input should be 1 to 100 letters"),
        ("study", 3, "study=3: is a section; give single keys of it"),
        ("model.width", None, "model.width=null: input should be a whole number"),
        ("model.width", 1025, "model.width=1025: input should be less than or equal to 1024"),
        ("model.name", "vgg", "model.name='vgg': no such choice; give one of 'cnn', 'resnet8', "),
        ("sampler.multivariate", 2, "sampler.multivariate=2: input should be true or false"),
        (
            "train.batch_size",
            "many",
            "train.batch_size='many': input should be a whole number from 1",
        ),
        (
            "train.batch_size",
            0,
            "train.batch_size=0: input should be a whole number from 1 on, or a",
        ),
        ("train.epochs", float("nan"), "train.epochs=nan: input should be a finite number"),
        ("train.epochs", float("inf"), "train.epochs=inf: input should be a finite number"),
        ("train.epochs", "1e", "train.epochs='1e': input should be a number"),
        ("train.device", "gpu", "train.device='gpu': input should be 'auto', 'cpu' or 'cuda'"),
        ("train.rungs", [], "train.rungs=[]: has too few entries, needs at least 1"),
        ("train.rungs", [0.5], "train.rungs=[0.5]: input should rise and end with 1, such as [0"),
        ("train.rungs", [0.5, 0.5, 1], "train.rungs=[0.5, 0.5, 1]: input should rise and end"),
        ("train.rungs", [0, 1], "train.rungs[0]=0: input should be greater than 0"),
        ("train.rungs", 1, "train.rungs=1: input should be a list in brackets"),
        ("data.mean", [0.1, "x"], "data.mean[1]='x': input should be a number"),
        ("device.timeout_s", 3, "device.timeout_s=3: input should be at least 3 times device.b"),
        ("device.budget_s", 500, "device.timeout_s=120.0: input should be at least 3 times devi"),
        ("objective.names", ["size"], "objective.names=['size']: has too few entries, needs at l"),
        ("objective.names", ["size"] * 2, "objective.names=['size', 'size']: has a name twice; gi"),
        (
            "objective.names",
            ["accuracy", "speed"],
            "objective.names[1]='speed': input should be 'accuracy', 'latency', 'size', 'cpu' or ",
        ),
        ("tracking.uri", "foo://bar", "tracking.uri='foo://bar': input should be a server such as"),
        ("tracking.uri", "", "tracking.uri='': input should be a server such as http://host:5000"),
        ("tracking.uri", "mlruns", "tracking.uri='mlruns': input should be a server such as"),
        ("tracking.uri", "http://", "tracking.uri='http://': input should be a server such as"),
        ("tracking.uri", "http://h:x", "tracking.uri='http://h:x': input should be a server such"),
    ],
)
def test_message(key: str, value: Any, said: str) -> None:
    tree = raw()
    put(tree, key, value)
    message = fault(tree)
    assert said in message
    assert message.count(": ") == 1, "more than one fault"


@pytest.mark.parametrize(
    ("override", "key", "value", "said"),
    [
        (
            "sampler=gp",
            "sampler.multivariate",
            True,
            " (sampler=tpe has it); sampler=gp has n_startup_trials, name",
        ),
        (
            "model=cnn",
            "model.factory",
            "a:b",
            " (model=custom has it); model=cnn has checkpoint, name, title, width",
        ),
        ("engine=inline", "engine.workers", 2, " (engine=local and engine=ray have it); engine=in"),
        ("model=cnn", "model.widht", 3, " (did you mean model.width?); model=cnn has "),
        ("model=cnn", "study.n_trial", 3, " (did you mean study.n_trials?); study has n_trials, "),
        ("model=cnn", "modle", {}, " (did you mean model?); there are data, device, engine, fin"),
        (
            "data=digits",
            "data.root",
            "pets",
            " (data=fashion_mnist and data=image_folder have it); data=digits has mean, memory_lim",
        ),
    ],
)
def test_unknown_key(override: str, key: str, value: Any, said: str) -> None:
    tree = raw(override)
    put(tree, key, value)
    message = fault(tree)
    assert message.startswith(key)
    assert f": there is no such key{said}" in message


def test_missing_keys() -> None:
    tree = raw()
    del tree["study"]["seed"], tree["model"]["name"], tree["tracking"]
    assert fault(tree).split("; ") == [
        "model.name: is missing",
        "give it a value",
        "tracking: is missing",
        "give it a value",
        "study.seed: is missing",
        "give it a value",
    ]


def test_a_study_that_never_ends() -> None:
    tree = raw()
    put(tree, "study.n_trials", None)
    assert fault(tree) == (
        "study.timeout_s=null: with study.n_trials=null too the study never ends; give one of them"
    )
    put(tree, "study.timeout_s", 60)
    assert parse(tree, SearchConfig).study.n_trials is None


def test_all_faults_are_reported_at_once() -> None:
    tree = raw()
    spoiled = {
        "model.width": 0,
        "data.validation_share": 1,
        "sampler.n_startup_trials": "x",
        "objective.max_accuracy_drop": 2,
        "device.batch_size": 0,
        "train.rungs": [0.5],
        "engine.name": "cloud",
        "tracking.timeout_s": 0,
        "study.n_trials": -1,
        "study.n_trial": 3,
    }
    for key, value in spoiled.items():
        put(tree, key, value)
    message = fault(tree)
    named = [key for key in spoiled if re.search(rf"(^|; ){re.escape(key)}=", message)]
    assert named == list(spoiled)


# ---- what is taken although it is written otherwise


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("study.n_trials", 20.0, 20),
        ("objective.max_size_bytes", 1e6, 1_000_000),
        ("study.name", 2024, "2024"),
        ("data.root", 5, "5"),
        ("device.budget_s", 2, 2.0),
        ("tracking.uri", "http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("tracking.uri", "https://me:word@host/path", "https://me:word@host/path"),
        ("tracking.uri", "sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("tracking.uri", "sqlite:////var/mlflow.db", "sqlite:////var/mlflow.db"),
        ("tracking.uri", "mysql+pymysql://host/x", "mysql+pymysql://host/x"),
    ],
)
def test_taken(key: str, value: Any, taken: Any) -> None:
    tree = raw()
    put(tree, key, value)
    section, name = key.split(".")
    found = getattr(getattr(parse(tree, SearchConfig), section), name)
    assert found == taken
    assert type(found) is type(taken)
