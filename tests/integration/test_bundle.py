"""Bundles are whole or absent, the same for the same pick, and tell of tampering."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from search.bundle import Facts, compose, predict, write
from search.bundle.card import write_card
from search.bundle.predict import FILES, SUMS
from search.errors import ConfigError, SearchError
from search.front.candidates import offer
from tests.deployables import make_deployable
from tests.fakes import file, lab
from tests.plants import plant

IMAGES = np.random.default_rng(0).random((4, 1, 28, 28), dtype=np.float32)
PRIVATE = "/home/secret"
CONFIGURATION = yaml.safe_dump(
    {
        "model": {
            "name": "custom",
            "factory": "nets:small",
            "arguments": {"token": PRIVATE},
            "checkpoint": f"{PRIVATE}/weights.pt",
        },
        "data": {
            "name": "image_folder",
            "root": PRIVATE,
            "channels": 1,
            "mean": None,
            "memory_limit_bytes": 9,
        },
        "finalists": {"count": 12, "epochs": 1.5},
        "tracking": {"uri": f"http://host{PRIVATE}"},
    }
)


def linear_model(scale: float = 1.0) -> bytes:
    """Two logits that are sums over the upper and the lower half of an image."""
    weights = np.zeros((784, 2), np.float32)
    weights[:392, 0] = weights[392:, 1] = scale
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "halves",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(weights, "weights")],
    )
    opset = [helper.make_opsetid("", 17)]
    content: bytes = helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    return content


def facts(study: str = "digits-cnn", **changes: Any) -> Facts:
    record = replace(
        plant(1, val_accuracy=0.9, latency_ms=0.5), deployable=make_deployable(file("m"), 32, ())
    )
    first = replace(plant(0, val_accuracy=0.95, latency_ms=1.0), deployable=record.deployable)
    offered = offer([first, record], None, ("accuracy", "latency"), 100)
    return Facts(
        study=study,
        configuration=CONFIGURATION,
        lab=replace(lab(), **changes),
        record=record,
        candidate=offered.find(1),
        original=offered.original,
    )


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    return compose(facts(), linear_model(), IMAGES)


@pytest.fixture(scope="module")
def whole(contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundles") / "trial-1"
    assert write(target, contents)
    return target


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "bundles" / "trial-1"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-B", "predict.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


# ---- writing


def test_a_bundle_verifies_and_is_complete(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {*FILES, SUMS}
    answer = run(bundle, "--verify")
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "verified: 7 files are whole" in answer.stdout
    # The sums are in the form that sha256sum reads.
    sums = subprocess.run(["sha256sum", "-c", SUMS], cwd=bundle, capture_output=True, check=False)
    assert sums.returncode == 0


def test_the_same_pick_gives_the_same_bytes(bundle: Path, contents: dict[str, bytes]) -> None:
    time.sleep(1.1)  # archives keep seconds
    again = compose(facts(), linear_model(), IMAGES)
    assert again == contents
    assert not write(bundle, again)


def test_a_bundle_that_was_damaged_is_written_anew(
    bundle: Path, contents: dict[str, bytes]
) -> None:
    (bundle / "model.onnx").write_bytes(b"")
    assert write(bundle, contents)
    assert run(bundle, "--verify").returncode == 0


def test_another_pick_replaces_a_bundle(bundle: Path) -> None:
    other = compose(facts(), linear_model(2.0), IMAGES)
    assert write(bundle, other)
    assert (bundle / "model.onnx").read_bytes() == other["model.onnx"]


def test_a_bundle_that_was_tampered_with_is_not_run(
    bundle: Path, contents: dict[str, bytes], tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    (bundle / "predict.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert write(bundle, contents)
    assert not ran.exists()
    assert (bundle / "predict.py").read_bytes() == contents["predict.py"]


def test_files_that_are_only_called_like_a_bundles_are_left_alone(
    tmp_path: Path, contents: dict[str, bytes]
) -> None:
    mine = {"requirements.txt": "flask\n", "predict.py": "print()\n"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
    for sums in (None, "", f"{'0' * 64}  requirements.txt\n{'0' * 64}  predict.py\n"):
        if sums is not None:
            mine[SUMS] = sums
            (tmp_path / SUMS).write_text(sums)
        with pytest.raises(ConfigError, match=r"holds files, but no whole bundle; give a folder"):
            write(tmp_path, contents)
        assert {path.name: path.read_text() for path in tmp_path.iterdir()} == mine


def test_a_folder_called_like_a_file_of_a_bundle_is_left_alone(
    bundle: Path, contents: dict[str, bytes]
) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(ConfigError, match=r"holds model\.onnx, which is no part of a bundle"):
        write(bundle, contents)


@pytest.mark.parametrize("stranger", ["notes.txt", ".git"])
def test_a_folder_of_somebody_elses_is_left_alone(
    tmp_path: Path, contents: dict[str, bytes], stranger: str
) -> None:
    (tmp_path / stranger).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds {stranger}, which is no part of a bundle"):
        write(tmp_path, contents)
    assert [path.name for path in tmp_path.iterdir()] == [stranger]


def test_a_model_that_does_not_answer_as_expected_is_not_kept(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    wrong = {**contents, "model.onnx": linear_model(2.0)}
    with pytest.raises(SearchError, match=r"does not verify.*answers differ by 1 of the largest"):
        write(tmp_path / "b", wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def fill(_: int) -> None:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("search.bundle.writing.os.fsync", fill)
    with pytest.raises(ConfigError, match=r"^out=\S+/b: cannot be written \(No space left"):
        write(tmp_path / "b", contents)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["file", "file/b", "link", "loop", "/proc/b"])
def test_a_place_that_is_no_folder_is_refused(
    contents: dict[str, bytes], tmp_path: Path, target: str
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=rf"^out=\S*{target}: \S.*; give ") as caught:
        write(tmp_path / target, contents)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_is_followed(contents: dict[str, bytes], tmp_path: Path, exists: bool) -> None:
    there, link = tmp_path / "there", tmp_path / "link"
    link.symlink_to("there")
    if exists:
        there.mkdir()
    assert write(link, contents)
    assert link.is_symlink()
    assert {path.name for path in there.iterdir()} == {*FILES, SUMS}
    (there / "model.onnx").write_bytes(b"")
    assert write(link, contents)


def test_a_name_with_brackets_is_a_name(contents: dict[str, bytes], tmp_path: Path) -> None:
    left = tmp_path / ".b[1].bundle-part-x"
    left.mkdir()
    assert write(tmp_path / "b[1]", contents)
    assert not left.exists()


def test_a_bundle_that_takes_too_long_to_verify_is_not_kept(
    contents: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.bundle.writing.VERIFY_TIMEOUT_S", 0.01)
    with pytest.raises(
        SearchError, match=r"took longer than 0\.01 s to verify itself.*pick again$"
    ):
        write(tmp_path / "b", contents)
    assert list(tmp_path.iterdir()) == []


def test_of_two_writers_one_writes_and_the_other_finds_it(
    contents: dict[str, bytes], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(2) as both:
        found = list(both.map(lambda _: write(tmp_path / "b", contents), range(2)))
    assert sorted(found) == [False, True]


def _contents_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_writer_that_is_killed_while_it_replaces_loses_neither_bundle(
    whole: Path,
    contents: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = tmp_path / "parts"
    other = compose(facts(study="other"), linear_model(), IMAGES)
    write(parts, other)
    bundles = [_contents_of(whole), _contents_of(parts)]
    # Each child dies before the n-th change that it makes to the disk, the last before none.
    program = """
import os, shutil, signal, sys
from pathlib import Path
from search.bundle import writing
from search.bundle.predict import SUMS
whole, parts, outs = map(Path, sys.argv[1:])
contents = {p.name: p.read_bytes() for p in parts.iterdir() if p.name != SUMS}
def die(event, _):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "shutil.rmtree"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
writing._faults = lambda _: ""
number, status = 0, -signal.SIGKILL
while status == -signal.SIGKILL:
    number += 1
    target = outs / f"out-{number}" / "b"
    shutil.copytree(whole, target)
    child = os.fork()
    if not child:
        left = number
        sys.addaudithook(die)
        writing.write(target, contents)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(number)
sys.exit(status)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(whole), str(parts), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    states, number = [], int(done.stdout)
    for target in (tmp_path / f"out-{n}" / "b" for n in range(1, number + 1)):
        states.append(target.exists())
        assert not target.exists() or _contents_of(target) in bundles
        # Even where nothing better is written, the one or the other is there again.
        monkeypatch.setattr("search.bundle.writing._faults", lambda _: "it is wrong")
        with pytest.raises(SearchError, match="it is wrong"):
            write(target, {**contents, "labels.json": b"{}"})
        assert _contents_of(target) in bundles
        monkeypatch.setattr("search.bundle.writing._faults", lambda _: "")
        write(target, other)
        assert _contents_of(target) == bundles[1]
        assert [path.name for path in target.parent.iterdir()] == ["b"]
    assert states.count(False) == 1  # it was killed between the two renames too
    assert number > 2 * len(FILES) - 2  # and while it deleted the old bundle


def test_an_old_bundle_waits_while_somebody_elses_folder_is_in_its_place(
    bundle: Path, contents: dict[str, bytes]
) -> None:
    bundle.rename(bundle.with_name(f".{bundle.name}.bundle-old"))
    bundle.mkdir()
    (bundle / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds notes\.txt"):
        write(bundle, contents)
    (bundle / "notes.txt").unlink()
    bundle.rmdir()
    assert not write(bundle, contents)


def test_a_bundle_that_cannot_be_moved_in_leaves_the_old_one(
    bundle: Path, contents: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = _contents_of(bundle), Path.rename

    def fail(path: Path, to: Path) -> Path:
        if "part" in path.name:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    monkeypatch.setattr("search.bundle.writing._faults", lambda _: "")
    with pytest.raises(ConfigError, match="Input/output error"):
        write(bundle, {**contents, "labels.json": b"[]"})
    assert _contents_of(bundle) == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.1, 0.3])
def test_a_killed_writer_leaves_no_half_bundle(
    contents: dict[str, bytes], tmp_path: Path, delay_s: float
) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name, content in contents.items():
        (parts / name).write_bytes(content)
    target = tmp_path / "out" / "b"
    program = (
        "import sys; from pathlib import Path; from search.bundle import write\n"
        "parts, target = map(Path, sys.argv[1:])\n"
        "contents = {p.name: p.read_bytes() for p in parts.iterdir()}\n"
        "print('go', flush=True); write(target, contents)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(parts), str(target)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if target.exists():
        assert run(target, "--verify").returncode == 0
    write(target, contents)
    assert [path.name for path in target.parent.iterdir()] == ["b"]  # what was left is cleared


# ---- tampering


def _renew_sums(bundle: Path) -> None:
    lines = [f"{hashlib.sha256((bundle / n).read_bytes()).hexdigest()}  {n}\n" for n in FILES]
    (bundle / SUMS).write_text("".join(lines))


@pytest.mark.parametrize("name", [n for n in FILES if n != "predict.py"])
@pytest.mark.parametrize("how", ["changed", "cut", "missing", "emptied"])
def test_every_file_is_guarded(bundle: Path, name: str, how: str) -> None:
    path = bundle / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        other = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"changed": other, "cut": content[:middle], "emptied": b""}[how])
    answer = run(bundle, "--verify")
    assert answer.returncode == 1
    wanted = "is missing" if how == "missing" else "was changed"
    assert answer.stderr == f"error: {name}: {wanted}\n"


def test_the_program_itself_is_guarded(bundle: Path) -> None:
    with (bundle / "predict.py").open("a") as stream:
        stream.write("# more\n")
    answer = run(bundle, "--verify")
    assert (answer.returncode, answer.stderr) == (1, "error: predict.py: was changed\n")


@pytest.mark.parametrize(
    ("sums", "fault"),
    [
        (None, "is missing or damaged; this is no whole bundle"),
        (b"", "is not listed in SHA256SUMS"),
        (b"\xff\xfe", "is missing or damaged"),
        (b"no sums at all", "is missing or damaged"),
    ],
)
def test_the_sums_are_guarded(bundle: Path, sums: bytes | None, fault: str) -> None:
    if sums is None:
        (bundle / SUMS).unlink()
    else:
        (bundle / SUMS).write_bytes(sums)
    answer = run(bundle, "--verify")
    assert answer.returncode == 1
    assert fault in answer.stderr


def test_a_sum_too_few_or_too_many_is_told(bundle: Path) -> None:
    whole = (bundle / SUMS).read_text()
    (bundle / SUMS).write_text("".join(whole.splitlines(keepends=True)[:-1]))
    assert "samples.npz: is not listed in SHA256SUMS" in run(bundle, "--verify").stderr
    (bundle / SUMS).write_text(f"{whole}{'0' * 64}  ../../etc/passwd\n")
    assert "../../etc/passwd: is listed in SHA256SUMS" in run(bundle, "--verify").stderr


def test_another_model_with_its_own_sums_is_found_by_its_answers(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(linear_model(1.5))
    _renew_sums(bundle)
    answer = run(bundle, "--verify")
    assert answer.returncode == 1
    assert "model.onnx: its answers differ by 0.5 of the largest" in answer.stderr


@pytest.mark.parametrize("name", ["numpy.py", "onnxruntime.py", "argparse.py", "__init__.py"])
def test_an_added_file_is_told_and_never_run(bundle: Path, tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    (bundle / name).write_text(f"open({str(ran)!r}, 'w')\n")
    (bundle / "__pycache__").mkdir()
    command = [sys.executable, str(bundle / "predict.py"), "--verify"]
    for isolation in ([], ["-I"]):
        answer = subprocess.run(
            [*command[:1], *isolation, *command[1:]],
            cwd=bundle,
            env={**os.environ, "PYTHONPATH": str(bundle)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert answer.stderr == f"error: {name}: is no part of this bundle\n"
        assert answer.returncode == 1
    assert not ran.exists()


def test_a_model_that_this_runtime_cannot_open_is_told(bundle: Path, tmp_path: Path) -> None:
    newer = onnx.load_from_string(linear_model())
    newer.opset_import[0].version = 999
    (bundle / "model.onnx").write_bytes(newer.SerializeToString())
    _renew_sums(bundle)
    np.save(tmp_path / "a.npy", np.zeros((28, 28), np.uint8))
    for argument, status in (("--verify", 1), ("--bench", 2), (str(tmp_path / "a.npy"), 2)):
        answer = run(bundle, argument)
        assert answer.returncode == status
        assert re.fullmatch(
            r"error: model\.onnx: onnxruntime \S+ cannot open it \(.*\); "
            r"pip install -r requirements\.txt\n",
            answer.stderr,
        )


def test_samples_with_a_pickle_are_not_opened(bundle: Path) -> None:
    stream = io.BytesIO()
    np.savez(stream, images=np.array([{}], dtype=object), logits=np.zeros(1))
    (bundle / "samples.npz").write_bytes(stream.getvalue())
    _renew_sums(bundle)
    answer = run(bundle, "--verify")
    assert answer.returncode == 1
    assert "allow_pickle=False" in answer.stderr
    assert answer.stderr.count("\n") == 1


# ---- what it says


def test_the_model_carries_its_facts(contents: dict[str, bytes]) -> None:
    model = onnx.load_from_string(contents["model.onnx"])
    properties = {p.key: p.value for p in model.metadata_props}
    assert properties["study"] == "digits-cnn"
    assert json.loads(properties["labels"]) == ["zero", "one"]
    assert json.loads(properties["measured"])["latency_ms"] == 0.5
    onnx.checker.check_model(model)


def test_the_runtime_is_as_measured() -> None:
    given = facts()
    point = given.candidate.point.replaced(threads=2)
    model = replace(given.candidate.deployable, options=(("some.entry", "1"),))
    candidate = replace(given.candidate, point=point, deployable=model)
    runtime = json.loads(
        compose(replace(given, candidate=candidate), linear_model(), IMAGES)["runtime.json"]
    )
    assert runtime["intra_op_num_threads"] == 2
    assert runtime["inter_op_num_threads"] == 1
    assert runtime["session_entries"] == {
        "session.intra_op.allow_spinning": "0",
        "session.set_denormal_as_zero": "1",
        "some.entry": "1",
    }
    assert runtime["providers"] == ["CPUExecutionProvider"]


def test_the_card_tells_figures_and_keeps_secrets(contents: dict[str, bytes]) -> None:
    card = contents["MODEL_CARD.md"].decode()
    assert card.startswith("# digits-cnn, trial 1\n")
    assert re.search(r"90\.00 % \[82\.56.94\.48\]", card)  # Wilson's interval of 90 out of 100
    assert "| The original |" in card
    assert "zero, one" in card
    assert PRIVATE not in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("\n```")[0])
    assert settings["model"] == {"name": "custom", "factory": "nets:small"}
    assert settings["data"] == {
        "name": "image_folder",
        "channels": 1,
        "mean": [0.5],  # the data's own, whether it was given or found
        "std": [0.25],
    }
    assert "finalists" not in settings  # a later run may have had others
    assert re.search(r"the point is `prune_ratio=[\d.]+, .*, threads=\d+`", card)


def test_a_checkpoint_is_named_by_its_digest() -> None:
    given = facts()
    bench = replace(given.lab.bench, checkpoint=file("weights", ".pt"))
    card = write_card(replace(given, lab=replace(given.lab, bench=bench)))
    assert card.count(file("weights").sha256) == 2  # in words, and among the settings
    assert PRIVATE not in card


def test_going_on_with_a_study_changes_no_earlier_pick() -> None:
    given = facts()
    later = yaml.safe_load(CONFIGURATION)
    later["data"] |= {"root": "/moved", "memory_limit_bytes": 8, "mean": [0.5]}
    later["finalists"] = {"count": 3, "epochs": 9.0}
    bench = replace(given.lab.bench, machine="another machine, torch 99")
    again = replace(
        given,
        configuration=yaml.safe_dump(later),
        lab=replace(given.lab, bench=bench),
    )
    assert write_card(again) == write_card(given)


def test_a_model_that_was_measured_poorly_says_so() -> None:
    given = facts()
    warning = "could not be measured within ±5 %"
    assert warning not in write_card(given)
    figures = replace(given.candidate.figures, quality="poor")
    assert warning in write_card(
        replace(given, candidate=replace(given.candidate, figures=figures))
    )


@pytest.mark.parametrize(
    ("changed", "weight", "taught"), [(False, 0.5, False), (True, 0.0, False), (True, 0.5, True)]
)
def test_only_who_learned_was_taught(changed: bool, weight: float, taught: bool) -> None:
    given = facts()
    record = replace(
        given.record,
        figures=replace(given.record.figures, is_changed=changed),
        point=given.record.point.replaced(distill_weight=weight),
    )
    card = write_card(replace(given, record=record))
    assert ("taught this model" in card) is taught


@pytest.mark.parametrize(("size", "batch"), [(1, "one image"), (8, "a batch of 8 images")])
def test_a_latency_is_that_of_a_batch(tmp_path: Path, size: int, batch: str) -> None:
    given = facts()
    measuring = replace(given.lab.bench.measuring, batch_size=size)
    bench = replace(given.lab.bench, measuring=measuring)
    parts = compose(replace(given, lab=replace(given.lab, bench=bench)), linear_model(), IMAGES)
    assert f"right, {batch} in 0.5" in parts["MODEL_CARD.md"].decode()
    write(tmp_path / "b", parts)
    assert run(tmp_path / "b", "--bench").stdout.startswith(f"each run: {batch}\n")


def test_names_in_the_card_are_text() -> None:
    hostile = "<script>alert(1)</script> [x](javascript:1) `a`\n# owned"
    given = facts()
    dataset = replace(given.lab.bench.data, labels=(hostile, "one"))
    bench = replace(given.lab.bench, data=dataset)
    settings = yaml.safe_dump({"model": {"title": "```\n# owned\n```"}})
    card = compose(
        replace(given, lab=replace(given.lab, bench=bench), configuration=settings),
        linear_model(),
        IMAGES,
    )["MODEL_CARD.md"].decode()
    assert "<script>" not in card
    assert not re.search(r"(?<!\\)\]\(javascript", card)
    assert [line for line in card.splitlines() if line.startswith("# ")] == [
        "# digits-cnn, trial 1"
    ]


# ---- predicting


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images")


def test_an_image_gives_the_probabilities_of_its_classes(bundle: Path, tmp_path: Path) -> None:
    pixels = np.zeros((28, 28), np.uint8)
    pixels[0, 0] = 255  # one logit is 1, the other 0
    Image.fromarray(pixels).save(tmp_path / "one.png")
    answer = run(bundle, str(tmp_path / "one.png"))
    assert (answer.returncode, answer.stderr) == (0, "")
    # exp(1) / (exp(1) + 1)
    assert answer.stdout == "zero   73.11 %\none    26.89 %\n"


@pytest.mark.parametrize("channels", [2, 4])
def test_images_of_other_channels_are_refused(tmp_path: Path, channels: int) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    with pytest.raises(predict.Refused, match=rf"takes {channels} channels.*; give a \.npy array"):
        predict.read_images(tmp_path / "i.png", (channels, 8, 8))
    np.save(tmp_path / "a.npy", np.zeros((channels, 8, 8), np.uint8))
    assert predict.read_images(tmp_path / "a.npy", (channels, 8, 8)).shape == (1, channels, 8, 8)


@pytest.mark.parametrize(
    "arguments", [("--verify", "--bench"), ("--verify", "a.png"), ("--bench", "a.png"), ()]
)
def test_one_thing_is_done_at_a_time(bundle: Path, arguments: tuple[str, ...]) -> None:
    answer = run(bundle, *arguments)
    assert (answer.returncode, answer.stdout) == (2, "")
    wanted = r"error: .*not allowed with" if arguments else r"error: one of .* is required"
    assert re.search(wanted, answer.stderr)


def test_an_image_too_large_to_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "i.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8)
    with pytest.raises(predict.Refused, match="is no image that can be read"):
        predict.read_images(tmp_path / "i.png", (1, 8, 8))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_give_the_same(bundle: Path, tmp_path: Path, dtype: Any) -> None:
    pixels = np.zeros((2, 1, 28, 28), dtype)
    pixels[0, 0, 0, 0] = 255 if dtype == np.uint8 else 1
    np.save(tmp_path / "a.npy", pixels)
    answer = run(bundle, str(tmp_path / "a.npy"))
    assert answer.stdout == (
        "image 0\nzero   73.11 %\none    26.89 %\nimage 1\nzero   50.00 %\none    50.00 %\n"
    )


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("none.png", None, "cannot be read"),
        ("text.png", b"hello", "is no image that can be read"),
        ("text.npy", b"hello", "is no array of numbers"),
        ("shape.npy", np.zeros((5, 5), np.uint8), r"has shape \[5, 5\], needs \[1, 28, 28\]"),
        ("range.npy", np.full((28, 28), 7.0), r"numbers must lie in 0\.\.1"),
        ("nan.npy", np.full((28, 28), np.nan), r"numbers must lie in 0\.\.1"),
        ("words.npy", np.array(["a"]), "holds <U1, needs numbers"),
        ("objects.npy", np.array([{}], dtype=object), "is no array of numbers"),
    ],
)
def test_bad_inputs_are_explained(
    bundle: Path, tmp_path: Path, name: str, content: Any, fault: str
) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    answer = run(bundle, str(tmp_path / name))
    assert answer.returncode == 2
    assert re.search(fault, answer.stderr)
    assert answer.stderr.count("\n") == 1


def test_bench_times_the_model_beside_what_was_measured(bundle: Path) -> None:
    answer = run(bundle, "--bench")
    assert answer.returncode == 0
    assert "here:     median " in answer.stdout
    assert "measured: 0.5 ms on local (a CPU)" in answer.stdout


def test_bench_ends_in_time_with_a_slow_model(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now_s, runs = 0.0, []

    def slow(_: object, images: Any) -> Any:
        nonlocal now_s
        now_s += 1.0
        runs.append(len(images))
        return images

    monkeypatch.setattr(predict, "HERE", bundle)
    monkeypatch.setattr(predict.Classifier.__init__, "__defaults__", (bundle,))
    monkeypatch.setattr(predict.Classifier, "logits", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: now_s)
    predict.bench()
    assert len(runs) < 10
    assert "median 1000 ms" in capsys.readouterr().out


@given(
    st.sampled_from(["L", "RGB", "RGBA", "LA", "P", "1"]),
    st.sampled_from([1, 3]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
def test_the_own_reader_agrees_with_pillow(
    image_folder: Path, mode: str, channels: int, height: int, width: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)
    path = image_folder / "i.png"
    image.save(path)
    with Image.open(path) as opened:
        wanted = np.array(opened.convert("L" if channels == 1 else "RGB"))
    got = predict.decode_png(path, path.read_bytes(), (channels, height, width))
    assert np.array_equal(got, wanted.reshape(height, width, channels))


@given(st.data())
def test_a_damaged_png_is_explained(image_folder: Path, data: st.DataObject) -> None:
    path = image_folder / "d.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(predict.Refused):
        predict.decode_png(path, bytes(content), (1, 8, 8))
