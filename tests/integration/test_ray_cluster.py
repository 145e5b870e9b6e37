"""A cluster of several nodes, some of which are lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from search.config import RayEngineConfig
from search.engine import make_engine
from search.engine.store import Store
from search.errors import ConfigError
from search.records import Teacher
from tests.workbench import Workbench

RAY = RayEngineConfig(
    name="ray", address=None, workers=1, threads=1, gpus=0.0, device_resource="device"
)
HEAD = {"num_cpus": 0, "resources": {"device": 1}}


def test_a_lost_node_costs_its_step_which_is_done_elsewhere(
    tmp_path: Path, bench: Workbench
) -> None:
    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    try:
        doomed = cluster.add_node(num_cpus=1)
        config = replace(RAY, address=cluster.address)
        with make_engine(config, Store(tmp_path), lambda step: None) as engine:
            asked = engine.submit(replace(bench.teach_step("cnn"), epochs=30))
            while ray.available_resources().get("CPU", 0) > 0:
                time.sleep(0.1)
            time.sleep(2)  # in the midst of it
            cluster.add_node(num_cpus=1)
            cluster.remove_node(doomed, allow_graceful=False)
            taught: Teacher = asked.result(timeout=120).result
            assert taught.val_accuracy > 0.5
    finally:
        cluster.shutdown()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:99999", "ray://127.0.0.1:1"])
def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path, address: str) -> None:
    nowhere = replace(RAY, address=address)
    with (
        pytest.raises(ConfigError, match=r"engine.address='.*': no cluster answers there \("),
        make_engine(nowhere, Store(tmp_path), lambda step: None),
    ):
        pass


def test_what_no_node_has_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        pytest.raises(ConfigError, match=r"engine.gpus=1: this machine has not as many"),
        make_engine(replace(RAY, gpus=1.0), Store(tmp_path), lambda step: None),
    ):
        pass
    cluster = Cluster(initialize_head=True, head_node_args=HEAD | {"num_cpus": 1})
    try:
        wide = replace(RAY, address=cluster.address, threads=2)
        with make_engine(wide, Store(tmp_path), lambda step: None):
            assert "no node of the cluster has engine.threads=2 cores" in caplog.text
    finally:
        cluster.shutdown()


def test_a_cluster_without_the_device_is_refused(tmp_path: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    nothing = replace(RAY, address=cluster.address)
    try:
        with (
            pytest.raises(ConfigError, match=r"no node there has the resource 'device'"),
            make_engine(nothing, Store(tmp_path), lambda step: None),
        ):
            pass
    finally:
        cluster.shutdown()


LISTENERS = """
import sys
from pathlib import Path
from search.config import RayEngineConfig
from search.engine import make_engine
from search.engine.store import Store
config = RayEngineConfig(
    name="ray", address=None, workers=1, threads=1, gpus=0.0, device_resource="device"
)

def listeners():
    own = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                own.add(fields[1])
    return own

before = listeners()
with make_engine(config, Store(Path(sys.argv[1])), lambda step: None):
    print(*sorted(listeners() - before))
"""


def test_a_cluster_of_ones_own_listens_on_loopback_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS, str(tmp_path)],
        capture_output=True,
        text=True,
        # Another cluster than one's own is joined where it is asked for, nowhere else.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "RAY_ADDRESS": "127.0.0.1:1",
        },
        timeout=120,
        check=True,
    )
    addresses = {listener.partition(":")[0] for listener in done.stdout.split()}
    # As /proc/net writes 127.0.0.1 and, in IPv6, the same.
    assert addresses
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
