"""What every inference runtime promises."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search import data
from search.devices.agent.drivers import onnxruntime as reference
from search.devices.agent.options import session_options
from search.devices.archive import NAME, archive
from search.engine.inline import InlineEngine
from search.engine.store import Store
from search.records.data import Dataset
from search.records.deployable import Deployable
from search.records.files import File
from search.records.steps.exporting import Quantize
from search.runtimes import Runtime
from search.testing.dimensions import check_registered, check_sound, check_words

IMAGES, CALIBRATION_IMAGES = 64, 64
# Of the largest logit, by the bits of a stored weight.
TOLERANCES = {32: 1e-3, 16: 1e-2}
# With fewer bits so many images have to be of the same class: with less than 8 a small network
# loses much, and still tells far more than chance.
AGREEING = {8: 0.9}
AGREEING_OTHERS = 0.5
# A device has none of these.
FOREIGN = "search torch onnx"
ALONE = """
import importlib, sys
archive, module, foreign = sys.argv[1:]
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in foreign.split():
            raise ImportError(name)
sys.meta_path.insert(0, Wall())
sys.path.insert(0, archive)
print(importlib.import_module(module).version())
"""


class RuntimeContract:
    """A suite for one runtime.

    Fixtures: ``runtime``; ``driver``, the module that runs its models on a device; ``exported``,
    the float ONNX file of any trained network, in ``store``, a ``Store``; and ``dataset``, the
    data that it was trained on.
    """

    def test_its_dimensions_are_sound_said_and_registered(self, runtime: Runtime) -> None:
        """As those of techniques are."""
        check_sound(runtime.dimensions)
        check_words(runtime.dimensions)
        check_registered(runtime.dimensions, runtime.name)

    def test_its_operators_are_of_one_kind(self, runtime: Runtime) -> None:
        """They count as computed in integers or in float."""
        assert not runtime.integer_operators & runtime.float_operators

    def test_formats_are_those_of_its_bits(self, runtime: Runtime) -> None:
        """Each has its own name and says its bits, and there is a float one to compare with."""
        assert {bits: one.bits for bits, one in runtime.formats.items()} == {
            bits: bits for bits in runtime.formats
        }
        assert len({one.name for one in runtime.formats.values()}) == len(runtime.formats)
        assert runtime.formats[32].computes == "float"

    def test_every_format_computes_what_the_float_model_does(
        self,
        runtime: Runtime,
        driver: ModuleType,
        exported: File,
        dataset: Dataset,
        store: Store,
    ) -> None:
        """Beside the float model in onnxruntime: exactly, or nearly always the same class."""
        images = _images(dataset)
        options = session_options(1, {})
        wanted = reference.Model(str(store.path(exported)), options).predict(images)
        for bits in runtime.formats:
            model = _open(driver, _stored(runtime, exported, bits, dataset, store), store)
            got = model.predict(images)
            assert got.shape == (len(images), dataset.classes)
            assert np.isfinite(got).all()
            if bits in TOLERANCES:
                error = np.abs(got - wanted).max() / np.abs(wanted).max()
                assert error <= TOLERANCES[bits], bits
            else:
                same = (got.argmax(1) == wanted.argmax(1)).mean()
                assert same >= AGREEING.get(bits, AGREEING_OTHERS), bits
            alone = np.concatenate([model.predict(images[i : i + 1]) for i in range(3)])
            np.testing.assert_allclose(alone, got[:3], rtol=1e-3, atol=1e-3)

    def test_options_travel_as_text(
        self, runtime: Runtime, exported: File, dataset: Dataset, store: Store
    ) -> None:
        """They are written into messages, records and bundles."""
        for bits in runtime.formats:
            deployable = _stored(runtime, exported, bits, dataset, store)
            assert deployable.bits == bits
            assert all(isinstance(part, str) for entry in deployable.options for part in entry)
            options = _options(deployable)
            assert json.loads(json.dumps(options)) == options

    def test_operators_have_kinds_and_times(
        self,
        runtime: Runtime,
        driver: ModuleType,
        exported: File,
        dataset: Dataset,
        store: Store,
    ) -> None:
        """A profile names what ran, and how long it took in a run."""
        runs = 3
        for bits in runtime.formats:
            deployable = _stored(runtime, exported, bits, dataset, store)
            path, batch = str(store.path(deployable.model)), _images(dataset)[:1]
            events = driver.profile(path, _options(deployable), [batch] * runs)
            counts = driver.count_kernels(events)
            kernels = driver.typical_kernels(events, runs)
            assert counts
            assert all(name and count > 0 for name, count in counts.items())
            assert {one["operator"] for one in kernels} == set(counts)
            computing = runtime.integer_operators | runtime.float_operators
            assert computing & counts.keys(), "it convolves and multiplies"
            assert all(one["name"] and one["microseconds"] >= 0 for one in kernels)
            assert sum(one["microseconds"] for one in kernels) > 0

    def test_its_driver_needs_nothing_that_a_device_lacks(
        self, runtime: Runtime, driver: ModuleType, tmp_path: Path
    ) -> None:
        """It imports the standard library, numpy and the runtime, and comes with the agent."""
        allowed = sys.stdlib_module_names | {"numpy", runtime.name}
        assert _imported(inspect.getsource(driver)) <= allowed
        packed = tmp_path / NAME
        packed.write_bytes(archive())
        module = f"agent.drivers.{runtime.name}"
        done = subprocess.run(
            [sys.executable, "-I", "-c", ALONE, str(packed), module, FOREIGN],
            env={"ORT_DISABLE_TELEMETRY": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, f"{driver.version()}\n"), done.stderr


def _stored(
    runtime: Runtime, exported: File, bits: int, dataset: Dataset, store: Store
) -> Deployable:
    step = Quantize(
        model=exported,
        runtime=runtime.name,
        format=runtime.formats[bits],
        int8_format="u8s8_reduced",
        data=dataset,
        calibration_images=CALIBRATION_IMAGES,
        seed=0,
    )
    stored: Deployable = InlineEngine(store, lambda event: None).run(step).result
    return stored


def _options(deployable: Deployable) -> dict[str, Any]:
    return session_options(1, dict(deployable.options))


def _open(driver: ModuleType, deployable: Deployable, store: Store) -> Any:
    return driver.Model(str(store.path(deployable.model)), _options(deployable))


def _images(dataset: Dataset) -> NDArray[np.float32]:
    """Returns validation images ``[n, C, H, W]`` in 0..1."""
    count = min(IMAGES, dataset.sizes[1])
    images = data.load(dataset).validation.read(range(count))
    return images.astype(np.float32) / np.float32(255)


def _imported(source: str) -> set[str]:
    """Returns the packages that a file imports, but for those beside it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            found.add(node.module.partition(".")[0])
    return found
