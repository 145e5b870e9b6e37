"""The search's command line, ``python -m search.run [overrides]``."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.config.parsing import parse
from search.errors import (
    ConfigError,
    StageFailed,
    TrackingSilent,
    hide_passwords,
)
from search.process import registry
from search.process.leaving import leave_after
from search.process.logs import RunLog

if TYPE_CHECKING:
    from rich.console import Console

    from search.cli.progress import Progress
    from search.engine.base import Engine
    from search.engine.store import Store
    from search.records.bench import Bench, Lab
    from search.records.data import Dataset
    from search.records.network import NetworkSpec
    from search.records.point import Point
    from search.storage import Ledger, Ledgers
    from search.study.study import Study
    from search.tracking.delivery import Delivery

log = logging.getLogger("search.run")  # started with -m its own name is __main__
MOST_CORES = 1 << 16  # more than any device has


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``search.run`` and returns its exit status."""
    return cli.main(lambda raw, settings: search(_parse(raw), settings), arguments, check=_parse)


def _parse(raw: Any) -> SearchConfig:
    """Checks a composed configuration, its space too.

    Raises:
        ConfigError: With every fault; how many threads there may be only the device tells.
    """
    try:
        return parse(raw, SearchConfig)
    except ConfigError as error:
        from search.space.parsing import parse_space

        faults = [str(error)]
        space = raw.get("space")
        if isinstance(space, Mapping):
            try:
                parse_space(space, MOST_CORES)
            except ConfigError as other:
                faults.append(str(other))
        raise ConfigError("; ".join(faults)) from None


def search(config: SearchConfig, settings: str) -> int:
    """Runs a study to the end of its budget and shows its front.

    Args:
        config: Checked configuration.
        settings: The same as YAML, kept with the study.

    Returns:
        Exit status.
    """
    # Imported here, so that --help and a mistyped override answer at once.
    from rich.console import Console

    from search.cli.progress import configure_logging

    console = Console()
    configure_logging(console)
    with RunLog(cli.STATE / "logs" / f"{config.study.name}.log") as run_log:
        return _search(config, settings, console, run_log)


class _Place(NamedTuple):
    """Where a study is searched."""

    config: SearchConfig
    ledgers: Ledgers
    store: Store
    engine: Engine
    progress: Progress


def _search(config: SearchConfig, settings: str, console: Console, run_log: RunLog) -> int:
    """The story of a study: it is begun or gone on with, prepared, searched, closed and shown."""
    from search.cli.progress import Progress
    from search.cli.showing import server_address, show_front, telling_memory
    from search.engine import make_engine
    from search.engine.store import Store
    from search.storage import open_ledgers

    is_silent = _check_places(config)
    store = Store(cli.STATE / "store")
    store.clear_leftovers()
    progress = Progress(console, config.study, config.objective.names)
    ledgers = open_ledgers(config.storage, cli.STATE / "studies")
    with (
        ledgers.of(config.study.name) as ledger,
        make_engine(config.engine, store, progress.note) as engine,
    ):
        place = _Place(config, ledgers, store, engine, progress)
        study, bench, earlier = _begin(place, ledger)
        run_log.begin()
        _introduce(config, bench)
        with telling_memory(study.records), _deliver(place, study, is_silent) as delivery, progress:
            lab = _prepare(place, study, bench, settings, delivery)
            _explore(place, study, lab, earlier, delivery)
            _close(place, study, lab, delivery)
        where = f"{server_address(config.tracking.uri)}{delivery.location}"
        show_front(console, study, where, _arguments(place))
        delivery.check()
    return 0


def _arguments(place: _Place) -> str:
    """Returns the overrides by which other commands find the study."""
    return f"study={place.config.study.name}{place.ledgers.arguments}"


def _begin(place: _Place, ledger: Ledger) -> tuple[Study, Bench, list[Point]]:
    """Looks at what the user gave, and begins the study or goes on with it.

    Returns:
        The study, what its trials share, and points of other studies to try early.

    Raises:
        ConfigError: When something cannot work; nothing is written then.
    """
    from search.recipes.setup import keep_weights, make_bench, settings_of
    from search.study.archive import earlier_points
    from search.study.sampling import check_sampler
    from search.study.study import Study

    config = place.config
    check_sampler(config.sampler)
    if config.study.n_trials == 0 and not ledger.exists():
        raise ConfigError(
            f"study.n_trials=0: holds the closing round of a study, and {config.study.name} "
            "has no trials yet; give study.n_trials above 0, or study.name of one that has"
        )
    earlier = earlier_points(place.ledgers, config.study.warm_start, config.objective)
    with place.progress:
        check = partial(_check_network, config)
        bench, space = make_bench(config, place.store, place.engine, check)
    kept = settings_of(config, bench, space)
    cli.STATE.mkdir(exist_ok=True)
    study = Study(ledger, config.study, space, config.objective.names, kept)
    keep_weights(config, bench, place.store)
    return study, bench, earlier


def _introduce(config: SearchConfig, bench: Bench) -> None:
    from search.records.formats import format_counted

    log.info(
        "study %s: %s on %s, measured on %s (%s, %s)",
        config.study.name,
        config.model.title,
        config.data.name,
        bench.device.name,
        bench.device.cpu,
        format_counted(bench.device.usable_cores, "core"),
    )


def _deliver(place: _Place, study: Study, is_silent: bool) -> Delivery:
    """Returns what brings MLflow up to the study's ledger beside the search."""
    # Not at the top: it takes longer than all the refusals above.
    from search.study.archive import ArchiveReader
    from search.tracking.delivery import Delivery
    from search.tracking.snapshot import open_tracker, snapshot_of

    config, storage = place.config, place.ledgers.arguments
    reader = ArchiveReader(place.ledgers.of(config.study.name), config.study.name)
    return Delivery(
        lambda: snapshot_of(reader.read(), place.store),
        lambda snapshot, claim: open_tracker(
            snapshot, config.tracking, cli.STATE, storage, claim, is_running=True
        ),
        config.tracking,
        cli.STATE,
        _arguments(place),
        study.keep_ending,
        is_silent,
    )


def _prepare(place: _Place, study: Study, bench: Bench, settings: str, delivery: Delivery) -> Lab:
    """Obtains what trials are compared with, and tells of it."""
    from search.cli.showing import greet, tell_time
    from search.study.facts import facts_of

    started = time.monotonic()
    lab, stage_s = _measure_original(bench, place.engine)
    greet(lab, time.monotonic() - started)
    study.keep_lab(lab, hide_passwords(settings))
    study.keep_tags(facts_of(lab.bench))
    if place.config.device.canary_every is not None:
        _release_canary(lab, study, place.engine)
    delivery.notify(len(study.records))
    tell_time(place.config, lab, stage_s, study.records, place.engine.slots)
    return lab


def _explore(
    place: _Place, study: Study, lab: Lab, earlier: Sequence[Point], delivery: Delivery
) -> None:
    """Searches to the end of the budget."""
    from search.study.coordinator import Coordinator

    config, every = place.config, place.config.device.canary_every
    place.progress.begin(study.records)
    coordinator = Coordinator(study, config.sampler, config.policy, lab, place.engine, earlier)
    for record in coordinator.trials():
        delivery.notify(len(study.records))
        place.progress.finished(record)
        if every is not None and len(study.records) % every == 0:
            _release_canary(lab, study, place.engine)
            delivery.notify(len(study.records))
    place.progress.end()


def _close(place: _Place, study: Study, lab: Lab, delivery: Delivery) -> None:
    """Holds the closing round, unless it is off or nothing is complete."""
    from search.recipes.closing import close, profile_front
    from search.records.closing import Closing

    finalists = place.config.finalists
    if finalists.count == 0:
        return
    try:
        found = close(study.records, lab, finalists, place.engine)
    except StageFailed as error:
        log.warning("the closing round failed, the front is as it was before: %s", error)
        return
    if found:
        profile_front(found, lab, place.engine)
        study.keep_closing(Closing(len(study.records), found, study.canaries))
        delivery.notify(len(study.records))


def _check_places(config: SearchConfig) -> bool:
    """Refuses places that are not there, before anything is looked for or begun elsewhere.

    Returns:
        Whether the tracking server does not answer, which is told and no reason to stop.

    Raises:
        ConfigError: When the tracking database cannot be opened, or there is no such processor.
    """
    if config.engine.name != "ray":  # whose nodes have other processors
        # By its name, because the coordinator starts without torch.
        registry.load("search.stages.placement:choose_device")(config.train.device)
    silent = _find_silence(config)
    if silent is not None:
        from search.tracking.delivery import describe_outage

        log.warning("%s", describe_outage(silent.what))
    return silent is not None


def _check_network(config: SearchConfig, spec: NetworkSpec, dataset: Dataset | None) -> None:
    """Refuses what cannot work before a study is begun, because that fixes its settings.

    Raises:
        ConfigError: When network, checkpoint and data do not suit one another.
    """
    name = config.model.checkpoint
    path = None if name is None else Path(name).expanduser()
    check = registry.load("search.stages.teacher:check")
    check(spec, path, f"model.checkpoint={name!r}", dataset)


def _find_silence(config: SearchConfig) -> TrackingSilent | None:
    """Looks whether the tracking server answers, if there is one yet."""
    if config.tracking.uri is None and not (cli.STATE / "mlflow.db").exists():
        return None
    from search.tracking.server import check_tracking

    try:
        check_tracking(config.tracking, cli.STATE, config.study.name)
    except TrackingSilent as error:
        return error
    return None


def _measure_original(bench: Bench, engine: Engine) -> tuple[Lab, Mapping[str, float]]:
    """Obtains the teacher, and measures it.

    Returns:
        It, and the seconds that each stage took.

    Raises:
        ConfigError: When the uncompressed network itself cannot go the way of a trial.
        DeviceLost: When the device's agent is killed again and again.
    """
    from search.devices.device import AgentKilled
    from search.engine.driving import ResourceUsage, drive
    from search.recipes.preparing import prepare

    usage = ResourceUsage()
    try:
        lab = drive(prepare(bench), engine, usage, "original")
    except AgentKilled as error:
        raise error.as_loss("the uncompressed network was measured") from error
    except StageFailed as error:
        raise ConfigError(f"the uncompressed network cannot be used: {error}") from error
    return lab, usage.stage_s


def _release_canary(lab: Lab, study: Study, engine: Engine) -> None:
    """Sees whether the device still tells that a model is as fast as itself."""
    from search.engine.driving import drive
    from search.recipes.deploying import canary
    from search.report import describe_noise

    try:
        found = drive(
            canary(lab, study.identity, len(study.records)), engine, title="checking the device"
        )
    except StageFailed as error:
        log.warning("the original could not be measured against itself: %s", error)
        return
    if found not in study.canaries:  # it may be remembered
        study.keep_canary(found)
    if found.is_noisy:
        log.warning("%s", describe_noise([found]))


if __name__ == "__main__":
    leave_after(main)
