"""What a search says on the terminal beside its live display."""

from __future__ import annotations

import logging
import resource
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console

from search.cli import command as cli
from search.config.commands import SearchConfig
from search.errors import ConfigError, hide_passwords
from search.front.front import front, original
from search.process import home
from search.records.bench import Lab
from search.records.formats import format_bytes, format_counted, format_ms, format_share
from search.records.trial import TrialRecord
from search.report import describe_result, finalist_table, front_table
from search.report.profile import describe_formats
from search.study.forecast import describe_forecast, forecast

if TYPE_CHECKING:
    from search.study.study import Study

log = logging.getLogger("search.run")
SOUND = (
    "check data.mean, data.std and the order of the classes against the training of "
    "model.checkpoint, or give train.teacher_epochs more"
)


def greet(lab: Lab, seconds: float) -> None:
    """Says what the uncompressed network is like.

    Raises:
        ConfigError: When it only guesses.
    """
    baseline = lab.baseline
    log.info(
        "the uncompressed network: %s on validation, %s with %s "
        "(ready after %.0f s; trains in %s, %s)",
        format_share(lab.reference_accuracy),
        format_ms(baseline.latency_ms(baseline.best_threads)),
        format_counted(baseline.best_threads, "thread"),
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


def tell_time(
    config: SearchConfig,
    lab: Lab,
    stage_s: Mapping[str, float],
    records: Sequence[TrialRecord],
    slots: int,
) -> None:
    """Says what the trials that are left will take.

    Args:
        config: Of the search.
        lab: The study's.
        stage_s: Seconds that each stage took for the original.
        records: Of trials that ended before.
        slots: Trials that run at a time.
    """
    asked = sum(record.student_of is None for record in records)
    if config.study.n_trials is not None and asked >= config.study.n_trials:
        return
    found = forecast(lab, stage_s, config.study, config.policy, config.finalists, asked, slots)
    log.info("%s", describe_forecast(found, lab.placement.step_s, config.study))


@contextmanager
def telling_memory(records: Sequence[TrialRecord]) -> Iterator[None]:
    """Says at the end, whatever that is, how much memory the search held at most.

    Args:
        records: Of all trials; those that are still to come are added to it.
    """
    try:
        yield
    finally:
        own_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        workers = [record.worker_rss_bytes for record in records if record.worker_rss_bytes]
        beside = f", a worker {format_bytes(max(workers))}" if workers else ""
        log.info("most memory held: this process %s%s", format_bytes(own_bytes), beside)


def server_address(uri: str | None) -> str:
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


def show_front(console: Console, study: Study, page: str, found_by: str) -> None:
    """Prints the front and what can be done with it.

    Args:
        console: Where to.
        study: Whose.
        page: Address of its page in MLflow.
        found_by: Overrides by which other commands find it.
    """
    records, closing, objectives = study.records, study.closing, study.objectives
    members = front(records, objectives)
    console.print()
    if closing is not None:
        console.print(finalist_table(closing.finalists))
    else:
        console.print(front_table(members, original(records)))
    for remark in describe_result(records, members, objectives, closing, study.canaries):
        console.print(f"\n{remark}", markup=False)
    hints = f"\nLook at it:   {page}\nPick from it: {home.command('pick')} {found_by}"
    console.print(hints, soft_wrap=True, markup=False)  # a broken link could not be clicked
