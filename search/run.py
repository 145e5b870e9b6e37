"""The search's command line, ``python -m search.run [overrides]``; knows not how it is done."""

from __future__ import annotations

import importlib
import logging
import resource
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search import cli, home
from search.config import SearchConfig
from search.errors import (
    ConfigError,
    DeviceLost,
    StageFailed,
    TrackingSilent,
    hide_passwords,
)
from search.leaving import leave_after
from search.logs import RunLog
from search.parsing import parse

if TYPE_CHECKING:
    from rich.console import Console

    from search.engine.base import Engine
    from search.records import Canary, Closing, Dataset, NetworkSpec, TrialRecord
    from search.study import Study
    from search.trial import Bench, Lab

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
        from search.space import parse_space

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

    from search.progress import configure_logging

    console = Console()
    configure_logging(console)
    with RunLog(cli.STATE / "logs" / f"{config.study.name}.log") as run_log:
        return _search(config, settings, console, run_log)


def _search(config: SearchConfig, settings: str, console: Console, run_log: RunLog) -> int:
    from search import exhibits
    from search.archive import earlier_points
    from search.coordinator import Coordinator
    from search.engine import make_engine
    from search.engine.store import Store
    from search.importance import importances
    from search.progress import Progress
    from search.report.formats import format_counted
    from search.setup import keep_weights, make_bench, settings_of
    from search.storage import open_ledgers
    from search.study import Study

    is_silent = _check_places(config)
    store = Store(cli.STATE / "store")
    store.clear_leftovers()
    objectives = config.objective.names
    progress = Progress(console, config.study, objectives)
    ledgers = open_ledgers(config.storage, cli.STATE / "studies")
    with (
        ledgers.of(config.study.name) as ledger,
        make_engine(config.engine, store, progress.note) as engine,
    ):
        if config.study.n_trials == 0 and not ledger.exists():
            raise ConfigError(
                f"study.n_trials=0: holds the closing round of a study, and {config.study.name} "
                "has no trials yet; give study.n_trials above 0, or study.name of one that has"
            )
        earlier = earlier_points(ledgers, config.study.warm_start, config.objective)
        with progress:
            bench, space = make_bench(config, store, engine, partial(_check_network, config))
        settings_kept = settings_of(config, bench, space)
        cli.STATE.mkdir(exist_ok=True)
        study = Study(ledger, config.study, space, objectives, settings_kept)
        keep_weights(config, bench, store)
        run_log.begin()
        log.info(
            "study %s: %s on %s, measured on %s (%s, %s)",
            config.study.name,
            config.model.title,
            config.data.name,
            bench.device.name,
            bench.device.cpu,
            format_counted(bench.device.usable_cores, "core"),
        )
        # Not at the top: it takes longer than all the refusals above.
        from search.tracking.delivery import Delivery
        from search.tracking.tracker import Tracker

        arguments = f"study={config.study.name}{ledgers.arguments}"
        connect = partial(
            Tracker,
            config.tracking,
            cli.STATE,
            config.study.name,
            study.identity,
            objectives,
            exhibits.tags(bench),
            settings,
            partial(importances, objectives=objectives),
            storage=ledgers.arguments,
        )
        with (
            _telling_memory(study.records),
            Delivery(
                connect,
                config.tracking,
                cli.STATE,
                arguments,
                study.keep_ending,
                is_silent,
            ) as delivery,
            progress,
        ):
            lab, stage_s = _prepare(bench, engine)
            study.keep_lab(lab, hide_passwords(settings))
            study.keep_tags(exhibits.tags(lab.bench))
            every = config.device.canary_every
            told_before = exhibits.known_canaries(lab, study.identity, len(study.records), store)
            canaries = list(told_before)
            if every is not None:
                canaries += _release_canary(lab, study, engine)
            delivery.log_device(exhibits.device_tags(lab.bench.device), canaries)
            if (before := study.closing) is not None:
                told = exhibits.explanations(before.finalists, lab, engine)
                delivery.log_finalists(before, exhibits.final_models(before, store), told)
            delivery.log_trials(study.records, exhibits.models(study.records, store))
            _tell_time(config, lab, stage_s, study, engine)
            progress.begin(study.records)
            coordinator = Coordinator(study, config.sampler, config.policy, lab, engine, earlier)
            for record in coordinator.trials():
                delivery.log_trials(study.records, exhibits.models([record], store))
                progress.finished(record)
                if every is not None and len(study.records) % every == 0:
                    canaries += _release_canary(lab, study, engine)
                    delivery.log_device({}, canaries)
            progress.end()
            closing = _close(config, study.records, lab, engine, canaries)
            if closing is not None:
                study.keep_closing(closing)
                told = exhibits.explanations(closing.finalists, lab, engine)
                delivery.log_finalists(closing, exhibits.final_models(closing, store), told)
        _show_front(
            console,
            study.records,
            study.closing,
            canaries,
            objectives,
            f"{_server(config.tracking.uri)}{delivery.location}",
            arguments,
        )
        delivery.check()
    return 0


def _check_places(config: SearchConfig) -> bool:
    """Refuses places that are not there, before anything is looked for or begun elsewhere.

    Returns:
        Whether the tracking server does not answer, which is told and no reason to stop.

    Raises:
        ConfigError: When the tracking database cannot be opened, or there is no such processor.
    """
    # Found by name, as engines find stages: the coordinator itself does not know torch.
    if config.engine.name != "ray":  # whose nodes have other processors
        placement = importlib.import_module("search.stages.placement")
        placement.choose_device(config.train.device)
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
    teacher = importlib.import_module("search.stages.teacher")
    name = config.model.checkpoint
    path = None if name is None else Path(name).expanduser()
    teacher.check(spec, path, f"model.checkpoint={name!r}", dataset)


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


def _prepare(bench: Bench, engine: Engine) -> tuple[Lab, Mapping[str, float]]:
    """Obtains what trials are compared with, and tells of it.

    Returns:
        It, and the seconds that each stage took.

    Raises:
        ConfigError: When the uncompressed network itself cannot go the way of a trial.
        DeviceLost: When the device's agent is killed again and again.
    """
    from search.benchmark.device import AgentKilled
    from search.driving import Effort, drive
    from search.trial import prepare

    started, effort = time.monotonic(), Effort()
    try:
        lab = drive(prepare(bench), engine, effort, "original")
    except AgentKilled as error:
        remedy = "see that nobody ends its processes and that memory is free there"
        reason = "the device's agent was killed twice while the uncompressed network was measured"
        raise DeviceLost(f"{reason} ({error.reason}); {remedy}") from error
    except StageFailed as error:
        raise ConfigError(f"the uncompressed network cannot be used: {error}") from error
    _greet(lab, time.monotonic() - started)
    return lab, effort.stage_s


def _tell_time(
    config: SearchConfig, lab: Lab, stage_s: Mapping[str, float], study: Study, engine: Engine
) -> None:
    """Says what the trials that are left will take."""
    from search.forecast import describe_forecast, forecast

    asked = sum(record.student_of is None for record in study.records)
    if config.study.n_trials is not None and asked >= config.study.n_trials:
        return
    found = forecast(
        lab, stage_s, config.study, config.policy, config.finalists, asked, engine.slots
    )
    log.info("%s", describe_forecast(found, lab.placement.step_s, config.study))


@contextmanager
def _telling_memory(records: Sequence[TrialRecord]) -> Iterator[None]:
    """Says at the end, whatever that is, how much memory the search held at most.

    Args:
        records: Of all trials; those that are still to come are added to it.
    """
    from search.report.formats import format_bytes

    try:
        yield
    finally:
        own_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workers = [record.worker_rss_bytes for record in records if record.worker_rss_bytes]
        beside = f", a worker {format_bytes(max(workers))}" if workers else ""
        log.info("most memory held: this process %s%s", format_bytes(own_bytes), beside)


def _release_canary(lab: Lab, study: Study, engine: Engine) -> list[Canary]:
    """Sees whether the device still tells that a model is as fast as itself; [] if it fails."""
    from search.driving import drive
    from search.report import describe_noise
    from search.trial import canary

    try:
        found = drive(
            canary(lab, study.identity, len(study.records)), engine, title="checking the device"
        )
    except StageFailed as error:
        log.warning("the original could not be measured against itself: %s", error)
        return []
    if found.is_noisy:
        log.warning("%s", describe_noise([found]))
    return [found]


def _close(
    config: SearchConfig,
    records: Sequence[TrialRecord],
    lab: Lab,
    engine: Engine,
    canaries: Sequence[Canary],
) -> Closing | None:
    """Holds the closing round, unless it is off or nothing is complete; None too if it fails."""
    from search.finalists import close
    from search.records import Closing

    if config.finalists.count == 0:
        return None
    try:
        found = close(records, lab, config.finalists, engine)
    except StageFailed as error:
        log.warning("the closing round failed, the front is as it was before: %s", error)
        return None
    return Closing(len(records), found, tuple(canaries)) if found else None


def _server(uri: str | None) -> str:
    """Returns the address of MLflow's pages, after what starts them where nothing does."""
    if uri is not None and uri.startswith("http"):
        return hide_passwords(uri)
    if uri is not None:
        start = f"mlflow ui --backend-store-uri {shlex.quote(hide_passwords(uri))}"
    else:
        state = cli.STATE.resolve()
        start = f"{home.command('ui')} --state {shlex.quote(str(state))}"
        if (state.parent / "Makefile").exists() and cli.CONF.parent == state.parent:
            start = "make ui"  # shortest within the project itself
    return f"{start}  # then open this:\n              http://127.0.0.1:5000"


SOUND = (
    "check data.mean, data.std and the order of the classes against the training of "
    "model.checkpoint, or give train.teacher_epochs more"
)


def _greet(lab: Lab, seconds: float) -> None:
    from search.report.formats import format_counted, format_ms, format_share
    from search.report.profile import describe_formats

    yardstick = lab.yardstick
    log.info(
        "the uncompressed network: %s on validation, %s with %s "
        "(ready after %.0f s; trains in %s, %s)",
        format_share(lab.reference_accuracy),
        format_ms(yardstick.latency_ms(yardstick.best_threads)),
        format_counted(yardstick.best_threads, "thread"),
        seconds,
        lab.placement.precision,
        lab.placement.layout.replace("_", " "),
    )
    formats = describe_formats(lab.bench.device)
    if formats:
        log.info("the device: %s", formats)
    chance = lab.bench.data.chances[1]
    is_guessing = lab.reference_accuracy <= chance and lab.bench.limits.min_accuracy_share > 0
    if is_guessing:
        raise ConfigError(
            f"the uncompressed network: {format_share(lab.reference_accuracy)} on validation, "
            f"where answering the largest class alone gives {format_share(chance)}; {SOUND}; or, "
            "where classes are so uneven that this is good, give objective.min_accuracy_share=0"
        )
    if lab.reference_accuracy < chance + (1 - chance) / 4:
        log.warning(
            "that is little better than guessing (%s): a front found from it is worth nothing; %s",
            format_share(chance),
            SOUND,
        )


def _show_front(
    console: Console,
    records: Sequence[TrialRecord],
    closing: Closing | None,
    canaries: Sequence[Canary],
    objectives: Sequence[str],
    page: str,
    found_by: str,
) -> None:
    """Prints the front and what can be done with it."""
    from search.front import front, original
    from search.report import (
        describe_result,
        finalist_table,
        front_table,
    )

    members = front(records, objectives)
    console.print()
    if closing is not None:
        console.print(finalist_table(closing.finalists))
    else:
        console.print(front_table(members, original(records)))
    for remark in describe_result(records, members, objectives, closing, canaries):
        console.print(f"\n{remark}", markup=False)
    hints = f"\nLook at it:   {page}\nPick from it: {home.command('pick')} {found_by}"
    console.print(hints, soft_wrap=True, markup=False)  # a broken link could not be clicked


if __name__ == "__main__":
    leave_after(main)
