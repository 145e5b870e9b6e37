"""Writes the model card of a bundle.

Its sections follow Mitchell et al., "Model Cards for Model Reporting", 2019 (arXiv 1810.03993).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from search.front.candidates import Candidate
from search.records.bench import Lab
from search.records.formats import (
    DASH,
    format_bits,
    format_bytes,
    format_count,
    format_counted,
    format_ms,
    format_ms_interval,
    format_share,
    format_speedup,
)
from search.records.trial import ScoredTrial
from search.report.description import describe_recipe
from search.report.table import escape_markdown

if TYPE_CHECKING:
    from search.bundle.facts import Facts

# Of a study's configuration, what a model depends on and what holds neither paths nor secrets. A
# study that goes on keeps all of it. Not finalists.*: they may be those of a later run.
REPRODUCED = {
    "model": ("name", "title", "width", "factory"),
    "data": ("name", "factory", "channels", "image_size", "validation_share"),
    "train": (
        "device", "precision", "batch_size", "epochs", "rungs", "weight_decay", "teacher_epochs",
        "teacher_learning_rate", "teacher_weight_decay", "calibration_images",
    ),
}  # fmt: skip


def write_card(facts: Facts) -> str:
    """Returns the card as Markdown; what users put into names is shown as it is, never run."""
    sections = [
        _title(facts),
        _use(facts.lab),
        _figures(facts),
        _data(facts.lab),
        _making(facts.lab, facts.record),
        _measuring(facts),
        _limits(facts),
        _reproduction(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _title(facts: Facts) -> str:
    candidate, bench = facts.candidate, facts.lab.bench
    return (
        f"# {escape_markdown(facts.study)}, trial {candidate.number}\n\n"
        f"Sorts {_images(bench.data.image_shape)} into "
        f"{bench.data.classes} classes: "
        f"{_accuracy(candidate)} of the test images right, {_batch(facts.lab)} in "
        f"{format_ms(candidate.figures.latency_ms)} with "
        f"{format_counted(candidate.point.whole('threads'), 'thread')} on {_device(facts.lab)}."
    )


def _use(lab: Lab) -> str:
    channels, height, width = lab.bench.data.image_shape
    return f"""## Use

```sh
pip install -r requirements.txt
python predict.py image.png   # probabilities of the classes
python predict.py --verify    # are the files whole, does this machine compute the same?
python predict.py --bench     # how fast is it here?
```

`model.onnx` takes pixels `[n, {channels}, {height}, {width}]` in 0..1 (normalisation is inside) and
gives logits; `runtime.json` holds the session options that it was measured with, and wants."""


def _figures(facts: Facts) -> str:
    columns = [("This model", facts.candidate)]
    if facts.original is not None and facts.original.number != facts.candidate.number:
        columns.append(("The original", facts.original))
    rows = [
        ("Accuracy on test, 95 % interval", _accuracy),
        ("Accuracy on validation", lambda c: format_share(c.figures.val_accuracy)),
        ("Latency, interval", _latency),
        (
            "Speed-up over the original at its best thread count",
            lambda c: format_speedup(c.figures),
        ),
        ("99th percentile, raw", lambda c: format_ms(c.figures.p99_ms)),
        ("Threads", lambda c: str(c.point["threads"])),
        ("Processor time of one run", lambda c: format_ms(c.figures.cpu_ms)),
        ("File", lambda c: format_bytes(c.figures.size_bytes)),
        ("Peak memory of a process", lambda c: format_bytes(c.figures.peak_rss_bytes)),
        ("Cold start", lambda c: format_ms(c.figures.cold_start_ms)),
        ("Multiply-accumulates", lambda c: format_count(c.figures.macs)),
        ("Parameters", lambda c: format_count(c.figures.parameters)),
        ("Bits", lambda c: format_bits(c.point.whole("bits"), c.figures.effective_bits)),
    ]
    lines = ["## Figures", "", f"| | {' | '.join(name for name, _ in columns)} |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {name} | {' | '.join(show(c) for _, c in columns)} |" for name, show in rows]
    return "\n".join(lines)


def _data(lab: Lab) -> str:
    data = lab.bench.data
    train, validation, test = data.sizes
    labels = ", ".join(escape_markdown(label) for label in data.labels)
    return (
        f"## Data\n\n{escape_markdown(data.config.name)}: {train} training, {validation} "
        f"validation and {test} test images, {_images(data.image_shape)}. Its fingerprint is "
        f"`{data.fingerprint}`. The classes: {labels}."
    )


def _making(lab: Lab, record: ScoredTrial) -> str:
    bench = lab.bench
    if bench.checkpoint is None:
        origin = f"was trained for {format_counted(bench.train.teacher_epochs, 'epoch')}"
    else:
        origin = f"was given as a checkpoint (SHA-256 `{bench.checkpoint.sha256}`)"
    # What lost no channels is not fine-tuned, and without distillation nobody teaches.
    is_taught = record.figures.is_changed and record.point.number("distill_weight") > 0
    teacher = (
        f"The original, {escape_markdown(bench.spec.name)} with "
        f"{format_count(lab.teacher.network.parameters)} parameters, {origin}; it has "
        f"{format_share(lab.teacher.val_accuracy)} on validation"
        f"{' and taught this model' if is_taught else ''}."
    )
    return f"## How it was made\n\n{teacher}\n\nThis model: {describe_recipe(record)}."


def _measuring(facts: Facts) -> str:
    device, candidate = facts.lab.bench.device, facts.candidate
    flags = ", ".join(device.flags) or "no instruction sets that matter here"
    how = (
        "measured together with the other finalists; its interval holds for all of them together"
        if candidate.confirmed
        else "measured in the search, not in a closing round"
    )
    return (
        f"## How latency was measured\n\nOn {_device(facts.lab)} ({device.arch}; {flags}) in "
        f"{device.runtime}, with batches of {facts.lab.bench.measuring.batch_size}; {how}. Model "
        "and original ran in fresh processes that took turns; the latency is the original's, "
        "times the ratio of the two. Percentiles are raw times of a single stream."
    )


def _limits(facts: Facts) -> str:
    # Not what is known of the device by now: that changes with every trial, and the pick does not.
    is_poor = facts.candidate.figures.quality == "poor"
    remark = "\n- The latency could not be measured within ±5 %." if is_poor else ""
    return f"""## Limits

- The accuracy holds for images like those of the test split; nothing was tested beyond them:
  neither other sources, nor noise, nor attacks, nor groups of people.
- Every image is given a class, also one that shows none of them.
- The latency holds for that processor and that version of the runtime: `--bench` tells of others.
- Whether the data may be used for your purpose was not looked into.{remark}"""


def _reproduction(facts: Facts) -> str:
    bench, values = facts.lab.bench, facts.candidate.point.values
    point = ", ".join(f"{name}={value!r}" for name, value in values.items())
    settings = yaml.safe_dump(_settings(facts), sort_keys=False, allow_unicode=True).rstrip()
    # A fence that is longer than any run of backticks inside cannot be closed by one.
    fence = "`" * (3 + max((len(run) for run in settings.split() if set(run) == {"`"}), default=0))
    return (
        f"## How to make it again\n\nSearch with these settings and the seed {bench.seed}; the "
        f"point is `{point}`. Folders and the arguments of factories are left out; a checkpoint is "
        "named by its digest. The file that was measured, which lacks this one's metadata, has "
        f"the SHA-256 `{facts.candidate.deployable.model.sha256}`.\n\n"
        f"{fence}yaml\n{settings}\n{fence}"
    )


def _settings(facts: Facts) -> dict[str, dict[str, Any]]:
    """Returns what the pick depends on, as the configuration has it."""
    everything, bench = yaml.safe_load(facts.configuration), facts.lab.bench
    kept = {
        section: {key: given[key] for key in keys if key in given}
        for section, keys in REPRODUCED.items()
        if (given := everything.get(section)) is not None
    }
    if bench.checkpoint is not None:
        kept.setdefault("model", {})["checkpoint"] = f"sha256:{bench.checkpoint.sha256}"
    # As they were found: given or not, they are the same, and a study goes on with either.
    statistics = {"mean": list(bench.data.mean), "std": list(bench.data.std)}
    kept.setdefault("data", {}).update(statistics)
    return kept


def _batch(lab: Lab) -> str:
    size = lab.bench.measuring.batch_size
    return "one image" if size == 1 else f"a batch of {size} images"


def _accuracy(candidate: Candidate) -> str:
    low, high = 100 * candidate.accuracy_low, 100 * candidate.accuracy_high
    return f"{format_share(candidate.accuracy)} [{low:.2f}{DASH}{high:.2f}]"


def _latency(candidate: Candidate) -> str:
    return format_ms_interval(candidate.latency_ms, *candidate.figures.latency_interval_ms)


def _images(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    kind = {1: "grey ", 3: "colour "}.get(channels, f"{channels}-channel ")
    return f"{kind}images of {width}\N{MULTIPLICATION SIGN}{height} pixels"


def _device(lab: Lab) -> str:
    device = lab.bench.device
    return f"{escape_markdown(device.name)} ({escape_markdown(device.cpu)})"
