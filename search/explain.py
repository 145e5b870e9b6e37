"""The command line ``python -m search.explain study=NAME trial=N``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from search.cli import command as cli
from search.config.commands import ExplainConfig
from search.config.parsing import parse
from search.errors import ConfigError, FileLost
from search.process.leaving import leave_after

if TYPE_CHECKING:
    from search.engine.base import Event
    from search.records.bench import Lab
    from search.records.closing import Finalist
    from search.records.deployable import Deployable
    from search.records.trial import Figures, ScoredTrial
    from search.study.archive import Archive


class Subject(NamedTuple):
    """The trial that is to be explained: its model, how it is run, what was found."""

    number: int
    deployable: Deployable
    threads: int
    figures: Figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``search.explain`` and returns its exit status."""
    check = partial(parse, shape=ExplainConfig)
    return cli.main(lambda raw, _: explain(check(raw)), arguments, "explain", check)


def explain(config: ExplainConfig) -> int:
    """Profiles a trial's model beside the original, unless that is remembered, and says why.

    Returns:
        Exit status.
    """
    # Imported here, so that --help and a mistyped override answer at once.
    from rich.console import Console

    from search.cli.progress import configure_logging
    from search.engine.driving import ResourceUsage, drive
    from search.engine.inline import InlineEngine
    from search.engine.store import Store
    from search.recipes.deploying import profile
    from search.report.explanation import explain as make_explanation
    from search.report.explanation import explanation_text
    from search.storage import open_ledgers
    from search.study.archive import read_archive

    console = Console()
    configure_logging(console)
    ledgers = open_ledgers(config.storage, cli.STATE / "studies")
    archive = read_archive(ledgers, config.study, "study")
    subject, lab = choose(archive, config.trial), archive.lab
    device = lab.bench.device

    def announce(event: Event) -> None:
        if event.state != "began":
            return
        _check_device(lab)
        console.print(f"profiling on {device.name} ...", markup=False)

    store = Store(cli.STATE / "store")
    try:
        store.read(subject.deployable.model)
    except FileLost as lost:
        raise ConfigError(
            f"trial={subject.number}: its model {lost}; its run in MLflow holds a copy: put that "
            "there, or explain another trial"
        ) from lost
    engine = InlineEngine(store, announce)
    usage = ResourceUsage()
    found = drive(profile(subject.deployable, subject.threads, lab), engine, usage)
    if usage.reused_steps:
        folder = cli.STATE / "store" / "steps" / "profile"
        console.print(f"remembered; to measure it again, remove {folder}", markup=False)
    explanation = make_explanation(
        subject.number,
        subject.figures,
        found,
        lab.teacher.network.macs,
        device.round_to,
        config.top,
    )
    console.print()
    console.print(explanation_text(explanation))
    return 0


def _check_device(lab: Lab) -> None:
    """Refuses another device than the study's, whose figures a profile is shown beside.

    Raises:
        ConfigError: When that is what now answers.
    """
    from search.devices.reaching import describe_device

    then, now = lab.bench.device, describe_device(lab.bench.measuring)
    for name in ("cpu", "runtime"):
        if getattr(now, name) != getattr(then, name):
            raise ConfigError(
                f"the device {then.name} is {getattr(now, name)}, but the study was measured on "
                f"{getattr(then, name)}; latencies do not compare: explain it there"
            )


def choose(archive: Archive, number: int | None) -> Subject:
    """Returns what has the model of trial ``number``: the finalist, or else the trial.

    Raises:
        ConfigError: When no number is given, or that trial has no model; says which have one.
    """
    from search.records.trial import ScoredTrial

    finalists = archive.closing.finalists if archive.closing is not None else ()
    # A finalist's model takes the place of its trial's.
    scored = [record for record in archive.records if isinstance(record, ScoredTrial)]
    known: tuple[ScoredTrial | Finalist, ...] = (*scored, *finalists)
    subjects = {
        one.number: Subject(one.number, one.deployable, one.point.whole("threads"), one.figures)
        for one in known
    }
    if number in subjects:
        return subjects[number]
    if number is not None:
        there = any(record.number == number for record in archive.records)
        raise ConfigError(
            f"trial={number}: {'has no model' if there else 'there is no such trial'}; with a "
            f"model there are {_list(subjects)}"
        )
    from search.front.front import front

    standing = [finalist.number for finalist in finalists if finalist.stands]
    members = standing or [r.number for r in front(archive.records, archive.objectives)]
    raise ConfigError(
        f"trial is not given; add trial=...: on the front of {archive.name} are {_list(members)}"
    )


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "none"


if __name__ == "__main__":
    leave_after(main)
