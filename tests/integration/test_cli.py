"""What the command line prints, what it refuses, and how it ends."""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.cli import command as cli
from search.errors import ConfigError, DeviceLost, SearchError, StageFailed, StorageLost
from search.run import main
from tests import commands

HEAVY = {"torch", "mlflow", "optuna", "onnx", "onnxruntime", "sklearn", "matplotlib", "numpy"}
OPTIONS = [
    (group, path.stem)
    for group in sorted(path.name for path in cli.CONF.iterdir() if path.is_dir())
    for path in sorted((cli.CONF / group).glob("*.yaml"))
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in an empty folder, as a process of its own would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    return tmp_path


def compose(*arguments: str) -> Any:
    """Returns what a command line composes."""
    seen: list[Any] = []

    def keep(raw: Any, settings: str) -> int:
        seen.append(raw)
        return 0

    assert cli.main(keep, arguments) == 0
    return seen[0]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


# ---- what is printed


def keys_of(node: yaml.Node | None, depth: int = 0) -> Iterator[tuple[str, int, int]]:
    """Yields name, depth and line of every key."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key.value, depth, key.start_mark.line
            yield from keys_of(value, depth + 1)


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_key_is_explained(
    group: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(lambda raw, settings: 1, [f"{group}={option}", "--cfg", "job"]) == 0
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    bare = [
        lines[line]
        for _, depth, line in keys_of(yaml.compose(printed))
        if depth > 0 and "  # " not in lines[line]
    ]
    assert bare == []
    assert max(len(line) for line in lines) <= 160


def test_comments_are_those_of_the_chosen_option(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(lambda raw, settings: 1, ["model=ds_cnn", "sampler=gp", "--cfg", "job"])
    printed = capsys.readouterr().out
    assert "keyword-spotting network" in printed
    assert "slow beyond 200" in printed
    assert "conv 3x3" not in printed


def test_what_is_printed_is_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(lambda raw, settings: 1, ["--cfg", "job", "--resolve"])
    assert yaml.safe_load(capsys.readouterr().out) == compose()


def test_flags_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["study.seed=7", "--cfg", "job", "study.name=x"]
    assert cli.main(lambda raw, settings: 1, given) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["study"]["seed"], shown["study"]["name"]) == (7, "x")


def test_help_is_quick(elsewhere: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = run(elsewhere, "-m", "search.run", "--help").stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time, because other work on the machine is not its fault.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    for expected in ("python -m search.run experiment=smoke", "model: cnn, custom", "n_trials: 32"):
        assert expected in printed
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--cfg", "job"], ["--info", "defaults-tree"], ["study.n_trials=-1"]],
)
def test_nothing_heavy_is_imported(arguments: list[str], elsewhere: Path) -> None:
    script = (
        "import sys\nfrom search import run\n"
        f"run.main({arguments!r})\nprint('imported', *sys.modules, file=sys.stderr)"
    )
    said = run(elsewhere, "-c", script).stderr
    imported = said.splitlines()[-1].split()
    assert "search.cli.command" in imported
    assert set(imported) & HEAVY == set()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cfg", "job"], "  n_trials: 32 "),
        (["--cfg", "job", "experiment=smoke"], "  n_trials: 5 "),
        (["--info", "defaults-tree"], "model: cnn"),
        (["--help", "model=custom"], "  factory: ???"),
    ],
)
def test_looking_leaves_nothing_behind(
    arguments: list[str], expected: str, elsewhere: Path
) -> None:
    result = run(elsewhere, "-m", "search.run", *arguments)
    assert expected in result.stdout
    assert result.stderr == ""
    assert list(elsewhere.iterdir()) == []


def test_composing_makes_nothing(elsewhere: Path) -> None:
    compose()
    assert list(elsewhere.iterdir()) == []


# ---- what overrides do


def test_a_new_key_needs_no_plus() -> None:
    raw = compose("model=custom", "model.factory=a:b", "model.arguments.depth=3")
    assert raw["model"]["arguments"] == {"depth": 3}
    assert compose("model=custom", "model.factory=a:b", "+model.arguments.x=1")["model"][
        "arguments"
    ]


@pytest.mark.parametrize("path", ["~/some/where", "~", "~other/with space"])
def test_a_home_folder_needs_no_quotes(path: str) -> None:
    assert compose("data=image_folder", f"data.root={path}")["data"]["root"] == path


def test_a_range_becomes_a_list() -> None:
    raw = compose("space.threads=[1,2]", "space.prune_ratio=0.5", "space.bits=[8]")
    assert raw["space"]["threads"] == [1, 2]
    assert raw["space"]["prune_ratio"] == 0.5
    assert raw["space"]["bits"] == [8]
    assert raw["space"]["distill_temperature"] == {"low": 1.0, "high": 10.0}


def test_a_list_for_a_range_may_come_beside_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space.threads=[1,2]", "--cfg", "job"]) == 0
    assert "  threads:" in capsys.readouterr().out


def test_one_end_of_a_range() -> None:
    assert compose("space.threads.high=2")["space"]["threads"] == {"low": 1, "high": 2}


def test_several_jobs(elsewhere: Path) -> None:
    seen: list[int] = []

    def keep(raw: Any, settings: str) -> int:
        seen.append(raw["study"]["n_trials"])
        return seen[-1]

    assert cli.main(keep, ["-m", "study.n_trials=1,2"]) == 2
    assert seen == [1, 2]
    assert list(elsewhere.iterdir()) == []


def test_no_password_is_left_behind_by_several_jobs(elsewhere: Path) -> None:
    given = ["storage=postgres", "storage.url=postgresql://me:hunter2@h/db"]
    assert cli.main(lambda raw, settings: 0, ["-m", "study.seed=1,2", *given]) == 0
    left = [path for path in elsewhere.rglob("*") if path.is_file()]
    assert [path for path in left if b"hunter2" in path.read_bytes()] == []


def test_settings_are_the_configuration_resolved() -> None:
    def check(raw: Any, settings: str) -> int:
        assert yaml.safe_load(settings) == raw
        assert raw["study"]["name"] == "digits-resnet8-w8"
        return 0

    assert cli.main(check, ["data=digits", "model=resnet8", "model.width=8"]) == 0


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model=vgg"], "model=vgg: no such choice; give one of cnn, custom, ds_cnn, resnet8"),
        (["model=resnet"], "model=resnet: no such choice; give one of cnn, custom, ds_cnn, resnet8 "
         "(did you mean resnet8?)"),
        (["model=null"], "model=null: no such choice; give one of cnn, custom, ds_cnn, resnet8"),
        (["space=3"], "space=3: no such choice; give one of default"),
        (["foo=3"], "foo=3: there is no such key; there are data, device, engine, experiment, "
         "finalists, model, objective, policy, sampler, space, storage, study, tracking, train"),
        (["modell=cnn"], "modell=cnn: there is no such key (did you mean model?); there are "),
        (["model/x=3"], "model/x=3: there is no such key"),
        (["hydra.foo=3"], "hydra.foo=3: there is no such key"),
        (["~study.foo"], "~study.foo: Could not delete from config. 'study.foo' does not exist."),
        (["foo"], "foo: is not of the form key=value, such as study.n_trials=20"),
        (["=3"], "=3: is not of the form key=value, such as study.n_trials=20"),
        (["study.n_trials=[1"], "study.n_trials=[1: cannot be read; close brackets and quotes, and "
         "put a value with special characters in two pairs of quotes: study.n_trials='\"...\"'"),
        (["study.name=a/ü"], "study.name=a/ü: cannot be read; close brackets and quotes"),
        (["study.name=${oops"], "study.name=${oops: cannot be read; close brackets and quotes"),
        (["space.bits=32,8"], "space.bits=32,8: is several values; for a list give "
         "space.bits=[32,8]"),
        (["study.name=${data.nam}"], "study.name refers to data.nam, which does not exist"),
        (["~model.width"], "model.title refers to width, which does not exist"),
        (["data=image_folder", "model=custom"], "data.root is not given; add data.root=... (folder "
         "that holds train/ and test/); model.factory is not given; add model.factory=... "
         "(package.module:function that returns the torch.nn.Module)"),
        (["--foo"], "unrecognized arguments: --foo; --help shows what there is"),
        (["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs'"),
    ],
)  # fmt: skip
def test_refusal(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(lambda raw, settings: 0, arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: {said}")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_printed_configurations_are_checked(
    elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--cfg", "job", "model.wdith=3"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: model.wdith=3: there is no such key (did you mean ")
    assert printed.out == ""
    assert list(elsewhere.iterdir()) == []
    assert main(["--cfg", "job", "data=image_folder"]) == 0  # which cannot be checked yet
    assert "  root: ???" in capsys.readouterr().out


def test_a_value_may_end_as_secrets_are_called(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tracking.uri=file:///srv/token"]) == 2
    assert capsys.readouterr().err.startswith("error: tracking.uri='file:///srv/token': input")


# ---- how it ends


@pytest.mark.parametrize("module", ["run", "pick", "sync", "explain", "device", "ui"])
def test_a_working_directory_that_is_gone(module: str, elsewhere: Path) -> None:
    folder = elsewhere / "gone"
    folder.mkdir()
    script = f'rmdir "$PWD" && exec "{sys.executable}" -m search.{module}'
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=folder,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the working directory cannot be used (No such file or directory); cd to one that "
        "exists\n"
    )


def test_too_little_address_space(elsewhere: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search.run", "data=digits"],
        cwd=elsewhere,
        env=commands.environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a process may have 1.0 GB of address space here, and ")
    assert done.stderr.count("\n") == 1
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_no_memory(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(raw: Any, settings: str) -> int:
        raise error

    assert cli.main(fail, []) == 2
    assert capsys.readouterr().err.startswith("error: there is not enough memory (")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("a=1: wrong"), 2, "error: a=1: wrong\n"),
        (ConfigError("two\n  lines"), 2, "error: two lines\n"),
        (StageFailed("teacher", "no luck"), 1, "error: teacher: no luck\n"),
        (SearchError("no luck"), 1, "error: no luck\n"),
        (DeviceLost("gone"), 1, "error: gone; the same command goes on from here\n"),
        (StorageLost("gone"), 1, "error: gone; the same command goes on from here\n"),
        (KeyboardInterrupt(), 130, "error: interrupted; the same command goes on from here\n"),
    ],
)
def test_exit_status(
    error: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(raw: Any, settings: str) -> int:
        raise error

    assert cli.main(fail, []) == status
    assert capsys.readouterr().err == said


def test_state_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(raw: Any, settings: str) -> int:
        raise OSError(28, "No space left on device")

    assert cli.main(fail, []) == 2
    assert capsys.readouterr().err == (
        "error: No space left on device; the search keeps its state in "
        f"{Path('mlruns').resolve()} and what it needs for a moment in {tempfile.gettempdir()}, "
        "which must be folders it can write to with space left: mend that, and the same command "
        "goes on from here\n"
    )


def test_a_machine_that_shuts_down_ends_a_search_as_ctrl_c_does() -> None:
    wait = "import time; print('ready', flush=True); time.sleep(60)"
    script = f"""
import sys
from search.cli import command as cli
def job(raw, settings): {wait}
sys.exit(cli.main(job, []))
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said == "error: interrupted; the same command goes on from here\n"


def test_an_error_of_the_program_keeps_its_traceback() -> None:
    def fail(raw: Any, settings: str) -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cli.main(fail, [])


def test_the_job_decides_the_exit_status() -> None:
    assert cli.main(lambda raw, settings: 7, []) == 7
