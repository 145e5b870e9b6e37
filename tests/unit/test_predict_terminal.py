"""A bundle's program answers on terminals that know few letters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import helper

from search.bundle import predict
from tests import onnx_files

RUNTIME = {
    "input": {"name": "x", "shape": [None, 2, 4, 4]},
    "intra_op_num_threads": 1,
    "inter_op_num_threads": 1,
    "execution_mode": "sequential",
    "graph_optimization_level": "all",
    "session_entries": {},
    "providers": ["CPUExecutionProvider"],
}
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}


def test_a_label_that_the_terminal_lacks_is_written_in_others(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["y"]),
    ]
    onnx_files.save(tmp_path / "model.onnx", nodes, {}, image=(2, 4, 4))
    (tmp_path / "runtime.json").write_text(json.dumps(RUNTIME), encoding="utf-8")
    (tmp_path / "labels.json").write_text('["\N{SNOWMAN}", "dog"]', encoding="utf-8")
    shutil.copy(predict.__file__, tmp_path / "predict.py")
    np.save(tmp_path / "image.npy", np.zeros((2, 4, 4), np.uint8))
    done = subprocess.run(
        [sys.executable, "predict.py", "image.npy"],
        cwd=tmp_path,
        env={**os.environ, **ASCII},
        capture_output=True,
        text=True,
        encoding="ascii",
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["\\u2603", "50.00", "%"],
        ["dog", "50.00", "%"],
    ]
