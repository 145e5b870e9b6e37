"""Reaches a Ray cluster, or says why it cannot."""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

import ray
from ray.job_config import JobConfig

from search.config.engine import RayEngineConfig, is_loopback
from search.errors import ConfigError, hide_passwords, one_line
from search.process import home

OBJECTS_BYTES = 2**29
ANSWER_S = 5.0
ADDRESS = "give the address that 'ray start --head' printed, or null for one on this machine"


class _Job(JobConfig):
    """Has workers find this package where it is here, and not in the coordinator's folder.

    Ray puts that folder first, and the user may have a ``search`` of another kind there. Steps
    look there themselves for what else users have.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True  # where Ray leaves it out


def connect(config: RayEngineConfig) -> None:
    """Joins the cluster.

    Raises:
        ConfigError: When it does not answer, has no device, may be used by anybody, or would show
            a password.
    """
    job = _Job(_py_driver_sys_path=[str(home.PACKAGE.parent)])
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "job_config": job}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns of itself
    if config.address is None:
        try:
            ray.init(
                address="local",  # or it joins whatever else runs here
                num_cpus=max(config.threads * config.workers, 1),
                resources={config.device_resource: 1},
                object_store_memory=OBJECTS_BYTES,
                include_dashboard=False,
                **quiet,
            )
        except Exception as error:  # as below
            raise ConfigError(
                f"engine=ray: no cluster can be started on this machine ({one_line(error)}); try "
                "again, or give engine=local"
            ) from error
        if describe_lacking(config) is not None:
            ray.shutdown()
            raise ConfigError(
                f"engine.gpus={config.gpus:g}: this machine has not as many; give engine.gpus=0, "
                "or the engine.address of a cluster that has"
            )
        return
    shown = hide_passwords(config.address)
    host, port = _host_and_port(config.address)
    if not is_loopback(host) and os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise ConfigError(
            f"engine.address={shown!r}: who joins a cluster does what anybody asks who reaches it, "
            "unless it has a token; start its nodes and this search with the variable "
            "RAY_AUTH_MODE=token, as docs/scaling.md says"
        )
    given = " ".join(sys.orig_argv)
    if hide_passwords(given) != given:
        raise ConfigError(
            f"engine.address={shown!r}: a cluster shows its users the command lines of searches, "
            "and there is a password in this one; give it as PGPASSWORD or in ~/.pgpass, that of a "
            "tracking server as MLFLOW_TRACKING_PASSWORD"
        )
    if port is not None:
        _knock(config.address, host, port)
    try:
        ray.init(address=config.address, **quiet)
    except Exception as error:  # Ray names no class for what can go wrong here
        raise ConfigError(
            f"engine.address={shown!r}: cannot be joined ({one_line(error)}); {ADDRESS}"
        ) from error
    if ray.cluster_resources().get(config.device_resource, 0) < 1:
        name = config.device_resource
        ray.shutdown()
        raise ConfigError(
            f"engine.address={shown!r}: no node there has the resource {name!r}, which tells where "
            f"to measure; start one with: ray start --address=... --resources='{{\"{name}\": 1}}'"
        )


def describe_lacking(config: RayEngineConfig) -> str | None:
    """Returns what steps need and no node has, which one that joins may bring; None if nothing."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(node.get(config.device_resource, 0) >= 1 for node in nodes):
        return f"the resource {config.device_resource!r}, which tells where to measure"
    if not any(
        node.get("CPU", 0) >= config.threads and node.get("GPU", 0) >= config.gpus for node in nodes
    ):
        return f"engine.threads={config.threads} cores and engine.gpus={config.gpus:g}"
    return None


def _host_and_port(address: str) -> tuple[str, int | None]:
    """Splits an address; the port is None where Ray looks for it, such as for "auto"."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        return host.strip("[]"), int(port)
    return address.removeprefix("ray://").strip("[]"), None


def _knock(address: str, host: str, port: int) -> None:
    """Tries whether somebody listens: Ray itself would try for minutes.

    Raises:
        ConfigError: When nobody does.
    """
    try:
        socket.create_connection((host, port), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"engine.address={hide_passwords(address)!r}: no cluster answers there "
            f"({one_line(error)}); {ADDRESS}"
        ) from error
