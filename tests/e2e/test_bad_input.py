"""Whatever is wrong with the input, the command says it in one line and begins nothing.

Most is asked of the command's function in this process, which has imported torch already; at
least one fault of every kind is given to a command of its own, whose streams and end are looked at.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import models
from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.data import fashion_mnist
from search.devices.reaching import describe_device
from search.engine import inline
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.recipes.setup import make_bench, settings_of
from search.storage.journal import Journal
from search.study.study import Study
from tests import commands, foreign
from tests.fakes import FakeEngine, lab, trials_of

TIMEOUT_S = 120
describe_once = functools.cache(describe_device)
TINY = ("data=custom", "data.factory=tiny:images")
NET = (*TINY, "model=custom")
FOLDER = ("data=image_folder", "data.root=pets")

TINY_SOURCE = """
import dataclasses
import numpy as np
from search.data import Source

def images():
    labels = np.arange(40) % 10
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    return Source(pixels, labels, pixels, labels, tuple("abcdefghij"))

def raising():
    raise RuntimeError("disk on fire")

def nothing():
    return None

def floats():
    source = images()
    return dataclasses.replace(source, train_images=source.train_images / 255)
"""
NETS_SOURCE = """
from torch import nn

def build(inputs=64, classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))

def three():
    return build(classes=3)

def wide():
    return build(inputs=784)

def raising():
    raise RuntimeError("no weights today")

def text():
    return "network"

def leaving():
    raise SystemExit(7)

def staying():
    import sys, threading, warnings
    print("loading weights")
    sys.stderr.write("50%...")
    warnings.warn("they are old")
    threading.Thread(target=threading.Event().wait).start()
    return build(classes=3)

def compiled():
    import torch
    return torch.jit.script(build())
"""


# ---- a folder with the user's things


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules, checkpoints and images as a user may have them."""
    folder = tmp_path_factory.mktemp("things")
    (folder / "tiny.py").write_text(TINY_SOURCE)
    (folder / "nets.py").write_text(NETS_SOURCE)
    for name, classes, width in (("fits", 10, 4), ("narrow", 10, 2), ("three", 3, 4)):
        network = models.build("cnn", (1, 8, 8), classes, width)
        torch.save(network.state_dict(), folder / f"{name}.pt")
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    whole = (folder / "fits.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "weights.npz").write_bytes(whole)
    (folder / "junk.pt").write_bytes(bytes(range(256)) * 8)
    (folder / "empty.pt").write_bytes(b"")
    network = models.build("cnn", (1, 8, 8), 10, 4)
    torch.save(network, folder / "module.pt")
    torch.save([1, 2], folder / "list.pt")
    state = network.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "ema": other}, folder / "two.pt")
    torch.save({**state, "conv.bias": torch.full((4,), torch.nan)}, folder / "nan.pt")
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            for number in range(3):
                path = folder / "pets" / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (80 * number, 90 * number, 70 * number)).save(path)
    return folder


@pytest.fixture
def here(things: Path, tmp_path: Path) -> Path:
    """A working directory with the user's things, in which nothing was searched yet."""
    shutil.copytree(things, tmp_path, dirs_exist_ok=True)
    return tmp_path


# ---- running and judging


def refusal(folder: Path, *arguments: str) -> str:
    """Runs a command that must be refused, and returns what it said."""
    result = commands.run(folder, "search.run", *arguments, timeout_s=TIMEOUT_S)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("error: "), result.stderr
    assert result.stderr.endswith("\n")
    assert result.stderr.count("\n") == 1, result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def assert_nothing_begun(folder: Path) -> None:
    left = {path.name for path in folder.iterdir()}
    assert left & {"mlruns", "outputs", "multirun"} == set()


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The same command inside this process, which has imported torch already."""
    from search.run import main

    # Asking takes a process on the device; what cannot be reached is asked every time.
    monkeypatch.setattr(inline, "describe_device", describe_once)

    def run_here(folder: Path, *arguments: str) -> str:
        for name in ("tiny", "nets"):  # of the folder of another test
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.chdir(folder)
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(sys, "argv", ["run.py"])
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        assert printed.err.count("\n") == 1
        return printed.err

    return run_here


def refused(
    *arguments: str, says: Sequence[str], name: str | None = None, alone: bool = False
) -> Any:
    """A row of the table; ``alone`` if it is given to a command of its own."""
    return pytest.param(arguments, says, alone, id=name or " ".join(arguments[-1:]) or "empty")


# ---- overrides


# More of what cannot be composed is in tests/integration/test_cli.py.
OVERRIDES = [
    refused(
        "study.n_trial=3",
        says=["study.n_trial=3: there is no such key", "did you mean study.n_trials?", "n_trials"],
        alone=True,
    ),
    refused("study.n_trials.x=3", says=["study.n_trials"]),
    refused("model.factory=a:b", says=["model.factory='a:b': there is no", "model=cnn has check"]),
    refused(
        "sampler=gp",
        "sampler.multivariate=true",
        says=["sampler.multivariate=true: there is no such key", "sampler=gp has n_startup_trial"],
    ),
    refused("model.name=vgg", says=["model.name='vgg': no such choice; give one of 'cnn', 'res"]),
    refused("sampler=foo", says=["sampler=foo: no such choice; give one of gp, nsga2, random, t"]),
    refused("engine=local", "engine.workers=9999", says=["engine.workers=9999: this machine has"]),
    refused("experiment=foo", says=["experiment=foo: no such choice", "default, smoke, thorough"]),
    refused("n_trials=5", says=["n_trials=5: there is no such key (did you mean study.n_trials?)"]),
]

VALUES = [
    refused("study.n_trials=abc", says=["study.n_trials='abc': input should be a whole number"]),
    refused("model.width=2.5", says=["model.width=2.5: input should be a whole number"]),
    refused("study.n_trials=-1", says=["study.n_trials=-1: ", "greater than or equal to 0"]),
    refused(
        "study.n_trials=0", says=["study.n_trials=0: holds the closing round", "no trials yet"]
    ),
    refused("study.warm_start=[gone]", says=["study.warm_start=gone: there is no such study"]),
    refused("study.warm_start=gone", says=["study.warm_start='gone': ", "list in brackets"]),
    refused("policy.eta=1", says=["policy.eta=1: ", "greater than 1"]),
    refused(
        "policy.deployments=-1", says=["policy.deployments=-1: ", "greater than or equal to 0"]
    ),
    refused("finalists.count=13", says=["finalists.count=13: ", "less than or equal to 12"]),
    refused("finalists.budget_s=0", says=["finalists.budget_s=0: ", "greater than 0"]),
    refused("device=ssh", "device.host=me@board", says=["device.host='me@board': ", "device.user"]),
    refused("model.width=0", says=["model.width=0: ", "greater than or equal to 1"]),
    refused("train.rungs=[0.5]", says=["train.rungs=[0.5]: ", "rise and end with 1, such as [0."]),
    refused("train.epochs=nan", says=["train.epochs=nan: input should be a finite number"]),
    refused("device.budget_s=inf", says=["device.budget_s=inf: input should be a finite number"]),
    refused("train.device=gpu", says=["train.device='gpu': ", "'auto', 'cpu' or 'cuda'"]),
    refused(
        "device.timeout_s=8", says=["device.timeout_s=8: input should be at least 3 times device.b"]
    ),
    refused("study.n_trials=null", says=["study.timeout_s=null: with study.n_trials=null", "one"]),
    refused("study.name=a/b", says=["study.name='a/b': ", "letters, digits, dots, underscores"]),
    refused("objective.names=[accuracy]", says=["objective.names=['accuracy']: ", "at least 2"]),
    refused("objective.names=[size,size]", says=["objective.names=['size', 'size']: ", "once"]),
    refused(
        "objective.names=[accuracy,speed]",
        says=["objective.names[1]='speed': input should be 'accuracy', 'latency', 'size', 'cpu' o"],
    ),
    refused(
        "tracking.uri=foo://bar", says=["tracking.uri='foo://bar': ", "http://host:5000", "sq"]
    ),
    refused("tracking.uri=ftp://me:secret@host", says=["tracking.uri='ftp://me:***@host': input"]),
    refused("tracking.uri=http://me:secret@[", says=["tracking.uri=http://me:***@[: cannot be"]),
    refused(
        "tracking.uri='http://me:two secret words@host'",
        says=["tracking.uri='http://me:***@host': input should be a server such as"],
    ),
    refused("tracking.uri=http://host:x", says=["tracking.uri='http://host:x': input should be"]),
    refused("storage=postgres", says=["storage.url is not given; add storage.url=... (such as po"]),
    refused(
        "storage=postgres",
        "storage.url=mysql://me:secret@host/db",
        says=["storage.url='mysql://me:***@host/db': input should be a database such as postgres"],
    ),
    refused(
        "storage=postgres",
        "storage.url=postgresql://me:se@cret@host/db",
        says=["storage.url='postgresql://me:***@host/db': ", "such as %40 for @"],
    ),
    refused(
        "storage=postgres",
        "storage.url=postgresql://me:secret@127.0.0.1:1/db",
        says=["storage.url='postgresql://me:***@127.0.0.1:1/db': cannot be used (", "refused"],
        alone=True,
    ),
    refused(
        "data=image_folder",
        says=["data.root is not given; add data.root=... (folder that holds train/ and test/)"],
        alone=True,
    ),
    refused(
        "model=custom",
        "data=custom",
        says=["data.factory is not given; add data.factory=", "; model.factory is not given; add"],
    ),
    refused(
        "study.n_trials=-1",
        "study.n_trial=3",
        "model.width=0",
        "train.epochs=-1",
        says=["study.n_trials=-1: ", "; study.n_trial=3: ", "model.width=0: ", "train.epochs=-1: "],
        name="four faults",
        alone=True,
    ),
]

SPACE = [
    refused("space.kernel=3", says=["space.kernel: unknown dimension", "Allowed are prune_ratio"]),
    refused("+space.kernel=3", says=["space.kernel: unknown dimension"]),
    refused("space.prune_rato=0", says=["space.prune_rato: ", "did you mean prune_ratio?"]),
    refused("space.bits=[7]", says=["space.bits[0]=7: not one of the choices; give 32, 16, 8, 4"]),
    refused("space.bits=[]", says=["space.bits=[]: empty; give 32, 16, 8, 4"]),
    refused("space.threads=[]", says=["space.threads=[]: empty; give 1"]),
    refused(
        "space.prune_ratio.low=0.8",
        "space.prune_ratio.high=0.2",
        says=["space.prune_ratio=", "low is above high; lower it or raise high"],
        name="reversed range",
    ),
    refused("space.threads=4096", says=["space.threads=4096: this device has ", "give 1"]),
    refused(
        "space.bits=[7]",
        "space.threads=4096",
        "space.kernel=3",
        says=["space.kernel: ", "; space.bits[0]=7: ", "; space.threads=4096: "],
        name="three faults of the space",
        alone=True,
    ),
]


@pytest.mark.parametrize(("arguments", "says", "alone"), [*OVERRIDES, *VALUES, *SPACE])
def test_override(
    arguments: Sequence[str],
    says: Sequence[str],
    alone: bool,
    tmp_path: Path,
    at: Callable[..., str],
) -> None:
    said = (refusal if alone else at)(tmp_path, *arguments)
    assert [part for part in says if part not in said] == [], said
    assert list(tmp_path.iterdir()) == []


# ---- networks, checkpoints and data


FILES = [
    refused(
        *TINY,
        "model.checkpoint=none.pt",
        says=["model.checkpoint='none.pt': cannot be read (No such file", "; give a .safetensors"],
        alone=True,
    ),
    refused(*TINY, "model.checkpoint=pets", says=["model.checkpoint='pets'", "Is a directory"]),
    refused(
        *TINY, "model.checkpoint=weights.npz", says=["'weights.npz': the suffix is .npz; give"]
    ),
    refused(*NET, "model.factory=nets", says=["model.factory='nets': is not of the form package."]),
    refused(
        *NET,
        "model.factory=nosuch:build",
        says=["found no module 'nosuch'; correct the name"],
        alone=True,
    ),
    refused(
        "data=custom",
        "data.factory=tiny:raising",
        says=["data.factory='tiny:raising'", "fire"],
        alone=True,
    ),
    refused(
        "data=custom", "data.factory=tiny:nothing", says=["returned NoneType; return a search"]
    ),
    refused(
        "data=custom", "data.factory=tiny:floats", says=["train_images is an array of float64"]
    ),
    refused("data=custom", "data.factory=tiny:none", says=["module tiny has no 'none'; define it"]),
    refused("data=image_folder", "data.root=/none", says=["data.root='/none': found no folder"]),
    refused("data=fashion_mnist", "data.root=pets", says=["data.root='pets': cannot read", "null"]),
    refused(*TINY, "data.mean=[120]", says=["data.mean=[120.0]: must lie in 0..1; divide figures"]),
    refused(
        *TINY, "data.std=[0.1,0.2]", says=["data.std=[0.1, 0.2]: has 2 values but images have 1"]
    ),
]

NETWORKS = [
    refused(
        *TINY, "model.width=4", "model.checkpoint=cut.safetensors", says=["'cut.safetensors': ca"]
    ),
    refused(
        *TINY, "model.width=4", "model.checkpoint=junk.pt", says=["'junk.pt': cannot be read as"]
    ),
    refused(
        *TINY,
        "model=resnet8",
        "model.checkpoint=fits.safetensors",
        says=["model.checkpoint='fits.safetensors': belongs to another network: ", "check model"],
    ),
    refused(
        *TINY,
        "model.width=4",
        "model.checkpoint=narrow.pt",
        says=[
            "'narrow.pt': belongs to another network: conv.weight is [2, 1, 3, 3] in it and [4, "
        ],
    ),
    refused(
        *TINY,
        "model.width=4",
        "model.checkpoint=three.safetensors",
        says=["'three.safetensors': belongs", "head.weight is [3, 8] in it and [10, 8]", "classes"],
        alone=True,
    ),
    refused(
        *NET, "model.factory=nets.py:build", says=["without .py; give model.factory=nets:build"]
    ),
    refused(
        *NET, "model.factory=nets:none", says=["model.factory='nets:none': module nets has no"]
    ),
    refused(
        *NET, "model.factory=nets:raising", says=["model.arguments={} it raised RuntimeError: no"]
    ),
    refused(
        *NET, "model.factory=nets:text", says=["'nets:text': returned str; return a torch.nn.M"]
    ),
    refused(
        *NET,
        "model.factory=nets:leaving",
        says=["model.arguments={} it raised SystemExit: 7 (nets.py:"],
        alone=True,
    ),
    refused(
        *NET,
        "model.factory=nets:compiled",
        says=["ScriptModule, whose layers cannot be pruned"],
        alone=True,
    ),
    refused(  # though a thread of its factory's never ends, and its factory talks
        *NET,
        "model.factory=nets:staying",
        says=["gives [2, 3] for 2 images; the data has 10 cl"],
        alone=True,
    ),
    refused(
        *NET, "model.factory=nets:three", says=["gives [2, 3] for 2 images; the data has 10 cl"]
    ),
    refused(
        *NET,
        "model.factory=nets:wide",
        says=[
            "'nets:wide': given the data's images [n, 1, 8, 8] the network raised",
            "build it for",
        ],
    ),
    refused(
        *NET,
        "model.factory=nets:build",
        "model.arguments.depth=3",
        says=[
            "called with model.arguments={'depth': 3} it raised TypeError",
            "correct the function",
        ],
    ),
    refused(
        *FOLDER,
        "data.image_size=[1,1]",
        says=["model=cnn: cnn needs images of at least 2x2"],
        alone=True,
    ),
]


@pytest.mark.parametrize(("arguments", "says", "alone"), [*FILES, *NETWORKS])
def test_file(
    arguments: Sequence[str], says: Sequence[str], alone: bool, here: Path, at: Callable[..., str]
) -> None:
    said = (refusal if alone else at)(here, *arguments)
    assert [part for part in says if part not in said] == [], said
    assert_nothing_begun(here)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty.pt", "cannot be read as weights"),
        (
            "module.pt",
            "it holds models.cnn.Cnn, which may be code and is not run; if you trust",
        ),
        ("list.pt", "holds no state dict, but a list; save one with"),
        ("two.pt", "two different sets of weights fit, 'model' and 'ema'; save the one you mean"),
        ("nan.pt", "conv.bias holds NaN or infinity; give sound weights"),
    ],
)
def test_checkpoint(name: str, says: str, here: Path, at: Callable[..., str]) -> None:
    said = at(here, *TINY, "model.width=4", f"model.checkpoint={name}")
    assert f"model.checkpoint='{name}': " in said
    assert says in said
    assert_nothing_begun(here)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_cuda(here: Path, at: Callable[..., str]) -> None:
    said = at(here, *TINY, "train.device=cuda")
    assert "train.device='cuda': torch finds no CUDA device; give cpu or auto" in said
    assert_nothing_begun(here)


def test_images_that_cannot_be_read(here: Path, at: Callable[..., str]) -> None:
    (here / "pets" / "train" / "dog" / "1.png").write_bytes(b"no picture")
    said = at(here, *FOLDER)
    assert "data.root: cannot read the image 'pets/train/dog/1.png'" in said
    assert "; replace or remove it" in said
    assert_nothing_begun(here)


def test_link_to_nothing(here: Path, at: Callable[..., str]) -> None:
    (here / "pets" / "train" / "dog" / "9.png").symlink_to("nowhere.png")
    said = at(here, *FOLDER, "data.image_size=[8,8]")
    assert "data.root='pets': cannot read 'pets/train/dog/9.png' (No such file or dire" in said
    assert_nothing_begun(here)


def test_images_of_two_sizes(here: Path, at: Callable[..., str]) -> None:
    Image.new("RGB", (9, 8)).save(here / "pets" / "train" / "dog" / "1.png")
    said = at(here, *FOLDER)
    assert "'pets/train/dog/1.png' is 8x9 pixels" in said
    assert "set data.image_size=[height,width] to scale all images" in said
    assert_nothing_begun(here)


# ---- other commands, and what is refused before anything is fetched


@pytest.mark.parametrize(
    "command",
    [
        ("search.pick",),
        ("search.pick", "study=x"),
        ("search.pick", "promote=true"),
        ("search.explain",),
        ("search.explain", "study=x", "trial=3"),
        ("search.sync",),
        ("search.sync", "study=x"),
        ("search.sync", "tracking.uri=file:///tmp"),
        ("search.device", "device=ssh", "device.host=127.0.0.1", "device.port=1"),
        ("search.device", "device.budget=3"),
        ("search.ui",),
        ("search.ui", "--port", "none"),
        ("search.run", "data=digits", "study.warm_start=[x]"),
        ("search.run", "data=digits", "device=ssh", "device.host=127.0.0.1", "device.port=1"),
        ("search.run", "--multirun", "study.seed=1,2", "data=image_folder", "data.root=none"),
        ("search.run", "trial=3"),
    ],
    ids=" ".join,
)
def test_no_refusal_leaves_anything_behind(command: Sequence[str], tmp_path: Path) -> None:
    done = commands.run(tmp_path, *command, timeout_s=TIMEOUT_S)
    assert (done.returncode, done.stdout) == (2, ""), done
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["model.checkpoint=three.safetensors"], "belongs to another network"),
        (["model.checkpoint=none.pt"], "cannot be read (No such file"),
        (["model=custom", "model.factory=nets:three"], "images [n, 1, 28, 28] the network raised"),
        (["model=custom", "model.factory=nets:none"], "has no 'none'"),
        (["data.mean=[0.1,0.2,0.3]"], "has 3 values but images have 1 channel"),
        (["data.std=[0]"], "must be above 0"),
        (["space.bits=[7]"], "space.bits[0]=7: not one of the choices"),
        (["tracking.uri=sqlite:////proc/none/x.db"], "'/proc/none'"),
        (["study.n_trials=0"], "study.n_trials=0: holds the closing round"),
        (["study.warm_start=[x]"], "study.warm_start=x: there is no such study"),
        (["device=ssh", "device.host=127.0.0.1", "device.port=1"], "127.0.0.1:1"),
        pytest.param(
            ["train.device=cuda"],
            "torch finds no CUDA device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_nothing_is_fetched_for_what_is_refused(
    arguments: Sequence[str],
    says: str,
    here: Path,
    at: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch(*places: object) -> fashion_mnist.Files:
        raise AssertionError("it was fetched")

    monkeypatch.setattr(fashion_mnist, "obtain", fetch)
    database = here / "new" / "tracked.db"
    tracking = [f"tracking.uri=sqlite:///{database}"]
    given = [*arguments, *([] if "tracking" in arguments[0] else tracking)]
    assert says in at(here, "data=fashion_mnist", *given)
    assert_nothing_begun(here)
    assert not database.parent.exists()


def test_faults_of_types_and_of_the_space_come_together(here: Path, at: Callable[..., str]) -> None:
    said = at(here, "model.width=0", "space.bits=[7]", "space.kernel=3")
    for fault in ("model.width=0: ", "; space.kernel: ", "; space.bits[0]=7: "):
        assert fault in said


# ---- folders of the user's with the project's names


@pytest.mark.parametrize("package", [True, False], ids=["package", "mere folder"])
def test_built_in_networks_stand_beside_other_models(package: bool, tmp_path: Path) -> None:
    save_file(models.build("cnn", (1, 28, 28), 3, 4).state_dict(), tmp_path / "three.safetensors")
    foreign.fill(tmp_path, search=False, package=package)
    said = refusal(tmp_path, "data=digits", "model.width=4", "model.checkpoint=three.safetensors")
    assert "head.weight is [3, 8] in it and [10, 8] in the network" in said
    assert_nothing_begun(tmp_path)


def test_a_file_called_models_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "models.py").write_text(foreign.MINE.replace("models.layers", "layers"))
    (tmp_path / "layers.py").write_text(foreign.LAYERS)
    given = ("data=digits", "model=custom", "model.factory=models:build")
    said = refusal(tmp_path, *given, "model.arguments.classes=3")
    assert "model.factory='models:build': the network gives [2, 3] for 2 images" in said
    assert "belongs to another" in refusal(
        tmp_path, "data=digits", *_weights(tmp_path / "w.safetensors")
    )


def _weights(path: Path) -> tuple[str, ...]:
    save_file({"none": torch.zeros(1)}, path)
    return ("model.width=4", f"model.checkpoint={path.name}")


# The repository is where modules are looked for in tests, and would come before a mere folder.
def test_the_user_s_models_are_found(tmp_path: Path) -> None:
    foreign.fill(tmp_path, search=False)
    given = ("data=digits", "model=custom", f"model.factory={foreign.FACTORY}")
    said = refusal(tmp_path, *given, "model.arguments.classes=3")
    assert "model.factory='models.mine:build': the network gives [2, 3] for 2 images" in said
    assert_nothing_begun(tmp_path)


# ---- state that cannot be kept


def make_file(state: Path) -> None:
    state.write_text("not a folder")


def link_to_proc(state: Path) -> None:
    state.symlink_to("/proc/sys")  # where not even root makes a folder


def block_studies(state: Path) -> None:
    state.mkdir()
    (state / "studies").write_text("not a folder")


def forbid_writing(state: Path) -> None:
    state.mkdir(mode=0o555)


@pytest.mark.parametrize(
    "spoil",
    [
        make_file,
        link_to_proc,
        block_studies,
        pytest.param(
            forbid_writing,
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere"),
        ),
    ],
)
def test_state_that_cannot_be_kept(spoil: Callable[[Path], None], here: Path) -> None:
    spoil(here / "mlruns")
    said = refusal(here, *TINY)
    assert f"the search keeps its state in {(here / 'mlruns').resolve()}" in said
    assert "must be folders it can write to with space left: mend that" in said


# ---- tracking


@contextmanager
def other_server() -> Iterator[int]:
    """Answers, but is no tracking server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - inherited name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=functools.partial(server.serve_forever, 0.05))
        thread.start()
        try:
            yield int(server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def test_server_that_tracks_nothing(here: Path) -> None:
    with other_server() as port:
        said = refusal(
            here, *TINY, f"tracking.uri=http://me:secret@127.0.0.1:{port}", "tracking.timeout_s=1"
        )
    assert f"tracking.uri='http://me:***@127.0.0.1:{port}': cannot be used" in said
    assert "404" in said
    assert "secret" not in said
    assert "; mend it, or leave tracking.uri=null for mlruns/mlflow.db" in said
    assert_nothing_begun(here)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("sqlite:////proc/none/x.db", "No such file or directory: '/proc/none'"),
        ("sqlite:////proc/self/x.db", "the file cannot be opened"),
        ("mssql://host/x", "its driver is not installed: No module named 'pyodbc'"),
    ],
)
def test_database(uri: str, says: str, here: Path, at: Callable[..., str]) -> None:
    said = at(here, *TINY, f"tracking.uri={uri}")
    assert f"tracking.uri='{uri}': cannot be used (" in said
    assert says in said
    assert_nothing_begun(here)


def test_own_database_is_damaged(here: Path) -> None:
    (here / "mlruns").mkdir()
    (here / "mlruns" / "mlflow.db").write_bytes(b"rubbish" * 1000)
    said = refusal(here, *TINY)
    assert "mlruns/mlflow.db': cannot be used (the file is no database); move the file away" in said
    assert not list((here / "mlruns").glob("studies/*.journal"))


# ---- a study that is there already


def test_study_begun_with_other_settings(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(raw: Any, _: str) -> int:
        config = parse(raw, SearchConfig)
        store = Store(cli.STATE / "store")
        bench, space = make_bench(config, store, InlineEngine(store, lambda step: None))
        with Journal(cli.STATE / "studies", config.study.name) as journal:
            names, settings = config.objective.names, settings_of(config, bench, space)
            study = Study(journal, config.study, space, names, settings)
            next(trials_of(study, lab(), FakeEngine()))
        return 0

    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(here)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert cli.main(begin, [*TINY, "study.name=pets"]) == 0, capsys.readouterr().err
    journal = here / "mlruns" / "studies" / "pets.journal"
    before = journal.read_bytes()
    said = refusal(here, *TINY, "study.name=pets", "train.epochs=7")
    assert "train.epochs=7.0: the study pets was begun with 1.5; give that, or start anot" in said
    given = (*TINY, "study.name=pets", "model.width=4", "model.checkpoint=fits.safetensors")
    assert "model.checkpoint=" in refusal(here, *given)
    assert journal.read_bytes() == before
    kept = (here / "mlruns" / "store").rglob("*.safetensors")
    assert [path.stat().st_size for path in kept] == []
    assert not (here / "mlruns" / "mlflow.db").exists()


def test_study_is_being_searched(here: Path) -> None:
    with Journal(here / "mlruns" / "studies", "pets"):
        said = refusal(here, *TINY, "study.name=pets")
    assert f"study.name=pets is being searched by process {os.getpid()}; wait for it, stop" in said
    assert [path.name for path in (here / "mlruns").rglob("*")] == ["studies"]
