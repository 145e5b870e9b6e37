"""The device's command line, ``python -m search.device [overrides]``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from search.cli import command as cli
from search.config.commands import RegistrationConfig
from search.config.parsing import parse
from search.errors import ConfigError, StageFailed

if TYPE_CHECKING:
    from search.engine.base import Event


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``search.device`` and returns its exit status."""
    check = partial(parse, shape=RegistrationConfig)
    return cli.main(lambda raw, _: register(check(raw)), arguments, "register", check)


def register(config: RegistrationConfig) -> int:
    """Probes the configured device, unless that is remembered, and prints what was found.

    Returns:
        Exit status.

    Raises:
        ConfigError: If the device cannot be probed.
        DeviceLost: If its agent is killed again and again.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from search.cli.progress import configure_logging
    from search.devices.device import AgentKilled
    from search.devices.reaching import describe_device
    from search.engine.inline import InlineEngine
    from search.engine.store import Store
    from search.records.steps.measuring import Probe
    from search.report.profile import describe_device as describe

    console = Console()
    configure_logging(console)
    cli.STATE.mkdir(exist_ok=True)
    described = describe_device(config.device)

    def announce(event: Event) -> None:
        if event.state == "began":
            console.print("probing the device, about a quarter of a minute ...")

    engine = InlineEngine(Store(cli.STATE / "store"), announce)
    profile = described
    if config.device.probe:
        try:
            done = engine.run(Probe(described, config.device))
        except AgentKilled as error:
            raise error.as_loss("the device was probed") from error
        except StageFailed as error:
            raise ConfigError(f"the device cannot be probed: {error}") from error
        profile = done.result
        if done.reused:
            folder = cli.STATE / "store" / "steps" / "probe"
            console.print(f"remembered; to measure it again, remove {folder}\n", markup=False)
    table = Table.grid(padding=(0, 2))
    for name, value in describe(profile):
        table.add_row(Text(name, style="bold"), Text(value))
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
