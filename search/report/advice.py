"""Says why nothing beats the original, and which settings may change that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from search.front.front import leading, loss_matrix
from search.process import home
from search.records.closing import Closing, Finalist
from search.records.formats import format_counted
from search.records.measurement import Canary
from search.records.trial import (
    CompleteTrial,
    FailedTrial,
    Figures,
    Progress,
    ScoredTrial,
    StoppedTrial,
    TrialRecord,
)
from search.report.profile import describe_later, describe_noise

PRUNE = "prune more (a larger space.prune_ratio.high)"
TRAIN = "train longer (a larger train.epochs) or prune less (a smaller space.prune_ratio.high)"
SAVE = (
    f"{PRUNE} or allow other space.bits and space.threads; "
    f"{home.command('explain')} says where the time goes"
)
MEASURE = "measure longer (a larger device.budget_s) or on a quieter machine"
# What befell a trial, for one and for several, and what to do about it.
CAUSES: Mapping[str, tuple[str, str, str]] = {
    "min_accuracy_share": (
        "is little better than guessing",
        "are little better than guessing",
        TRAIN,
    ),
    "max_accuracy_drop": (
        "loses more than objective.max_accuracy_drop",
        "lose more than objective.max_accuracy_drop",
        f"{TRAIN}, or allow a larger objective.max_accuracy_drop",
    ),
    "max_latency_ms": (
        "takes longer than objective.max_latency_ms",
        "take longer than objective.max_latency_ms",
        f"{SAVE}; or allow a larger objective.max_latency_ms",
    ),
    "max_size_bytes": (
        "is larger than objective.max_size_bytes",
        "are larger than objective.max_size_bytes",
        f"{PRUNE} or allow fewer space.bits; or allow a larger objective.max_size_bytes",
    ),
    "max_memory_bytes": (
        "takes more than objective.max_memory_bytes",
        "take more than objective.max_memory_bytes",
        f"{PRUNE}; or allow a larger objective.max_memory_bytes",
    ),
    "poor": (
        "was measured too poorly to tell",
        "were measured too poorly to tell",
        MEASURE,
    ),
    "slow": (
        "is not measurably faster than the original",
        "are not measurably faster than the original",
        SAVE,
    ),
    "worse": (
        "is better than the original in nothing that counts",
        "are better than the original in nothing that counts",
        f"{TRAIN}; or {SAVE}",
    ),
    "untrained": (
        "was not trained, because it saves too little time",
        "were not trained, because they save too little time",
        SAVE,
    ),
    "stopped": (
        "was stopped before the end of its training",
        "were stopped before the end of their training",
        "let all train to their end (policy.eta=null)",
    ),
    "closing": (
        "did not keep its advantage in the closing round",
        "did not keep their advantage in the closing round",
        "train finalists on for longer (a larger finalists.epochs) or measure them longer (a "
        "larger finalists.budget_s)",
    ),
    "impossible": (
        "cannot be built",
        "cannot be built",
        "see the reasons of these trials",
    ),
    "failed": (
        "failed",
        "failed",
        "see the reasons of these trials",
    ),
}
ADVISED = 2  # causes, the most frequent first


def describe_result(
    records: Sequence[TrialRecord],
    members: Sequence[CompleteTrial],
    objectives: Sequence[str],
    closing: Closing | None,
    canaries: Sequence[Canary],
) -> list[str]:
    """Returns what should be known before one relies on a study's figures, a remark each.

    Args:
        records: Finished trials.
        members: The search's front.
        objectives: Names of what it trades.
        closing: What the closing round found.
        canaries: What the device made of two copies of one model.
    """
    finalists = () if closing is None else closing.finalists
    front = [record.number for record in members]
    remarks = (
        describe_no_gain(records, front, objectives, finalists),
        describe_later(closing, len(records), leading(members, objectives)),
        describe_noise(canaries, records),
    )
    return [remark for remark in remarks if remark]


def describe_no_gain(
    records: Sequence[TrialRecord],
    front: Collection[int],
    objectives: Sequence[str],
    finalists: Sequence[Finalist] = (),
) -> str:
    """Says in a few sentences why nothing beats the original, and what to change; else empty.

    Args:
        records: Finished trials.
        front: Numbers of those on the search's front.
        objectives: Names of what the front trades.
        finalists: The closing round's; with some, its front is what counts.
    """
    others = [record for record in records if not record.is_original]
    original = next((record for record in records if record.is_original), None)
    if original is None:
        return ""
    scored = [record for record in others if isinstance(record, ScoredTrial)]
    members = [record for record in scored if record.number in front]
    is_found = any(_is_better(member, original, objectives) for member in members)
    if _is_confirmed(finalists) if finalists else is_found:
        return ""
    if original.violations.get("min_accuracy_share", 0.0) > 0:
        return (
            "The original itself is no better than guessing, and a front found from it would be "
            "worth nothing: check data.mean, data.std and the order of the classes against the "
            "training of model.checkpoint, or give a larger train.teacher_epochs; "
            "objective.min_accuracy_share=0 takes any accuracy."
        )
    if not others:
        return "Only the original was tried so far: a larger study.n_trials tries more."
    closed = {finalist.number for finalist in finalists}
    causes = Counter(_cause(record, original, record.number in closed) for record in others)
    told = ", ".join(
        f"{format_counted(many, 'trial')} {CAUSES[cause][0 if many == 1 else 1]}"
        for cause, many in causes.most_common()
    )
    advice = list(dict.fromkeys(CAUSES[cause][2] for cause, _ in causes.most_common(ADVISED)))
    if not any(
        record.figures and record.figures.channels_removed for record in others
    ):  # perhaps nothing can go
        advice = [one.replace(f"{PRUNE} or ", "").replace(f"{PRUNE}; or ", "") for one in advice]
    what = "Nothing beats the original so far"
    if original.outcome == "infeasible":
        what = "Nothing keeps the limits of the study so far, nor does the original"
    return f"{what}: {told}. What may change that: {'; '.join(advice)}."


def _is_better(record: ScoredTrial, original: TrialRecord, objectives: Sequence[str]) -> bool:
    """Whether a point of the front beats the original, in latency by more than its noise."""
    if not isinstance(original, CompleteTrial):
        return True  # of the two it alone keeps the limits
    if "latency" in objectives and record.figures.speedup_low > 1:
        return True
    others = [name for name in objectives if name != "latency"]
    own, whole = loss_matrix([record, original], others)
    return bool((own < whole).any())


def _is_confirmed(finalists: Sequence[Finalist]) -> bool:
    """Whether a point other than the original stands, and is not only tied with it."""
    standing = [finalist for finalist in finalists if finalist.stands]
    tie = next((f.tie for f in standing if f.is_original), None)
    return any(not f.is_original and (f.tie is None or f.tie != tie) for f in standing)


def _cause(record: TrialRecord, original: TrialRecord, closed: bool) -> str:
    """Returns the key in ``CAUSES`` of what kept a trial from beating the original."""
    match record:
        case FailedTrial():
            return "failed"
        case StoppedTrial():
            return "stopped" if isinstance(record.figures, Progress) else "untrained"
        case CompleteTrial():
            return "closing" if closed else _cause_of_complete(record.figures, original)
    broken = (name for name, excess in record.violations.items() if excess > 0)
    return next(broken, "impossible")


def _cause_of_complete(figures: Figures, original: TrialRecord) -> str:
    if original.figures is None:
        return "worse"
    whole_ms = original.figures.latency_ms
    if figures.latency_ms < whole_ms and figures.speedup_low > 1:
        return "worse"
    is_open = figures.quality == "poor" and figures.latency_interval_ms[0] < whole_ms
    return "poor" if is_open else "slow"
