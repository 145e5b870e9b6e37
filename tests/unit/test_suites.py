"""The suites for plug-ins find what breaks a promise."""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.samplers import BaseSampler, RandomSampler
from torch import Tensor, nn

import search.testing
from search.config.data import CustomDataConfig
from search.config.study import PluginSamplerConfig
from search.data import Source
from search.devices.local import LocalTransport
from search.engine.store import Store
from search.errors import ConfigError
from search.records.network import NetworkSpec
from search.testing import devices
from search.testing.data import DataContract
from search.testing.devices import TransportContract
from search.testing.models import ModelContract
from search.testing.samplers import SamplerContract
from tests.extras import Tiny, make_source

HERE = "tests.unit.test_suites"


def broken(check: Callable[..., None], *given: Any) -> None:
    """Expects a check of a suite to fail."""
    with pytest.raises((AssertionError, ConfigError)):
        check(*given)


def test_they_need_no_pytest_before_it_runs_them() -> None:
    names = [one.name for one in pkgutil.iter_modules(search.testing.__path__, "search.testing.")]
    assert len(names) > 6
    code = f"import sys, {', '.join(names)}; sys.exit('pytest' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- samplers


def restless(seed: int) -> BaseSampler:
    """Its numbers are other ones each time."""
    return RandomSampler(seed=int.from_bytes(os.urandom(4)))


def stubborn(seed: int) -> BaseSampler:
    """Ignores the seed."""
    return RandomSampler(seed=1)


class Proud(RandomSampler):
    """Keeps what it knows to itself."""

    known = 0

    def sample_independent(self, study: optuna.Study, *given: Any) -> Any:
        Proud.known += 1
        self._rng.rng.seed(Proud.known)
        return super().sample_independent(study, *given)


def proud(seed: int) -> BaseSampler:
    return Proud(seed=seed)


def sampler(name: str) -> PluginSamplerConfig:
    return PluginSamplerConfig(name=name, factory=f"{HERE}:{name}", arguments={})


def test_a_sampler_without_a_seed_is_found() -> None:
    suite = SamplerContract()
    broken(suite.test_the_seed_decides, sampler("restless"))
    broken(suite.test_the_seed_decides, sampler("stubborn"))
    broken(suite.test_it_proposes_what_the_space_holds, sampler("stubborn"))


def test_a_sampler_that_remembers_by_itself_is_found() -> None:
    broken(SamplerContract().test_a_study_that_broke_off_goes_on_as_if_it_had_not, sampler("proud"))


# ---- data sets


def leaking() -> Source:
    """Tests on what it trains on."""
    whole = make_source()
    train, labels = whole.train_images, whole.train_labels
    return Source(train, labels, train, labels, whole.labels)


def moody() -> Source:
    """Its images are others in each process."""
    whole = make_source()
    images = np.array([whole.train_images[i] for i in range(len(whole.train_labels))])
    images[0, 0, 0, 0] = hash("a string") % 256
    images[0, 0, 0, 1] = os.getpid() % 256
    return Source(images, whole.train_labels, whole.test_images, whole.test_labels, whole.labels)


def shuffled() -> Source:
    """Gives its images new places each time."""
    whole = make_source()
    order = np.random.default_rng().permutation(len(whole.test_labels))
    images = np.array([whole.test_images[i] for i in order])
    test = images, whole.test_labels[order]
    return Source(whole.train_images, whole.train_labels, *test, whole.labels)


def data(name: str) -> CustomDataConfig:
    return CustomDataConfig(
        name="custom", factory=f"{HERE}:{name}", arguments={}, validation_share=0.2,
        mean=None, std=None, memory_limit_bytes=0,
    )  # fmt: skip


def test_data_that_leak_or_change_are_found() -> None:
    suite = DataContract()
    broken(suite.test_its_splits_share_no_images, data("leaking"))
    broken(suite.test_it_is_the_same_in_every_process, data("moody"))
    broken(suite.test_only_the_share_moves_images, data("shuffled"))


# ---- networks


class Idle(Tiny):
    """Has weights that do nothing."""

    def __init__(self) -> None:
        super().__init__(1, 10)
        self.more = nn.Linear(2, 2)


class Mixing(Tiny):
    """Looks at the whole batch."""

    def __init__(self) -> None:
        super().__init__(1, 10)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0))


class Forgetting(Tiny):
    """Computes with what is not in its state."""

    def __init__(self) -> None:
        super().__init__(1, 10)
        self.gain = torch.rand(1)

    def forward(self, images: Tensor) -> Tensor:
        self.gain = torch.rand(1)
        return super().forward(images) * self.gain


def spec(name: str, *_: Any) -> NetworkSpec:
    return NetworkSpec("custom", None, f"{HERE}:{name}", (), "0" * 64, (1, 28, 28), 10)


class Square(ModelContract):
    cases = (((1, 28, 28), 10),)


def test_networks_that_break_promises_are_found(tmp_path: Path) -> None:
    suite = Square()
    broken(suite.test_every_parameter_learns, partial(spec, "Idle"))
    broken(suite.test_images_do_not_influence_each_other_when_evaluated, partial(spec, "Mixing"))
    broken(suite.test_it_is_rebuilt_from_its_record, partial(spec, "Forgetting"), Store(tmp_path))


# ---- devices


class Lazy(LocalTransport):
    """Brings nothing a second time, whatever there is in it, and ends only the program."""

    def __init__(self) -> None:
        super().__init__()
        self._brought: dict[Path, str] = {}

    def put(self, path: Path) -> str:
        if path not in self._brought:
            copy = path.with_name(f"{path.name}-copy")
            copy.write_bytes(path.read_bytes())
            self._brought[path] = str(copy)
        return self._brought[path]

    def kill(self, group: int | None) -> int | None:
        process, self._process = self._running(), None
        process.kill()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()
        return process.wait()


class Shell(LocalTransport):
    """Has a shell read the name of the program."""

    def start(self, program: str) -> int:
        os.system(f"cd {Path.cwd()}; : {program}")
        return super().start(program)


def test_ways_to_a_device_that_break_promises_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = TransportContract()
    broken(suite.test_a_file_arrives_whole, Lazy, tmp_path)
    monkeypatch.setattr(devices, "HANG", devices.HANG.replace("600", "3"))
    monkeypatch.setattr(devices, "SOON_S", 0.5)
    broken(suite.test_a_killed_program_ends_with_its_children, Lazy, tmp_path)
    monkeypatch.chdir(tmp_path)
    broken(suite.test_names_are_nothing_but_names, Shell, tmp_path)
