"""Logs in to an ssh server whose host key is known."""

from __future__ import annotations

import asyncio
import getpass
import os
import shlex
from pathlib import Path
from typing import Any

import asyncssh

from search.config.device import SshDeviceConfig
from search.devices.device import LoginRefused
from search.errors import ConfigError, DeviceLost, one_line

CONNECT_S = 15.0
KEEPALIVE_S, KEEPALIVES = 5.0, 3
SSH_PORT = 22


def name_target(config: SshDeviceConfig) -> str:
    """Names the account and the server, as ``user@host:port``."""
    return f"{_user(config)}@{config.host}:{config.port}"


def shell_command(config: SshDeviceConfig, *words: str) -> str:
    """What the user can type here to run the words as a command there."""
    port = [] if config.port == SSH_PORT else ["-p", str(config.port)]
    key = [] if config.key is None else ["-i", config.key]
    target = f"{_user(config)}@{config.host}"
    # The shell here and the one there each take quotes away.
    return shlex.join(["ssh", *port, *key, target, *map(shlex.quote, words)])


async def connect(config: SshDeviceConfig, timeout_s: float) -> asyncssh.SSHClientConnection:
    """Connects and logs in, by the configuration alone: neither ssh's files nor a person is asked.

    Raises:
        ConfigError: If the server's host key is not the one in ``config.known_hosts``.
        LoginRefused: If it does not accept the user's key.
        DeviceLost: If no server answers.
    """
    where = f"{config.host}:{config.port}"
    client = _Client()
    options = {**_trust(config), **_identify(config)}
    try:
        async with asyncio.timeout(min(timeout_s, CONNECT_S)):
            return await asyncssh.connect(
                config.host,
                config.port,
                config=None,
                client_factory=lambda: client,
                keepalive_interval=KEEPALIVE_S,
                keepalive_count_max=KEEPALIVES,
                **options,
            )
    except asyncssh.HostKeyNotVerifiable as error:
        raise _distrust(config, client, error) from error
    except asyncssh.PermissionDenied as error:
        key = "any key of the ssh agent or ~/.ssh" if config.key is None else f"key {config.key}"
        raise LoginRefused(
            f"{where} does not let {_user(config)} in with {key}; correct device.user or "
            f"device.key, or add the public key there (ssh-copy-id)"
        ) from error
    except asyncssh.KeyExchangeFailed as error:
        raise ConfigError(
            f"{where} and this machine agree on no algorithm ({one_line(error)}); if its host key "
            f"is of a new kind, compare and add that to {config.known_hosts}"
        ) from error
    except TimeoutError as error:
        raise _silent(where, "no answer in time") from error
    except (OSError, asyncssh.Error) as error:
        raise _silent(where, one_line(error)) from error
    except ValueError as error:
        reason = f"device=ssh cannot log in to {where} ({one_line(error)}); correct its settings"
        raise ConfigError(reason) from error


class _Client(asyncssh.SSHClient):
    """Trusts no key beyond the listed ones, and remembers the one that it was offered."""

    def __init__(self) -> None:
        self.offered: asyncssh.SSHKey | None = None
        self.address = ""

    def validate_host_public_key(
        self, host: str, addr: str, port: int, key: asyncssh.SSHKey
    ) -> bool:
        """Is asked about a key that is not listed only."""
        self.offered, self.address = key, addr
        return False


def _user(config: SshDeviceConfig) -> str:
    try:
        return config.user or getpass.getuser()
    except (KeyError, OSError):  # no such user, as in some containers
        raise ConfigError("this process has no user name to log in with; set device.user") from None


def _silent(where: str, why: str) -> DeviceLost:
    return DeviceLost(
        f"no ssh server can be reached at {where} ({why}); see that the device is on, and correct "
        "device.host and device.port (names of ~/.ssh/config are not known here)"
    )


def _trust(config: SshDeviceConfig) -> dict[str, Any]:
    """Options by which the known hosts are the only way to trust a server."""
    return {
        "known_hosts": _read_known_hosts(config),
        # Each of these could vouch for a server too.
        "x509_trusted_certs": None,
        "x509_trusted_cert_paths": [],
        "gss_host": None,
    }


def _read_known_hosts(config: SshDeviceConfig) -> asyncssh.SSHKnownHosts:
    """Reads the file; one that does not exist lists nothing.

    Never pass its path or text on: asyncssh takes an empty one for the user's own file.
    """
    try:
        listed = Path(config.known_hosts).expanduser().read_text(encoding="utf-8")
        return asyncssh.import_known_hosts(listed)
    except FileNotFoundError:
        return asyncssh.import_known_hosts("")
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"device.known_hosts={config.known_hosts} cannot be read ({one_line(error)})"
        ) from error


def _identify(config: SshDeviceConfig) -> dict[str, Any]:
    """Options that say who logs in.

    Raises:
        ConfigError: If the key file cannot be used.
    """
    options: dict[str, Any] = {"username": _user(config), "preferred_auth": ["publickey"]}
    if config.key is None:
        return options
    try:
        path = Path(config.key).expanduser()
        asyncssh.read_private_key(path)
    except asyncssh.KeyImportError as error:
        if "passphrase" not in str(error).lower():
            raise ConfigError(
                f"device.key={config.key} is no private key ({error}); give the file without .pub"
            ) from error
        if not os.environ.get("SSH_AUTH_SOCK"):
            raise ConfigError(
                f"device.key={config.key} is encrypted and no ssh agent runs; start one and add "
                f"the key: ssh-add {shlex.quote(config.key)}"
            ) from error
        return {**options, "client_keys": [str(path)], "ignore_encrypted": True}
    except (OSError, RuntimeError, ValueError) as error:
        reason = f"device.key={config.key} cannot be read ({one_line(error)}); correct device.key"
        raise ConfigError(reason) from error
    # By default the agent's keys go first, and a server may refuse after a few.
    return {**options, "client_keys": [str(path)], "agent_path": None}


def _distrust(config: SshDeviceConfig, client: _Client, error: Exception) -> ConfigError:
    """Says what is wrong with the server's key, and how a person can repair that."""
    where, file = f"{config.host}:{config.port}", config.known_hosts
    quoted = file if file.startswith("~/") else shlex.quote(file)
    name = _listed_name(config, config.host)
    scan = f"ssh-keyscan -p {config.port} {shlex.quote(config.host)} >> {quoted}"
    if client.offered is None:
        return ConfigError(f"the host key of {where} is not to be trusted ({error}); see {file}")
    print_ = client.offered.get_fingerprint()
    known = _read_known_hosts(config)
    names = [name, _listed_name(config, client.address)] if client.address else [name]
    if any(known.match(listed, "", None)[0] for listed in names):
        return ConfigError(
            f"the host key of {where} is not the one in {file} but {print_}: somebody may listen "
            f"in; if the device was set up anew and the fingerprint is its own, run "
            f"ssh-keygen -R {shlex.quote(name)} -f {quoted} and {scan}"
        )
    return ConfigError(
        f"the host key of {where} is not in {file}; the server offers {print_}: compare it with "
        f"the device's, then run {scan}"
    )


def _listed_name(config: SshDeviceConfig, host: str) -> str:
    """How the file of known hosts writes a server."""
    return host if config.port == SSH_PORT else f"[{host}]:{config.port}"
