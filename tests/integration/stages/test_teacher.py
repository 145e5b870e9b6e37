"""The teacher: trained here, or loaded from a file that nobody vouches for."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from search import data
from search.errors import ConfigError, StageFailed
from search.networks import networks
from search.networks.checkpoints import load_checkpoint
from search.networks.training import KeptLogits
from search.records.network import Teacher
from tests.workbench import NETWORKS, Workbench

State = dict[str, Tensor]


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def reload(bench: Workbench, name: str, content: bytes, suffix: str) -> Teacher:
    step = bench.teach_step(name)
    return bench.do(replace(step, checkpoint=bench.store.put(content, suffix), epochs=99))


# ---- trained here


@pytest.mark.parametrize("name", NETWORKS)
def test_it_learns(bench: Workbench, name: str) -> None:
    assert bench.teacher(name).val_accuracy > 0.8


def test_the_seed_decides_the_weights(bench: Workbench) -> None:
    step = replace(bench.teach_step("cnn"), epochs=1)
    weights = {bench.do(replace(step, seed=seed)).network.weights for seed in (0, 1, 2)}
    assert len(weights) == 3


@pytest.mark.parametrize("name", ["cnn", "custom"])
def test_logits_are_the_network_s_on_the_training_images_in_order(
    bench: Workbench, name: str
) -> None:
    teacher = bench.teacher(name)
    assert teacher.logits.size_bytes == bench.data.sizes[0] * 10 * 2
    logits = KeptLogits(bench.store.path(teacher.logits), 10, torch.device("cpu"))
    assert len(logits) == bench.data.sizes[0]
    split = data.load(bench.data).train
    picks = np.array([0, 7, 500, len(split) - 1])
    pixels = torch.from_numpy(split.read(picks)).double() / 255
    normal = ((pixels - bench.data.mean[0]) / bench.data.std[0]).float()
    with torch.no_grad():
        wanted = networks.load(teacher.network, bench.store)(normal)
    torch.testing.assert_close(logits[torch.from_numpy(picks)], wanted, rtol=2e-3, atol=2e-3)


def test_accuracy_counts_right_answers(bench: Workbench) -> None:
    teacher = bench.teacher("cnn")
    split = data.load(bench.data).validation
    pixels = torch.from_numpy(split.read(np.arange(len(split)))).float() / 255
    with torch.no_grad():
        normal = (pixels - bench.data.mean[0]) / bench.data.std[0]
        answers = networks.load(teacher.network, bench.store)(normal).argmax(1).numpy()
    assert teacher.val_accuracy == (answers == split.labels).mean()


def test_a_diverging_training_names_the_setting(bench: Workbench) -> None:
    step = replace(bench.teach_step("cnn"), learning_rate=1e30, epochs=1)
    with pytest.raises(StageFailed) as caught:
        bench.do(step)
    assert "train.teacher_learning_rate" in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- loaded from a file


FORMS: dict[str, tuple[str, Callable[[State], bytes]]] = {
    "safetensors": (".safetensors", to_safetensors),
    "bare": (".pt", saved),
    "nested": (".pt", lambda state: saved({"state_dict": state, "epoch": 7, "best": 0.9})),
    "old format": (".pt", lambda state: saved(state, _use_new_zipfile_serialization=False)),
    "parameters": (
        ".pth",
        lambda state: saved({name: torch.nn.Parameter(value) for name, value in state.items()}),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_the_teacher_it_was(bench: Workbench, form: str) -> None:
    suffix, write = FORMS[form]
    teacher = bench.teacher("cnn")
    assert reload(bench, "cnn", write(bench.weights(teacher.network)), suffix) == teacher


def test_a_checkpoint_without_counters_is_enough(bench: Workbench) -> None:
    teacher = bench.teacher("ds_cnn")
    state = bench.weights(teacher.network)
    fewer = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
    assert 0 < len(fewer) < len(state)
    again = reload(bench, "ds_cnn", to_safetensors(fewer), ".safetensors")
    assert (again.val_accuracy, again.logits) == (teacher.val_accuracy, teacher.logits)


def test_half_precision_is_loaded_as_float(bench: Workbench) -> None:
    teacher = bench.teacher("cnn")
    half = {name: value.half() for name, value in bench.weights(teacher.network).items()}
    again = reload(bench, "cnn", saved(half), ".pt")
    assert {value.dtype for value in bench.weights(again.network).values()} == {torch.float32}
    assert again.val_accuracy == pytest.approx(teacher.val_accuracy, abs=0.01)


# ---- refused


PLANTED = "planted"


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return _leave, (PLANTED, "was here")


def _leave(name: str, text: str) -> None:
    Path(name).write_text(text)


def refused(bench: Workbench, content: bytes, suffix: str) -> str:
    with pytest.raises(ConfigError) as caught:
        reload(bench, "cnn", content, suffix)
    message = str(caught.value)
    assert message.startswith("model.checkpoint")
    assert "\n" not in message
    assert ";" in message  # what to do about it
    return message


@pytest.mark.parametrize(
    "write",
    [
        lambda evil: saved({"conv.weight": evil}),
        lambda evil: saved({"state_dict": {"conv.weight": torch.zeros(1)}, "extra": evil}),
        lambda evil: saved(evil, _use_new_zipfile_serialization=False),
        lambda evil: pickle.dumps({"conv.weight": evil}),
    ],
    ids=["state dict", "beside one", "old format", "bare pickle"],
)
def test_code_in_a_checkpoint_does_not_run(
    bench: Workbench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[object], bytes],
) -> None:
    monkeypatch.chdir(tmp_path)
    content = write(Intruder())
    message = refused(bench, content, ".pt")
    assert "cannot be read as weights" in message
    assert not Path(PLANTED).exists()
    # The plant is a real one: read the careless way, it does run.
    with contextlib.suppress(Exception):
        torch.load(io.BytesIO(content), weights_only=False)
    assert Path(PLANTED).read_text() == "was here"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"PK\x03\x04 broken", b"\x80\x02"])
def test_a_file_of_something_else_is_refused(bench: Workbench, content: bytes, suffix: str) -> None:
    assert "cannot be read as weights" in refused(bench, content, suffix)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_half_a_file_is_refused(bench: Workbench, suffix: str) -> None:
    state = bench.weights(bench.teacher("cnn").network)
    content = saved(state) if suffix == ".pt" else to_safetensors(state)
    refused(bench, content[: len(content) // 2], suffix)


@pytest.mark.parametrize(
    "value", [torch.zeros(3), [1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, 7], ids=repr
)
def test_a_file_without_a_state_dict_is_refused(bench: Workbench, value: object) -> None:
    assert "holds no state dict" in refused(bench, saved(value), ".pt")


def test_a_whole_module_is_refused(bench: Workbench) -> None:
    network = networks.load(bench.teacher("cnn").network, bench.store)
    message = refused(bench, saved(network), ".pt")
    assert "holds search._models.cnn.Cnn" in message
    assert "torch.save(network.state_dict()" in message


def test_a_checkpoint_of_another_network_is_refused(bench: Workbench) -> None:
    other = bench.weights(bench.teacher("resnet8").network)
    message = refused(bench, to_safetensors(other), ".safetensors")
    assert "conv.bias" in message
    assert "model.width" in message


def test_a_checkpoint_of_another_width_is_refused(bench: Workbench) -> None:
    torch.manual_seed(0)
    wider = networks.build(replace(bench.spec("cnn"), width=9)).state_dict()
    message = refused(bench, saved(wider), ".pt")
    assert "conv.weight" in message
    assert "[9, 1, 3, 3]" in message
    assert "[8, 1, 3, 3]" in message


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        (lambda state: state.pop("head.bias"), "head.bias"),
        (lambda state: state.update(extra=torch.zeros(2)), "extra"),
        (lambda state: state["head.bias"].fill_(float("nan")), "head.bias"),
        (lambda state: state.clear(), "no state dict"),
    ],
    ids=["too few", "too many", "not a number", "empty"],
)
def test_a_checkpoint_that_nearly_fits_is_refused(
    bench: Workbench, change: Callable[[State], object], needed: str
) -> None:
    state = bench.weights(bench.teacher("cnn").network)
    change(state)
    assert needed in refused(bench, saved(state), ".pt")


def test_a_refused_checkpoint_leaves_the_network_as_it_was(
    bench: Workbench, tmp_path: Path
) -> None:
    network = networks.load(bench.teacher("cnn").network, bench.store)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    state = {name: value + 1 for name, value in before.items()}
    state["head.bias"] = torch.zeros(11)
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"^model\.checkpoint='weights\.pt': .*head\.bias is \["):
        load_checkpoint(network, path, "model.checkpoint='weights.pt'")
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
