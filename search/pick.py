"""The picking of candidates, ``python -m search.pick [overrides]``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from search.cli import command as cli
from search.config.commands import PickConfig
from search.config.parsing import parse
from search.errors import ConfigError, FileLost, NotMet, StageFailed
from search.process import home
from search.process.leaving import leave_after

if TYPE_CHECKING:
    from rich.console import Console

    from search.bundle import Facts
    from search.engine.base import Event
    from search.engine.inline import InlineEngine
    from search.engine.store import Store
    from search.front.candidates import Candidate, Offer
    from search.front.promotion import Champion
    from search.records.bench import Bench
    from search.records.score import Score
    from search.study.archive import Archive
    from search.tracking.registry import Registered, Registry

RULES = (
    "trial", "prefer", "max_latency_ms", "max_p99_ms", "min_accuracy", "max_accuracy_drop",
    "max_size_bytes",
)  # fmt: skip
TARGETS = ("out", "promote", "dry_run", "force", "reason")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``search.pick`` and returns its exit status."""
    check = partial(parse, shape=PickConfig)
    return cli.main(lambda raw, _: pick(check(raw)), arguments, "pick", check)


def pick(config: PickConfig) -> int:
    """Lists a study's front, or picks a point of it by the user's rules.

    Returns:
        Exit status.

    Raises:
        NotMet: When no point keeps the limits, or the gate refuses the promotion.
    """
    from rich.console import Console

    from search.cli.progress import configure_logging
    from search.front.candidates import offer
    from search.storage import open_ledgers
    from search.study.archive import read_archive

    _check(config)
    console = Console()
    configure_logging(console)
    ledgers = open_ledgers(config.storage, cli.STATE / "studies")
    archive = read_archive(ledgers, config.study, "study")
    bench = archive.lab.bench
    offered = offer(archive.records, archive.closing, archive.objectives, bench.data.sizes[1])
    if not offered.candidates:
        raise ConfigError(f"study={archive.name}: {_nothing_to_pick(archive)}")
    if all(getattr(config, rule) is None for rule in RULES):
        _list(console, archive, offered, f"study={archive.name}{ledgers.arguments}")
        return 0
    chosen = _choose(config, offered)
    _show(console, archive, offered, chosen)
    if config.dry_run:
        console.print("\nNothing was written: dry_run=true.")
        return 0
    return _ship(config, console, archive, offered, chosen)


def _nothing_to_pick(archive: Archive) -> str:
    from search.records.formats import format_outcomes
    from search.report import describe_no_gain

    finalists = [] if archive.closing is None else archive.closing.finalists
    if finalists:
        reasons = "; ".join(f"{one.number}: {one.reason}" for one in finalists)
        return f"no point of the closing round keeps the study's limits ({reasons})"
    infeasible = [record.reason for record in archive.records if record.outcome == "infeasible"]
    latest = f"; the latest infeasible one {infeasible[-1]}" if infeasible else ""
    remedy = describe_no_gain(archive.records, (), archive.objectives) or "Search on."
    return f"none is complete of {format_outcomes(archive.records)}{latest}. {remedy}"


def _check(config: PickConfig) -> None:
    """Refuses what contradicts itself."""
    ruled = any(getattr(config, rule) is not None for rule in RULES)
    wants = next((key for key in TARGETS if getattr(config, key)), None)
    if wants is not None and not ruled:
        given = str(getattr(config, wants)).lower()
        raise ConfigError(
            f"{wants}={given}: no point is picked; give trial=..., prefer=... or a limit"
        )
    if config.trial is not None and config.prefer is not None:
        raise ConfigError(
            f"prefer={config.prefer}: trial={config.trial} is one point already; leave one out"
        )
    if config.force and not (config.promote and (config.reason or "").strip()):
        raise ConfigError("force=true: goes with promote=true and reason='...', which is recorded")
    if config.reason is not None and not config.promote:
        raise ConfigError("reason='...': goes with promote=true, where it is recorded")
    if config.out is not None and config.out.strip() in ("", ".", "/"):
        raise ConfigError(f"out={config.out!r}: give a folder of its own, which may not exist yet")


def _choose(config: PickConfig, offered: Offer) -> Candidate:
    from search.front.choosing import choose, limits_of, preference

    limits = limits_of(config, offered.original)
    among = offered.candidates if config.trial is None else (offered.find(config.trial),)
    return among[choose(among, limits, preference(config))]


# ---- showing


def _list(console: Console, archive: Archive, offered: Offer, found_by: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from search.front.choosing import recommend
    from search.records.formats import format_ms, format_share
    from search.report.offer import offer_table

    console.print(_heading(archive), markup=False)
    console.print()
    console.print(offer_table(offered))
    for line in _remarks(archive):
        console.print(line, markup=False)
    console.print()
    table = Table.grid(padding=(0, 2))
    allowed = archive.lab.bench.limits.max_accuracy_drop
    for name, (candidate, reason) in recommend(offered, allowed).items():
        figures = f"{format_ms(candidate.latency_ms)}, {format_share(candidate.accuracy)}"
        cells = (name, f"trial {candidate.number}", figures, reason)
        table.add_row(*map(Text, cells))
    console.print(table)
    console.print(
        f"\nPick one:    {home.command('pick')} {found_by} trial=NUMBER\n"
        f"or by rules: {home.command('pick')} {found_by} max_latency_ms=... prefer=...",
        soft_wrap=True,
        markup=False,
    )


def _heading(archive: Archive) -> str:
    from search.records.formats import format_counted

    bench = archive.lab.bench
    return (
        f"{archive.name}: {format_counted(len(archive.records), 'trial')} on "
        f"{bench.data.config.name}, measured on {bench.device.name} ({bench.device.cpu})"
    )


def _remarks(archive: Archive) -> list[str]:
    """Returns what should be known before one relies on the figures."""
    from search.front.front import front
    from search.report import describe_result

    closing = archive.closing
    members = front(archive.records, archive.objectives)
    canaries = () if closing is None else closing.canaries
    return describe_result(archive.records, members, archive.objectives, closing, canaries)


def _show(console: Console, archive: Archive, offered: Offer, chosen: Candidate) -> None:
    """Prints the picked point, and what speaks against it."""
    from search.report.offer import describe

    console.print(describe(chosen), markup=False, soft_wrap=True)
    tied = [c.number for c in offered.candidates if chosen.tie is not None and c.tie == chosen.tie]
    if tied:
        names = ", ".join(str(number) for number in tied if number != chosen.number)
        console.print(f"Neither latency nor accuracy tells it from trial {names}.", markup=False)
    if chosen not in offered.candidates:
        console.print(f"It is not on the front{chosen.left}.", markup=False)
    for line in _remarks(archive):
        console.print(line, markup=False)


# ---- shipping


def _ship(
    config: PickConfig, console: Console, archive: Archive, offered: Offer, chosen: Candidate
) -> int:
    """Writes, verifies and registers the bundle; promotes it if that is asked for."""
    from search.bundle import compose, write
    from search.bundle.contents import sample_images
    from search.engine.inline import InlineEngine
    from search.engine.store import Store
    from search.front.promotion import facts_for_comparison
    from search.report.offer import describe
    from search.tracking.registry import Registry

    store = Store(cli.STATE / "store")

    def announce(event: Event) -> None:
        if event.state == "began":
            console.print("scoring on the test split ...")

    engine = InlineEngine(store, announce)
    model = _read_model(chosen, store)  # this and the next before the work that needs them
    registry = Registry(config.tracking, cli.STATE, archive.name)
    registry.run_of(archive.identity, chosen.number)
    facts, score = _gather(archive, offered, chosen, engine)
    target = Path(config.out).expanduser() if config.out else _default_target(archive, chosen)
    is_new = write(target, compose(facts, model, sample_images(facts.lab.bench.data, store.images)))
    done = "written and verified" if is_new else "there already, verified again"
    console.print(f"\nBundle:     {target}  ({done})", soft_wrap=True, markup=False)
    version = registry.register(
        target,
        archive.identity,
        chosen.number,
        describe(facts.candidate),
        facts_for_comparison(facts.candidate, archive.lab),
    )
    found = "registered" if version.is_new else "registered before"
    console.print(
        f"Registered: models:/{archive.name}/{version.version}  ({found}), alias candidate",
        soft_wrap=True,
        markup=False,
    )
    if config.promote:
        _promote(config, console, facts, score, registry, version, engine, store)
    alias = "champion" if config.promote else "candidate"  # what is refused never comes so far
    console.print(
        f"\nTry it:     python {quote(str(target / 'predict.py'))} --bench\n"
        f"Serve it:   MLFLOW_TRACKING_URI={quote(registry.server)} mlflow models serve "
        f"--env-manager local -m models:/{archive.name}@{alias}",
        soft_wrap=True,
        markup=False,
    )
    return 0


def _default_target(archive: Archive, chosen: Candidate) -> Path:
    return cli.STATE / "bundles" / archive.name / f"trial-{chosen.number}"


def _gather(
    archive: Archive, offered: Offer, chosen: Candidate, engine: InlineEngine
) -> tuple[Facts, Score]:
    """Scores the point and the original on the test split, which finalists were already.

    Raises:
        ConfigError: When the model or the data cannot be used any more.
    """
    from search.bundle import Facts
    from search.records.trial import ScoredTrial

    candidate, score = _on_test(chosen, archive, engine)
    scored = (record for record in archive.records if isinstance(record, ScoredTrial))
    first = offered.original
    facts = Facts(
        study=archive.name,
        configuration=archive.configuration,
        lab=archive.lab,
        record=next(r for r in scored if r.number == chosen.number),
        candidate=candidate,
        original=None if first is None else _on_test(first, archive, engine)[0],
    )
    return facts, score


def _on_test(
    candidate: Candidate, archive: Archive, engine: InlineEngine
) -> tuple[Candidate, Score]:
    from search.benchmark.estimates import wilson_interval
    from search.engine.driving import drive
    from search.recipes.deploying import evaluate

    try:
        score = drive(evaluate(candidate.deployable, "test", archive.lab.bench), engine)
    except StageFailed as error:
        raise ConfigError(f"trial {candidate.number} cannot be scored on test: {error}") from error
    low, high = wilson_interval(round(score.accuracy * score.images), score.images)
    scored = replace(
        candidate,
        split="test",
        accuracy=score.accuracy,
        accuracy_low=low,
        accuracy_high=high,
    )
    return scored, score


def _read_model(candidate: Candidate, store: Store) -> bytes:
    try:
        return store.read(candidate.deployable.model)
    except FileLost as lost:
        remedy = (
            "run the search again with study.n_trials=0, which makes it anew"
            if candidate.confirmed
            else "its run in MLflow holds a copy: put that there, or pick another trial"
        )
        raise ConfigError(f"trial {candidate.number}: its model {lost}; {remedy}") from lost


def _promote(
    config: PickConfig,
    console: Console,
    facts: Facts,
    score: Score,
    registry: Registry,
    version: Registered,
    engine: InlineEngine,
    store: Store,
) -> None:
    """Makes a version the champion, if nothing is to be said against it.

    Raises:
        NotMet: When something is, and the user did not force it.
    """
    from search.front.promotion import objections
    from search.front.scores import recognised
    from search.report.departures import broken_limits

    bench, candidate = facts.lab.bench, facts.candidate
    champion = registry.champion()
    if champion is not None and champion.version == version.version:
        console.print("Champion:   it is already")
        return
    first = facts.original
    original = None if first is None else first.accuracy
    against = broken_limits(candidate.figures, candidate.accuracy, original, facts.lab)
    against += objections(
        candidate,
        recognised(score),
        None if champion is None else _meet(champion, registry, bench, engine, store),
        facts.lab,
    )
    if against and not config.force:
        raise NotMet(
            f"not promoted: {'; '.join(against)}; to promote it nevertheless add force=true "
            "reason='...'"
        )
    remark = config.reason or "passed the gate"
    if against:
        remark = f"forced: {config.reason}; against it: {'; '.join(against)}"
    registry.promote(version.version, remark)
    followed = "" if champion is None else f", follows version {champion.version}"
    console.print(f"Champion:   version {version.version}{followed} ({remark})", markup=False)


def _meet(
    found: Registered, registry: Registry, bench: Bench, engine: InlineEngine, store: Store
) -> Champion:
    """Scores the present champion on this study's test split."""
    from search.engine.driving import drive
    from search.front.promotion import Champion
    from search.front.scores import recognised
    from search.recipes.deploying import evaluate
    from search.records.deployable import Deployable
    from search.runtimes import runtimes

    facts = found.facts
    if facts.get("data") != bench.data.fingerprint:
        return Champion(found.version, facts, None)
    file = store.put(registry.model_of(found.version), ".onnx")
    entries = tuple((key, value) for key, value in facts["session_entries"])
    runtime = runtimes()[bench.device.runtime_name]
    deployable = Deployable(file, runtime.name, runtime.formats[facts["bits"]], entries)
    score = drive(evaluate(deployable, "test", bench), engine)
    return Champion(found.version, facts, recognised(score))


if __name__ == "__main__":
    leave_after(main)
