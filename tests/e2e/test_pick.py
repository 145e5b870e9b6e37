"""Picking over the real command line: from the front to a model that another machine can run."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from tests import commands
from tests.commands import expect_success
from tests.e2e.searching import STUDY, copied
from tests.journals import journal, record_of

SERVER_S = 90


def pick(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return commands.run(folder, "search.pick", *overrides)


def ok(folder: Path, *overrides: str) -> str:
    return expect_success(pick(folder, *overrides))


def database(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}"


@pytest.fixture(scope="module")
def folder(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory like the finished one; what is picked is registered there alone."""
    return copied(finished[0], tmp_path_factory.mktemp("picked"))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    """The bundle of the most accurate point, which is the champion."""
    wanted = (f"study={STUDY}", "prefer=accuracy", "promote=true")
    printed = expect_success(commands.run_fresh(folder, "search.pick", *wanted))
    (path,) = re.findall(r"^Bundle: +(\S+) ", printed, re.MULTILINE)
    assert re.search(r"^Champion: +version 1 \(passed the gate\)$", printed, re.MULTILINE)
    return folder / str(path)


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """The Python of an environment that holds what a bundle asks for, and nothing else."""
    place = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    requirements = str(bundle / "requirements.txt")
    python = place / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", requirements], check=True, timeout=commands.TIMEOUT_S)
    return python


# ---- listing


def test_the_front_is_listed_and_points_are_named(folder: Path, finished: tuple[Path, str]) -> None:
    printed = ok(folder, f"study={STUDY}")
    for column in (
        "Accuracy",
        "Latency",
        "Speed-up",
        "p99",
        "CPU",
        "Size",
        "RAM",
        "Bits",
        "Pruned",
    ):
        assert column in printed
    numbers = re.findall(r"^ *(original|\d+)(?: [a-z])? +\d+\.\d\d %", printed, re.MULTILINE)
    searched = re.findall(r"^ *(original|\d+)(?: [a-z])? +\d+\.\d\d %", finished[1], re.MULTILINE)
    assert sorted(numbers) == sorted(searched)
    for name in ("fastest", "most_accurate", "smallest"):
        assert re.search(rf"^{name} +trial \d+", printed, re.MULTILINE)


def test_dry_run_writes_nothing(folder: Path) -> None:
    before = sorted(path for path in (folder / "mlruns").rglob("*") if "bundles" in path.parts)
    printed = ok(folder, f"study={STUDY}", "prefer=latency", "dry_run=true")
    assert re.match(r"trial \d+: ", printed)
    assert "Nothing was written" in printed
    after = sorted(path for path in (folder / "mlruns").rglob("*") if "bundles" in path.parts)
    assert after == before


# ---- the bundle


def test_the_bundle_runs_with_numpy_and_onnxruntime_alone(
    bundle: Path, bare_python: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(bundle, moved)
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 12:16] = 255
    Image.fromarray(digit).save(tmp_path / "one.png")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(bare_python), "-I", "-B", str(moved / "predict.py"), *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert subprocess.run([str(bare_python), "-c", "import PIL"], capture_output=True).returncode
    checked = run("--verify")
    assert (checked.returncode, checked.stderr) == (0, "")
    predicted = run(str(tmp_path / "one.png"))
    assert (predicted.returncode, predicted.stderr) == (0, "")
    shares = re.findall(r"^(\d) +(\d+\.\d\d) %$", predicted.stdout, re.MULTILINE)
    assert sorted(label for label, _ in shares) == list("0123456789")
    assert sum(float(share) for _, share in shares) == pytest.approx(100, abs=0.1)
    assert "median" in run("--bench").stdout
    (moved / "labels.json").write_text("[]")
    assert run("--verify").returncode == 1


def test_the_bundle_says_what_the_closing_round_found(folder: Path, bundle: Path) -> None:
    runtime = json.loads((bundle / "runtime.json").read_text())
    study = journal(folder, STUDY)
    number = int(bundle.name.removeprefix("trial-"))
    record = record_of(next(t for t in study if t.number == number))
    assert runtime["intra_op_num_threads"] == dict(record["point"]["deployment"])["threads"]
    card = (bundle / "MODEL_CARD.md").read_text()
    assert f"{100 * runtime['measured']['test_accuracy']:.2f} %" in card


def test_the_same_pick_again_changes_nothing(folder: Path, bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    number = bundle.name.removeprefix("trial-")
    printed = ok(folder, f"study={STUDY}", f"trial={number}")
    assert "there already" in printed
    assert "registered before" in printed
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    versions = MlflowClient(database(folder)).search_model_versions(f"name = '{STUDY}'")
    assert [v.tags["trial"] for v in versions].count(number) == 1
    other = folder / "mlruns" / "elsewhere"
    ok(folder, f"study={STUDY}", f"trial={number}", f"out={other}")
    assert {path.name: path.read_bytes() for path in other.iterdir()} == before


# ---- the registry


def test_the_registered_model_loads_and_answers(folder: Path, bundle: Path) -> None:
    mlflow.set_tracking_uri(database(folder))
    with np.load(bundle / "samples.npz") as samples:
        images, logits = samples["images"], samples["logits"]
    model = mlflow.pyfunc.load_model(f"models:/{STUDY}@champion")
    assert np.allclose(model.predict({"images": images})["logits"], logits, atol=1e-3)
    client = MlflowClient(database(folder))
    version = client.get_model_version_by_alias(STUDY, "champion")
    assert client.get_model_version_by_alias(STUDY, "candidate").version == version.version
    assert version.tags["promotion"] == "passed the gate"
    assert model.metadata.signature is not None
    assert model.metadata.saved_input_example_info is not None
    assert version.run_id is not None
    listed = {file.path for file in client.list_artifacts(version.run_id, "bundle")}
    assert "bundle/model.onnx" in listed


def test_a_worse_model_is_promoted_only_by_force(folder: Path, bundle: Path) -> None:
    trials = [record_of(trial) for trial in journal(folder, STUDY)]
    complete = [record for record in trials if record["outcome"] == "complete"]
    worst = min(complete, key=lambda record: record["figures"]["val_accuracy"])
    number = str(worst["number"])
    assert bundle.name != f"trial-{number}"
    refused = pick(folder, f"study={STUDY}", f"trial={number}", "promote=true")
    assert refused.returncode == 3, refused
    assert "error: not promoted: it is " in refused.stderr
    assert "force=true" in refused.stderr
    client = MlflowClient(database(folder))
    assert int(client.get_model_version_by_alias(STUDY, "champion").version) == 1
    forced = ok(
        folder, f"study={STUDY}", f"trial={number}", "promote=true", "force=true",
        "reason='we need it'",
    )  # fmt: skip
    assert "follows version 1 (forced: we need it; against it: " in forced
    champion = client.get_model_version_by_alias(STUDY, "champion")
    assert champion.tags["trial"] == number
    client.set_registered_model_alias(STUDY, "champion", "1")


@pytest.fixture
def server(folder: Path, bundle: Path, tmp_path: Path) -> Iterator[str]:
    """Address of ``mlflow models serve`` with the bundle's model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "server.txt").open("w") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m",
                f"models:/{STUDY}/1", "--env-manager", "local", "-h", "127.0.0.1",
                "-p", str(port),
            ],
            env={
                **os.environ,
                "MLFLOW_TRACKING_URI": database(folder),
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdout=log,
            stderr=log,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait()


def test_mlflow_serves_the_model(server: str, bundle: Path, tmp_path: Path) -> None:
    with np.load(bundle / "samples.npz") as samples:
        images, logits = samples["images"], samples["logits"]
    body = json.dumps({"inputs": {"images": images.tolist()}}).encode()
    request = urllib.request.Request(
        f"{server}/invocations", body, {"Content-Type": "application/json"}
    )
    deadline = time.monotonic() + SERVER_S
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                answer: Any = json.load(response)
            break
        except OSError:
            assert time.monotonic() < deadline, (tmp_path / "server.txt").read_text()
            time.sleep(0.5)
    assert np.allclose(answer["predictions"]["logits"], logits, atol=1e-3)


# ---- what cannot be picked


@pytest.mark.parametrize(
    ("overrides", "status", "message"),
    [
        ([], 2, f"study is not given; add study=...: there are {STUDY}"),
        (["study=other"], 2, f"study=other: there is no such study; there are {STUDY}"),
        (["study=../x"], 2, "letters, digits, dots"),
        ([f"study={STUDY}", "trial=99"], 2, "trial=99: there is no such trial; those"),
        ([f"study={STUDY}", "max_latency=1"], 2, "did you mean max_latency_ms?"),
        ([f"study={STUDY}", "max_latency_ms=-1"], 2, "greater than 0"),
        ([f"study={STUDY}", "min_accuracy=90"], 2, "less than or equal to 1"),
        ([f"study={STUDY}", "prefer=speed"], 2, "'accuracy', 'latency', 'size' or 'knee'"),
        ([f"study={STUDY}", "promote=true"], 2, "promote=true: no point is picked"),
        ([f"study={STUDY}", "trial=0", "prefer=size"], 2, "leave one out"),
        ([f"study={STUDY}", "trial=0", "promote=true", "force=true"], 2, "reason='...'"),
        ([f"study={STUDY}", "max_latency_ms=1e-6"], 3, "max_latency_ms binds: "),
        ([f"study={STUDY}", "trial=0", "max_size_bytes=1"], 3, "max_size_bytes binds"),
        ([f"study={STUDY}", "trial=0", "out=mlruns"], 2, "which is no part of a bundle"),
        (
            [f"study={STUDY}", "trial=0", "tracking.uri=sqlite:///empty.db"],
            2,
            "there is no such database; give the one that the study was tracked in",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, overrides: list[str], status: int, message: str
) -> None:
    result = pick(folder, *overrides)
    assert result.returncode == status, result
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (folder / "empty.db").exists()


@pytest.mark.parametrize("program", ["search.pick", "search.explain"])
def test_a_damaged_model_is_neither_shipped_nor_explained(
    folder: Path, tmp_path: Path, program: str
) -> None:
    shutil.copytree(folder / "mlruns", tmp_path / "mlruns")
    for path in (tmp_path / "mlruns" / "store" / "files").rglob("*.onnx"):
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = commands.run(tmp_path, program, f"study={STUDY}", "trial=0")
    assert result.returncode == 2, result
    assert re.search(r"^error: trial.0: its model \S+\.onnx is damaged; ", result.stderr)
    assert result.stderr.count("\n") == 1


def test_help_explains_every_key(folder: Path) -> None:
    printed = expect_success(commands.run_fresh(folder, "search.pick", "--help"))
    keys = re.findall(r"^(\w+): ", printed, re.MULTILINE)
    assert {"study", "trial", "prefer", "max_latency_ms", "out", "promote"} <= set(keys)
    for line in printed.splitlines():
        if re.match(r"^[a-z]\w+: \S", line):
            assert "  # " in line, line
