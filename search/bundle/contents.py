"""Composes what is in a bundle, the same bytes for the same pick."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search import data
from search.benchmark.plans import session_entries
from search.bundle import card, predict
from search.bundle.facts import Facts
from search.devices.agent.options import session_options
from search.records.data import Dataset

SCHEMA = 1
SAMPLES = 16
PROVIDERS = ["CPUExecutionProvider"]
# Share of the largest logit by which another machine may differ. In floating point only the order
# of sums varies; in integers a value between two steps may fall to either side.
FLOAT_TOLERANCE, INTEGER_TOLERANCE = 1e-3, 0.05


def compose(facts: Facts, model: bytes, images: NDArray[np.float32]) -> dict[str, bytes]:
    """Returns the content of every file by name, all but the sums.

    Args:
        facts: Of the point.
        model: Its ONNX file.
        images: Samples ``[n, C, H, W]`` in 0..1, to check answers with.
    """
    runtime = describe_runtime(facts)
    labelled = _with_metadata(model, facts, runtime)
    logits = predict.open_session(labelled, runtime).run(None, {"images": images})[0]
    return {
        "model.onnx": labelled,
        "runtime.json": _json(runtime),
        "labels.json": _json(list(facts.lab.bench.data.labels)),
        "samples.npz": _arrays(images=images, logits=logits),
        "predict.py": Path(predict.__file__).read_bytes(),
        "MODEL_CARD.md": card.write_card(facts).encode(),
        "requirements.txt": _requirements(facts).encode(),
    }


def sample_images(dataset: Dataset, kept: Path | None = None) -> NDArray[np.float32]:
    """Reads test images ``[n, C, H, W]`` in 0..1 with as many classes among them as possible.

    Args:
        dataset: Which data.
        kept: Where decoded images are kept; None where nowhere.
    """
    test = data.load(dataset, kept).test
    _, first = np.unique(test.labels, return_index=True)
    rest = np.setdiff1d(np.arange(len(test.labels)), first)
    index = np.sort(np.concatenate([first, rest])[:SAMPLES])
    return test.read(index).astype(np.float32) / np.float32(255)


def describe_runtime(facts: Facts) -> dict[str, Any]:
    """Returns how the model is run, exactly as it was measured, and what was found then."""
    bench, candidate = facts.lab.bench, facts.candidate
    device = bench.device
    entries = session_entries(candidate.deployable, bench.measuring.spinning)
    integers = candidate.figures.integer_operators > 0
    return {
        "schema": SCHEMA,
        "runtime": device.runtime,
        "providers": PROVIDERS,
        **session_options(candidate.point.whole("threads"), dict(entries)),
        "input": {
            "name": "images",
            "shape": ["n", *bench.data.image_shape],
            "dtype": "float32",
            "range": [0, 1],
            "normalization": "inside the model",
        },
        "output": {"name": "logits", "shape": ["n", bench.data.classes], "dtype": "float32"},
        "tolerance": INTEGER_TOLERANCE if integers else FLOAT_TOLERANCE,
        "measured": {
            "device": f"{device.name} ({device.cpu})",
            "batch_size": bench.measuring.batch_size,
            "latency_ms": candidate.figures.latency_ms,
            "p99_ms": candidate.figures.p99_ms,
            "test_accuracy": candidate.accuracy,
        },
    }


def _with_metadata(model: bytes, facts: Facts, runtime: Mapping[str, Any]) -> bytes:
    import onnx

    proto = onnx.load_from_string(model)
    proto.producer_name, proto.producer_version = "cnn-search", version("cnn-search")
    proto.doc_string = f"Study {facts.study}, trial {facts.candidate.number}"
    properties = {
        "study": facts.study,
        "trial": str(facts.candidate.number),
        "labels": json.dumps(facts.lab.bench.data.labels),
        "input": json.dumps(runtime["input"]),
        "output": json.dumps(runtime["output"]),
        "intra_op_num_threads": str(facts.candidate.point["threads"]),
        "session_entries": json.dumps(runtime["session_entries"]),
        "measured": json.dumps(runtime["measured"]),
        "measured_sha256": facts.candidate.deployable.model.sha256,
    }
    onnx.helper.set_model_props(proto, properties)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _requirements(facts: Facts) -> str:
    """Pins what the model was measured with; numpy only carries pixels."""
    _, _, runtime = facts.lab.bench.device.runtime.partition(" ")
    return f"numpy=={version('numpy')}\nonnxruntime=={runtime}\n"


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _arrays(**arrays: NDArray[np.float32]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # mypy takes it for allow_pickle
    return stream.getvalue()
