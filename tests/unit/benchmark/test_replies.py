"""Whatever a device answers becomes a checked answer or a one-line reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.devices.replies import ANSWERS, Denied, read_reply
from search.errors import StageFailed

PROCESSOR = {"arch": "x86_64", "cpu": "a CPU", "flags": ["avx2"], "cpus": [0, 1]}
DESCRIBED = {
    **PROCESSOR,
    "usable_cores": 2,
    "python": "3.11.2",
    "numpy": "2.4.6",
    "onnxruntime": "1.32.0",
}
OPENED = {
    "cold_start_ms": 5.0,
    "run_ms": 1.0,
    "warm": True,
    "clock": "processor",
    "options": {
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
        "execution_mode": "sequential",
        "graph_optimization_level": "all",
        "session_entries": {"session.set_denormal_as_zero": "1"},
    },
    "onnxruntime": "1.32.0",
    "model_sha256": "a" * 64,
    "baseline_rss_bytes": 500,
}
SINGLE = {
    "times_ms": [1.0, 1.5],
    "cpu_ms": 1.0,
    "energy": {"mj": None, "reason": "no counter"},
    "peak_rss_bytes": 2000,
}
ROUNDS = {
    "rounds": [[1.0, 2.0]] * 2,
    "disturbed": [False] * 2,
    "clock": "wall",
    "pieces": 1,
    "runs": [3, 2],
    "order": "ABBA",
}
KERNEL = {
    "name": "conv",
    "operator": "Conv",
    "provider": "CPUExecutionProvider",
    "microseconds": 2.0,
    "inputs": [{"float": [1, 1, 28, 28]}],
    "outputs": [],
}
HONEST: dict[str, dict[str, Any]] = {
    "hello": {"schema": 3, "pid": 77},
    "describe": DESCRIBED,
    "conditions": {**PROCESSOR, "stolen_ticks": 3, "throttled_us": 0},
    "lock": {"held": False, "holder": "process 5"},
    "start": {},
    "open": OPENED,
    "single": SINGLE,
    "throughput": {"images_per_s": 100.0},
    "rounds": ROUNDS,
    "operators": {"operators": {"Conv": 2}},
    "profile": {"kernels": [KERNEL]},
    "predict": {"classes": [3, 0], "onnxruntime": "1.2"},
    "close": {},
}


def request(kind: str) -> dict[str, Any]:
    return {"request": kind, "count": 2}


def read(kind: str, reply: Any) -> dict[str, Any]:
    return read_reply(json.dumps(reply).encode(), request(kind))


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_honest_answer_passes_as_it_is(kind: str) -> None:
    told = HONEST[kind]
    assert read(kind, {"ok": True, **told}) == told
    assert read(kind, {"ok": True, **told, "more": "than was asked"}) == told


NAN, HUGE = float("nan"), 10**400
LIES: list[tuple[str, dict[str, Any]]] = [
    ("hello", {"schema": "two"}),
    ("hello", {"pid": -1}),  # a signal to it would reach every process
    ("hello", {"pid": 1}),
    ("describe", {"usable_cores": 0}),
    ("describe", {"usable_cores": 10**9}),
    ("describe", {"usable_cores": -2}),
    ("describe", {"cpu": 5}),
    ("describe", {"flags": "avx2"}),
    ("describe", {"flags": ["f"] * 1000}),
    ("describe", {"onnxruntime": "1.0\nevil-package"}),  # a bundle's requirements.txt
    ("describe", {"onnxruntime": "1.0 --index-url=http://evil"}),
    ("describe", {"cpus": [-1]}),
    ("conditions", {"stolen_ticks": "many"}),
    ("conditions", {"throttled_us": -1}),
    ("conditions", {"throttled_us": HUGE}),
    ("lock", {"held": None}),
    ("open", {"run_ms": 0}),
    ("open", {"run_ms": -3.0}),
    ("open", {"run_ms": 1e300}),
    ("open", {"cold_start_ms": None}),
    ("open", {"options": []}),
    ("open", {"model_sha256": "../../x"}),
    ("open", {"baseline_rss_bytes": -5}),
    ("single", {"times_ms": []}),
    ("single", {"times_ms": [1.0, 0.0]}),
    ("single", {"times_ms": [1.0] * 3}),  # two were asked for
    ("single", {"times_ms": {"0": 1.0}}),
    ("single", {"energy": None}),
    ("single", {"energy": {"mj": -1}}),
    ("throughput", {"images_per_s": 0}),
    ("throughput", {"images_per_s": "fast"}),
    ("rounds", {"rounds": [[1.0]] * 2}),
    ("rounds", {"rounds": [[1.0, -2.0]] * 2}),
    ("rounds", {"rounds": [[1e-300, 1e300]] * 2}),
    ("rounds", {"rounds": [[1.0, 2.0]] * 4, "disturbed": [False] * 4}),
    ("rounds", {"disturbed": []}),
    ("rounds", {"rounds": [], "disturbed": []}),
    ("rounds", {"clock": "sundial"}),
    ("rounds", {"runs": [3]}),
    ("operators", {"operators": {"Conv": -1}}),
    ("operators", {"operators": [["Conv", 1]]}),
    ("profile", {"kernels": [{**KERNEL, "microseconds": -1}]}),
    ("profile", {"kernels": [{**KERNEL, "inputs": [{"float": ["a"]}]}]}),
    ("profile", {"kernels": 5}),
    ("predict", {"classes": [3]}),  # two were asked for
    ("predict", {"classes": [3, -1]}),
    ("predict", {"classes": [3, 0.5]}),
    ("predict", {"onnxruntime": "1.0 --index-url=http://evil"}),
]


@pytest.mark.parametrize(("kind", "lie"), LIES)
def test_a_lie_is_a_failure_in_one_line(kind: str, lie: dict[str, Any]) -> None:
    with pytest.raises(StageFailed, match=f"answer to '{kind}'") as caught:
        read(kind, {"ok": True, **HONEST[kind], **lie})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"null",
        b"[]",
        b"5",
        b'"ok"',
        b"{}",
        b'{"ok": 1}',
        b'{"ok": "yes"}',
        b'{"ok": true}',
        b'{"ok": true, "cold_start_ms": NaN}',
        b'{"ok": false}',
        b'{"ok": false, "error": 5, "kind": "x"}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"9" * 10_000,
    ],
)
def test_what_is_no_answer_is_a_failure_in_one_line(line: bytes) -> None:
    with pytest.raises(StageFailed) as caught:
        read_reply(line, request("open"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_no_number_passes_that_is_none(value: float) -> None:
    for kind, told in HONEST.items():
        for name, honest in told.items():
            if isinstance(honest, float):
                with pytest.raises(StageFailed):
                    read(kind, {"ok": True, **told, name: value})


def test_words_of_a_device_do_nothing_to_a_terminal() -> None:
    hostile = "\x1b]0;owned\x07\nCPU \u202e" + "x" * 10_000
    said = read("describe", {"ok": True, **DESCRIBED, "cpu": hostile})["cpu"]
    assert said.isprintable()
    assert len(said) < 250
    with pytest.raises(Denied) as caught:
        read("open", {"ok": False, "error": hostile, "kind": hostile})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=10,
)


@given(st.data())
def test_any_answer_is_read_or_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(ANSWERS)))
    told: dict[str, Any] = {"ok": data.draw(st.booleans() | JSON), **HONEST[kind]}
    for name in data.draw(st.lists(st.sampled_from(sorted(told)), max_size=3)):
        told[name] = data.draw(JSON)
    said, reply = "", {}
    try:
        reply = read(kind, told)
    except (StageFailed, Denied) as error:
        said = str(error)
    assert "\n" not in said
    assert reply.keys() <= HONEST[kind].keys()
    json.dumps(reply, allow_nan=False)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    with pytest.raises((StageFailed, Denied)):
        read_reply(line, request("open"))
