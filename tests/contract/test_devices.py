"""Every way to a device keeps the contract that plug-ins are held to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import asyncssh
import pytest

from search.cli.command import CONF
from search.config.factory import call_factory
from search.devices.local import LocalTransport
from search.devices.ssh import SshTransport
from search.process import registry
from search.testing.devices import START_S, Reach, TransportContract
from tests.ssh_server import Server, make_config

OWN = [path.stem for path in sorted((CONF / "device").glob("*.yaml"))]


@contextmanager
def reaching(name: str, folder: Path) -> Iterator[Reach]:
    """Yields what returns transports to the device of that name."""
    match name:
        case "local":
            yield LocalTransport
        case "ssh":
            host, user = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
            (folder / "home").mkdir()
            with Server(folder / "home", host, user) as server:
                user.write_private_key(folder / "key")
                config = make_config(folder, server.port, host, "somebody")
                yield partial(SshTransport, config, START_S)
        case _ if name in OWN:
            pytest.fail(f"say here how a test reaches device={name}")
        case _:
            option = registry.load_all("devices")[name]
            yield partial(call_factory, option["factory"], "device", option.get("arguments", {}))


class TestTransports(TransportContract):
    @pytest.fixture(params=[*OWN, *registry.load_all("devices")])
    def reach(
        self, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Reach]:
        with reaching(request.param, tmp_path_factory.mktemp("device")) as found:
            yield found
