"""Says why nothing beats the original, and which settings may change that; knows no page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from search import home
from search.front import leading, losses
from search.records import Canary, Closing, Finalist, TrialRecord
from search.report.points import ORIGINAL
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
    members: Sequence[TrialRecord],
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
    firsts = [record.number for record in leading(members, objectives)]
    remarks = (
        describe_no_gain(records, front, objectives, finalists),
        describe_later(closing, len(records), firsts),
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
    others = [record for record in records if record.number != ORIGINAL]
    original = next((record for record in records if record.number == ORIGINAL), None)
    if original is None:
        return ""
    members = [record for record in others if record.number in front]
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
        f"{many} {CAUSES[cause][0 if many == 1 else 1]}" for cause, many in causes.most_common()
    )
    advice = list(dict.fromkeys(CAUSES[cause][2] for cause, _ in causes.most_common(ADVISED)))
    if not any(record.figures.channels_removed for record in others):  # perhaps nothing can go
        advice = [one.replace(f"{PRUNE} or ", "").replace(f"{PRUNE}; or ", "") for one in advice]
    what = "Nothing beats the original so far"
    if original.outcome == "infeasible":
        what = "Nothing keeps the limits of the study so far, nor does the original"
    return f"{what}: of the other trials {told}. What may change that: {'; '.join(advice)}."


def _is_better(record: TrialRecord, original: TrialRecord, objectives: Sequence[str]) -> bool:
    """Whether a point of the front beats the original, in latency by more than its noise."""
    if original.outcome != "complete":
        return True  # of the two it alone keeps the limits
    if "latency" in objectives and (record.figures.speedup_low or 0.0) > 1:
        return True
    others = [name for name in objectives if name != "latency"]
    own, whole = losses(record.figures, others), losses(original.figures, others)
    if own is None or whole is None:
        return False
    return any(loss < most for loss, most in zip(own, whole, strict=True))


def _is_confirmed(finalists: Sequence[Finalist]) -> bool:
    """Whether a point other than the original stands, and is not only tied with it."""
    standing = [finalist for finalist in finalists if finalist.stands]
    tie = next((f.tie for f in standing if f.number == ORIGINAL), None)
    return any(f.number != ORIGINAL and (f.tie is None or f.tie != tie) for f in standing)


def _cause(record: TrialRecord, original: TrialRecord, closed: bool) -> str:
    """Returns the key in ``CAUSES`` of what kept a trial from beating the original."""
    figures = record.figures
    match record.outcome:
        case "failed":
            return "failed"
        case "stopped":
            return "untrained" if figures.float_accuracy is None else "stopped"
        case "infeasible":
            broken = (name for name, excess in record.violations.items() if excess > 0)
            return next(broken, "impossible")
    if closed:
        return "closing"
    latency_ms, whole_ms = figures.latency_ms, original.figures.latency_ms
    is_faster = (figures.speedup_low or 0.0) > 1
    if latency_ms is None or whole_ms is None or (latency_ms < whole_ms and is_faster):
        return "worse"
    interval_ms = figures.latency_interval_ms
    is_open = figures.measuring == "poor" and interval_ms is not None and interval_ms[0] < whole_ms
    return "poor" if is_open else "slow"
