"""A study's records in real MLflow: a SQLite file, and a server on this machine."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from search.config.places import TrackingConfig
from search.engine.store import Store
from search.errors import ConfigError, TrackingLost
from search.records.closing import Closing, Finalist
from search.records.files import File, ReadFile
from search.records.measurement import Canary, Interval
from search.records.trial import CompleteTrial, Outcome, TrialRecord
from search.report.table import front_rows
from search.tracking import tracker as tracker_room
from search.tracking.runs import status_of
from search.tracking.tracker import Tracker
from tests.deployables import make_deployable
from tests.mlflow_server import serve
from tests.plants import plant, plant_finalist
from tests.points import make_point

STUDY = "trial-study"
OBJECTIVES = ("accuracy", "latency")
NOTE = "mlflow.note.content"
MLFLOW_KEEPS_LETTERS = 8000
FIGURES = {
    "float_accuracy": 0.95,
    "latency_ratio": 0.5,
    "latency_ratio_low": 0.4,
    "latency_ratio_high": 0.7,
    "speedup": 2.0,
    "speedup_low": 1.5,
    "speedup_high": 2.5,
    "p50_ms": 0.51,
    "size_bytes": 2048,
    "macs": 1_000_000,
    "parameters": 50_000,
    "peak_rss_bytes": 61 * 1024**2,
    "cpu_ms": 0.75,
    "cold_start_ms": 12.0,
    "effective_bits": 8.0,
    "integer_operators": 3,
    "compute_operators": 4,
    "channels_removed": 0.5,
}
POINT = make_point(
    prune_ratio=0.5,
    bits=8,
    distill_temperature=4.0,
    distill_weight=0.25,
    optimizer="adamw",
    learning_rate=0.003,
    schedule="one_cycle",
    threads=2,
)


def trial(number: int, accuracy: float, latency_ms: float, **changes: Any) -> CompleteTrial:
    """A complete trial whose figures are all known."""
    figures: dict[str, Any] = {**FIGURES, "val_accuracy": accuracy, "latency_ms": latency_ms}
    model = File(f"{number:064x}", ".onnx", 2048)
    known: dict[str, Any] = {
        "point": POINT,
        "deployable": make_deployable(model, 8, (("session.some_entry", "1"),)),
        "stage_s": {"finetune": 3.0, "measure": 1.5},
        "reused_steps": 2,
        "wall_s": 5.0,
        "finished_at": 1_700_000_000.0 + 10 * number,
    }
    record: CompleteTrial = plant(number, "complete", **figures)
    return replace(record, **(known | changes))


def broken(number: int, outcome: Outcome, reason: str) -> TrialRecord:
    """A trial that found out nothing."""
    ended_at: dict[str, Any] = {
        "wall_s": 5.0,
        "finished_at": 1_700_000_000.0 + 10 * number,
        "reused_steps": 2,
    }
    return replace(
        plant(number, outcome, reason, val_accuracy=None), point=POINT, figures=None, **ended_at
    )


# The original's accuracy of 0.90 and 1 ms make a box of 0.20 by 1 ms.
ORIGINAL = trial(0, 0.90, 1.0)
FASTER = trial(1, 0.88, 0.5)
BETTER = trial(2, 0.92, 0.8)
DOMINATED = trial(3, 0.86, 0.9)
FAILED = broken(4, "failed", "stage finetune: loss is <nan>; lower learning_rate")
INFEASIBLE = broken(5, "infeasible", "prune_ratio 0.9 leaves no channel")
RECORDS: list[TrialRecord] = [ORIGINAL, FASTER, BETTER, DOMINATED, FAILED, INFEASIBLE]
HYPERVOLUMES = [0.0, 0.4 * 0.5, 0.4 * 0.5 + 0.6 * 0.2 - 0.4 * 0.2, 0.24, 0.24, 0.24]


def finalist(record: CompleteTrial, test: float, latency_ms: float, **changes: Any) -> Finalist:
    """A point that stands after the closing round."""
    known: dict[str, Any] = {
        "deployable": replace(
            record.deployable, model=File(f"f{record.number:063x}", ".onnx", 1024)
        ),
        "figures": replace(record.figures, latency_ms=latency_ms, speedup=1 / latency_ms),
        "test_accuracy": test,
        "test_low": test - 0.01,
        "test_high": test + 0.01,
    }
    return plant_finalist(record, **(known | changes))


CLOSING = Closing(
    after_trials=6,
    finalists=(
        finalist(FASTER, 0.87, 0.6),
        finalist(
            ORIGINAL, 0.89, 1.0, stands=False, reason="1 is faster and not measurably less accurate"
        ),
    ),
    canaries=(),
)
Open = Callable[..., Tracker]


@pytest.fixture
def state(tmp_path: Path, empty_database: Path) -> Path:
    """A working directory's ``mlruns``."""
    folder = tmp_path / "mlruns"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    return folder


@pytest.fixture
def open_tracker(state: Path) -> Open:
    """Opens the study, as every run of the search does."""

    def opened(
        uri: str | None = None,
        settings: str = "study: {}\n",
        identity: str = "mine",
        **tags: str,
    ) -> Tracker:
        config = TrackingConfig(uri=uri, timeout_s=20.0)
        facts = {"device": "local", **tags}
        return Tracker(config, state, STUDY, identity, OBJECTIVES, facts, settings)

    return opened


@contextmanager
def ended(tracker: Tracker) -> Iterator[Tracker]:
    """Ends what was logged as a search does that comes to its end."""
    yield tracker
    tracker.end("FINISHED")


@pytest.fixture
def client(state: Path) -> MlflowClient:
    """What a user sees."""
    return MlflowClient(f"sqlite:///{state / 'mlflow.db'}")


@pytest.fixture
def models(tmp_path: Path) -> dict[int, ReadFile]:
    """Files that stand for the ONNX models of complete trials."""
    found = {}
    for number in (0, 1, 2, 3):
        path = tmp_path / f"content-{number}.onnx"
        path.write_bytes(model_of(number))
        found[number] = path.read_bytes
    return found


@dataclass(frozen=True)
class Logged:
    """A study that was logged trial by trial and ended, for tests that only look.

    Attributes:
        client: What a user sees.
        state: The working directory's ``mlruns``.
        location: Of its run in MLflow's pages.
        fronts: Numbers on the front after so many trials.
        note: The study's description before its end.
    """

    client: MlflowClient
    state: Path
    location: str
    fronts: dict[int, set[int]]
    note: str


@pytest.fixture(scope="module")
def logged(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """``RECORDS`` as a search logs them."""
    state = tmp_path_factory.mktemp("logged") / "mlruns"
    state.mkdir()
    shutil.copy(empty_database, state / "mlflow.db")
    client = MlflowClient(f"sqlite:///{state / 'mlflow.db'}")
    config = TrackingConfig(uri=None, timeout_s=20.0)
    facts, settings = {"device": "local", "version.torch": "2"}, "train:\n  epochs: 3\n"
    tracker = Tracker(config, state, STUDY, "mine", OBJECTIVES, facts, settings)
    fronts = {}
    for count in range(1, len(RECORDS) + 1):
        tracker.log_trials(RECORDS[:count], {n: partial(model_of, n) for n in range(4)})
        fronts[count] = on_front(client)
    note = parent(client).data.tags[NOTE]
    tracker.end("FINISHED")
    return Logged(client, state, tracker.location, fronts, note)


def model_of(number: int) -> bytes:
    """Stands for a trial's ONNX model."""
    return f"model of {number}\0\n".encode()


def parent(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name(STUDY)
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "tags.kind = 'study'")
    return run


def children(client: MlflowClient) -> dict[int, Run]:
    """Every trial's run; fails where a trial has two."""
    return children_of(client, parent(client))


def children_of(client: MlflowClient, run: Run) -> dict[int, Run]:
    found = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    by_number = {int(child.data.tags["trial"]): child for child in found}
    assert len(by_number) == len(found)
    return by_number


def history(client: MlflowClient, name: str) -> list[tuple[int, float]]:
    metrics = client.get_metric_history(parent(client).info.run_id, name)
    return [(metric.step, metric.value) for metric in metrics]


def read(client: MlflowClient, run: Run, artifact: str, folder: Path) -> bytes:
    return Path(client.download_artifacts(run.info.run_id, artifact, str(folder))).read_bytes()


def on_front(client: MlflowClient) -> set[int]:
    return {n for n, child in children(client).items() if child.data.tags["pareto"] == "true"}


def markdown_rows(note: str) -> list[list[str]]:
    """The cells of the note's table, without its heading."""
    lines = [line for line in note.splitlines() if line.startswith("| ")]
    return [
        [cell.strip() for cell in line.replace("\\", "").strip("| ").split(" | ")]
        for line in lines[2:]
    ]


def test_parent_run_holds_the_study(logged: Logged, tmp_path: Path) -> None:
    client = logged.client
    run = parent(client)
    assert (run.info.status, run.info.run_name) == ("FINISHED", STUDY)
    expected = {"kind": "study", "study": STUDY, "device": "local", "version.torch": "2"}
    assert expected.items() <= run.data.tags.items()
    assert run.data.metrics == pytest.approx(
        {"hypervolume": 0.24, "front_size": 2, "trials_finished": 6}
    )
    artifacts = {entry.path for entry in client.list_artifacts(run.info.run_id)}
    front = {"front.html", "front.json", "front.png", "front-small.png"}
    assert artifacts == {"config.yaml", *front}
    assert read(client, run, "config.yaml", tmp_path) == b"train:\n  epochs: 3\n"
    assert read(client, run, "front.png", tmp_path).startswith(b"\x89PNG")
    assert read(client, run, "front.html", tmp_path).startswith(b"<!DOCTYPE html>")
    summary = json.loads(read(client, run, "front.json", tmp_path))
    assert summary["objectives"] == list(OBJECTIVES)
    ids = {number: child.info.run_id for number, child in children(client).items()}
    assert [(row["number"], row["run_id"]) for row in summary["front"]] == [
        (1, ids[1]),
        (2, ids[2]),
    ]
    assert (summary["original"]["number"], summary["original"]["run_id"]) == (0, ids[0])
    assert "structure" not in summary["original"]["figures"]


def test_the_closing_round_takes_the_front_over(
    open_tracker: Open, client: MlflowClient, models: dict[int, ReadFile], tmp_path: Path
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS, models)
    assert on_front(client) == {1, 2}
    tracker.log_finalists(CLOSING, models)
    tracker.end("FINISHED")
    assert on_front(client) == {1}
    assert parent(client).data.metrics["front_size"] == 1
    metrics = children(client)[1].data.metrics
    assert metrics["test_accuracy"] == 0.87
    assert (metrics["test_accuracy_low"], metrics["test_accuracy_high"]) == (0.86, 0.88)
    assert metrics["final_latency_ms"] == 0.6
    assert metrics["latency_ms"] == 0.5  # as the search saw it
    assert read(client, children(client)[1], "final/model.onnx", tmp_path) == b"model of 1\0\n"
    summary = json.loads(read(client, parent(client), "front.json", tmp_path))
    assert [(row["number"], row["stands"]) for row in summary["finalists"]] == [
        (1, True),
        (0, False),
    ]
    assert [row["number"] for row in summary["front"]] == [1]
    assert summary["front"][0]["test_accuracy"] == 0.87
    assert [row["number"] for row in summary["searched_front"]] == [1, 2]
    view = client.get_experiment(parent(client).info.experiment_id).tags[
        "mlflow.sharedViewState.front"
    ]
    assert json.loads(json.loads(view)["state"])["orderByKey"] == "metrics.`final_latency_ms`"
    told = children(client)[1].data.tags[NOTE]
    assert told.startswith("**Finalist**, on the front: 87.00 % on test (88.00 % on validation) at")
    assert "In the search: 88.00 % on validation at 0.500 ms" in told
    note = parent(client).data.tags[NOTE]
    assert "Front of 1 after 6 trials" in note
    assert "each holds its `final/model.onnx`" in note
    assert "87.00 % [86.0" in note.replace("\\", "")
    assert "1 is faster and not measurably less accurate" in note
    page = read(client, parent(client), "front.html", tmp_path).decode()
    assert "Test accuracy" in page
    before = {n: run.to_dictionary() for n, run in children(client).items()}
    again = open_tracker()
    again.log_trials(RECORDS, models)
    again.log_finalists(CLOSING, models)
    again.end("FINISHED")
    assert {n: run.to_dictionary() for n, run in children(client).items()} == before
    assert history(client, "front_size")[-2:] == [(5, 2), (5, 1)]


def test_a_confirmed_front_stands_until_the_next_one(
    open_tracker: Open, client: MlflowClient, models: dict[int, ReadFile], tmp_path: Path
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS, models)
    tracker.log_finalists(CLOSING, models)
    tracker.end("FINISHED")
    again = open_tracker()  # which is interrupted before its own closing round
    again.keep_front(CLOSING, "<p>told before</p>")
    again.log_trials(RECORDS, models)
    latest = replace(BETTER, number=6, finished_at=BETTER.finished_at + 1)
    again.log_trials([*RECORDS, latest], models | {6: models[2]})
    again.end("KILLED")
    assert on_front(client) == {1}
    note = parent(client).data.tags[NOTE]
    assert "1 trial came after the closing round; study.n_trials=0 holds it again." in note
    assert "87.00 % [86.0" in note.replace("\\", "")
    page = read(client, parent(client), "front.html", tmp_path).decode()
    assert "Test accuracy" in page
    assert "<p>told before</p>" in page
    assert "1 trial came after the closing round" in page


def test_who_is_no_finalist_any_more_is_not_called_one(
    open_tracker: Open, client: MlflowClient, models: dict[int, ReadFile]
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS, models)
    tracker.log_finalists(CLOSING, models)
    later = Closing(6, (finalist(BETTER, 0.91, 0.8),), ())
    tracker.log_finalists(later, models | {2: models[2]})
    tags = {n: run.data.tags.get("finalist") for n, run in children(client).items()}
    assert tags == {0: "false", 1: "false", 2: "true", 3: None, 4: None, 5: None}
    assert on_front(client) == {2}


def test_artifacts_lie_beside_the_database(logged: Logged) -> None:
    beside = (logged.state / "artifacts").as_uri()
    assert parent(logged.client).info.artifact_uri.startswith(beside)


def test_child_run_holds_its_trial(logged: Logged, tmp_path: Path) -> None:
    run = children(logged.client)[1]
    params = {name: str(value) for name, value in POINT.values.items()}
    assert run.data.params == params
    contract = {
        "val_accuracy", "latency_ms", "latency_ratio", "latency_ratio_low", "latency_ratio_high",
        "size_bytes", "macs", "peak_rss_bytes", "cpu_ms",
    }  # fmt: skip
    known = {**FIGURES, "val_accuracy": 0.88, "latency_ms": 0.5}
    expected = {name: known[name] for name in contract}
    assert {name: run.data.metrics[name] for name in contract} == expected
    times = {name: value for name, value in run.data.metrics.items() if name.endswith("_s")}
    assert times == {"finetune_s": 3.0, "measure_s": 1.5, "wall_s": 5.0}
    expected_tags = {"kind": "trial", "trial": "1", "outcome": "complete", "pareto": "true"}
    assert expected_tags.items() <= run.data.tags.items()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "trial 1")
    assert run.info.end_time - run.info.start_time == 5000
    assert read(logged.client, run, "model.onnx", tmp_path) == model_of(1)


def test_child_describes_its_recipe(open_tracker: Open, client: MlflowClient) -> None:
    whole = replace(FASTER.figures, channels_removed=0.0)
    untouched = trial(2, 0.9, 0.8, figures=replace(whole, is_changed=False))
    changed = trial(3, 0.9, 0.8, figures=whole)  # by another technique than pruning
    open_tracker().log_trials([ORIGINAL, FASTER, untouched, changed], {})
    notes = [children(client)[number].data.tags[NOTE] for number in range(4)]
    note = notes[0]
    for part in ("90.00 % on validation at 1.00 ms", "8 bits, 2 threads", "adamw", "one\\_cycle",
                 "50 % of the channels", "intra_op_num_threads=2, session.some_entry=1",
                 parent(client).info.run_id):  # fmt: skip
        assert part in note
    assert ["not fine-tuned" in one for one in notes] == [False, False, True, False]


def test_failed_and_infeasible_trials_say_why_and_have_no_model(logged: Logged) -> None:
    client = logged.client
    runs = children(client)
    assert [runs[n].info.status for n in (4, 5)] == ["FAILED", "FINISHED"]
    assert [runs[n].data.tags["outcome"] for n in (4, 5)] == ["failed", "infeasible"]
    assert runs[4].data.tags["reason"] == FAILED.reason
    # Markdown would swallow what stands in angle brackets.
    assert "**Failed**: stage finetune: loss is &lt;nan&gt;; lower" in runs[4].data.tags[NOTE]
    assert "onnx" not in runs[4].data.tags[NOTE] + runs[5].data.tags[NOTE]
    for number in (4, 5):
        assert client.list_artifacts(runs[number].info.run_id) == []
        assert runs[number].data.metrics == {"wall_s": 5.0, "reused_steps": 2.0}


def test_a_study_that_gains_nothing_says_so(
    open_tracker: Open, client: MlflowClient, tmp_path: Path
) -> None:
    guessing = broken(1, "infeasible", "is little better than guessing: 9.73 %")
    guessing = replace(guessing, violations={"min_accuracy_share": 0.4})
    slow = broken(0, "infeasible", "exceeds max_latency_ms by 1")
    tracker = open_tracker()
    tracker.log_trials([slow, guessing], {})
    tracker.end("FINISHED")
    note = parent(client).data.tags[NOTE]
    assert "1 trial is little better than guessing" in note
    assert "train.epochs" in note
    assert parent(client).data.metrics["front_size"] == 0
    assert on_front(client) == set()
    page = read(client, parent(client), "front.html", tmp_path).decode()
    assert "1 trial is little better than guessing" in page


def test_reason_of_any_length_is_logged(open_tracker: Open, client: MlflowClient) -> None:
    open_tracker().log_trials([broken(0, "failed", "long " * 4000)], {})
    assert children(client)[0].data.tags["reason"].startswith("long long")


def test_quality_is_stepped_by_trial(logged: Logged) -> None:
    client = logged.client
    steps = list(range(6))
    assert [step for step, _ in history(client, "hypervolume")] == steps
    assert [v for _, v in history(client, "hypervolume")] == pytest.approx(HYPERVOLUMES)
    assert history(client, "front_size") == list(zip(steps, [1, 2, 2, 2, 2, 2], strict=True))
    assert history(client, "trials_finished") == [(step, step + 1) for step in steps]


def test_trials_that_end_out_of_turn_are_counted_as_they_end(
    open_tracker: Open, client: MlflowClient
) -> None:
    turns = enumerate((0, 2, 1, 5, 3, 4))
    ended = [replace(RECORDS[n], finished_at=1e9 + turn) for turn, n in turns]
    tracker = open_tracker()
    for count in range(1, 5):
        tracker.log_trials(ended[:count], {})
    assert history(client, "trials_finished") == [(step, step + 1) for step in range(4)]
    # Whoever reads the study later finds its trials by number.
    open_tracker().log_trials(sorted(ended, key=lambda record: record.number), {})
    assert parent(client).data.metrics["trials_finished"] == 6
    assert parent(client).data.metrics["hypervolume"] == pytest.approx(HYPERVOLUMES[-1])


def test_a_trial_that_ends_after_later_ones_is_logged(
    open_tracker: Open, client: MlflowClient
) -> None:
    tracker = open_tracker()
    tracker.log_trials([ORIGINAL, BETTER], {})
    tracker.log_trials([ORIGINAL, FASTER, BETTER], {})
    assert sorted(children(client)) == [0, 1, 2]
    assert on_front(client) == {1, 2}
    assert parent(client).data.metrics["trials_finished"] == 3


def test_pareto_follows_the_front(logged: Logged) -> None:
    assert [logged.fronts[count] for count in (1, 2, 3, 6)] == [{0}, {0, 1}, {1, 2}, {1, 2}]


def test_third_objective_counts(state: Path, client: MlflowClient) -> None:
    objectives = ("accuracy", "latency", "size")
    small = trial(1, 0.1, 9.0, figures=replace(ORIGINAL.figures, size_bytes=10, latency_ms=9.0))
    config = TrackingConfig(uri=None, timeout_s=10.0)
    tracker = Tracker(config, state, STUDY, "mine", objectives, {}, "")
    tracker.log_trials([ORIGINAL, small], {})
    assert on_front(client) == {0, 1}


def test_page_tells_what_decides_when_it_is_drawn(
    state: Path, client: MlflowClient, tmp_path: Path
) -> None:
    asked: list[int] = []

    def importances(records: Sequence[TrialRecord]) -> dict[str, dict[str, float]]:
        asked.append(len(records))
        return {"accuracy": {"learning_rate": 0.9, "bits": 0.1}}

    config = TrackingConfig(uri=None, timeout_s=10.0)
    opened = Tracker(config, state, STUDY, "mine", OBJECTIVES, {}, "", importances)
    with ended(opened) as tracker:
        tracker.log_trials(RECORDS[:2], {})
        tracker.log_trials(RECORDS[:2], {})
    assert asked == [2]
    page = read(client, parent(client), "front.html", tmp_path).decode()
    assert "from 2 complete trials" in page


def test_logging_again_adds_nothing(
    open_tracker: Open, client: MlflowClient, models: dict[int, ReadFile]
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS, models)
    before = {n: run.to_dictionary() for n, run in children(client).items()}
    tracker.log_trials(RECORDS, models)
    assert {n: run.to_dictionary() for n, run in children(client).items()} == before
    assert len(history(client, "hypervolume")) == len(RECORDS)


def test_another_run_of_the_search_goes_on(
    open_tracker: Open, client: MlflowClient, models: dict[int, ReadFile]
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS[:2], models)
    tracker.end("KILLED")
    first = {n: run.info.run_id for n, run in children(client).items()}
    again = open_tracker()
    assert parent(client).info.status == "RUNNING"
    again.log_trials(RECORDS, models)
    again.end("FINISHED")
    runs = children(client)
    assert sorted(runs) == list(range(6))
    assert {n: runs[n].info.run_id for n in first} == first
    assert on_front(client) == {1, 2}
    assert history(client, "trials_finished") == [(step, step + 1) for step in range(6)]
    assert parent(client).info.status == "FINISHED"


@pytest.mark.parametrize("all_but_ended", [False, True])
def test_child_cut_off_half_way_is_replaced(
    open_tracker: Open,
    client: MlflowClient,
    models: dict[int, ReadFile],
    tmp_path: Path,
    all_but_ended: bool,
) -> None:
    open_tracker().log_trials(RECORDS[: 2 if all_but_ended else 1], models)
    if all_but_ended:
        client.update_run(children(client)[1].info.run_id, "RUNNING")
    else:
        tags = {"mlflow.parentRunId": parent(client).info.run_id, "kind": "trial", "trial": "1"}
        client.create_run(parent(client).info.experiment_id, tags=tags)
    cut_off = children(client)[1].info
    assert cut_off.status == "RUNNING"
    open_tracker().log_trials(RECORDS, models)
    run = children(client)[1]
    assert (run.info.run_id != cut_off.run_id, run.info.status) == (True, "FINISHED")
    assert run.data.params
    assert read(client, run, "model.onnx", tmp_path) == models[1]()
    assert history(client, "trials_finished") == [(step, step + 1) for step in range(6)]


def test_runs_that_were_made_late_are_removed(open_tracker: Open, client: MlflowClient) -> None:
    with ended(open_tracker()) as tracker:
        tracker.log_trials(RECORDS[:2], {})
        run = parent(client)
        # As a server does that takes its time over what nobody waits for any more.
        tags = {"mlflow.parentRunId": run.info.run_id, "kind": "trial", "trial": "1"}
        client.create_run(run.info.experiment_id, tags=tags)
        twin = client.create_run(run.info.experiment_id, tags=run.data.tags)
    assert sorted(children_of(client, run)) == [0, 1]
    open_tracker().end("FINISHED")
    assert parent(client).info.run_id == run.info.run_id
    assert client.get_run(twin.info.run_id).info.lifecycle_stage == "deleted"


@pytest.mark.parametrize(("known", "given"), [("FAILED", None), ("KILLED", "KILLED")])
def test_bringing_up_to_date_leaves_a_finished_study_as_it_is(
    known: str, given: str | None, state: Path, open_tracker: Open, client: MlflowClient
) -> None:
    tracker = open_tracker()
    tracker.log_trials(RECORDS, {})
    tracker.end(known, 1_800_000_000.0)
    before = parent(client).to_dictionary()
    config = TrackingConfig(uri=None, timeout_s=10.0)
    late = Tracker(
        config, state, STUDY, "mine", OBJECTIVES, {"device": "local"}, "", is_running=False
    )
    late.log_trials(RECORDS, {})
    late.end(given)
    assert parent(client).to_dictionary() == before


def test_what_was_left_running_counts_as_killed(
    state: Path, open_tracker: Open, client: MlflowClient
) -> None:
    open_tracker().log_trials(RECORDS, {})
    config = TrackingConfig(uri=None, timeout_s=10.0)
    Tracker(config, state, STUDY, "mine", OBJECTIVES, {}, "", is_running=False).end(None)
    assert parent(client).info.status == "KILLED"


def bring_up_to_date(state: Path, models: Mapping[int, ReadFile]) -> int:
    """Shows all again as ``search.sync`` does; returns how many files were restored."""
    config = TrackingConfig(uri=None, timeout_s=10.0)
    facts, settings = {"device": "local"}, "study: {}\n"
    tracker = Tracker(config, state, STUDY, "mine", OBJECTIVES, facts, settings, is_running=False)
    tracker.keep_front(CLOSING, "")
    tracker.log_trials(RECORDS, models)
    tracker.log_finalists(CLOSING, {0: models[0], 1: models[1]})
    tracker.end(None)
    return tracker.restored


@pytest.mark.parametrize("what", ["models", "all", "one"])
def test_removed_artifacts_are_restored(
    what: str,
    open_tracker: Open,
    client: MlflowClient,
    state: Path,
    models: dict[int, ReadFile],
    tmp_path: Path,
) -> None:
    with ended(open_tracker()) as tracker:
        tracker.log_trials(RECORDS, models)
        tracker.log_finalists(CLOSING, {0: models[0], 1: models[1]})
    root = state / "artifacts" / STUDY
    before = {path.relative_to(root): path.stat().st_size for path in root.rglob("*.*")}
    there = len(models) + len(CLOSING.finalists)
    lost = {"models": there, "all": there, "one": 1}[what]
    assert bring_up_to_date(state, models) == 0
    if what == "all":
        shutil.rmtree(root)
    elif what == "models":
        for path in root.rglob("model.onnx"):
            path.unlink()
    else:
        (root / children(client)[1].info.run_id / "artifacts" / "final" / "model.onnx").unlink()
    assert bring_up_to_date(state, models) == lost
    assert {path.relative_to(root): path.stat().st_size for path in root.rglob("*.*")} == before
    assert read(client, children(client)[2], "model.onnx", tmp_path) == models[2]()


def test_another_trial_under_a_number_is_logged_anew(
    open_tracker: Open,
    client: MlflowClient,
    state: Path,
    models: dict[int, ReadFile],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A ledger that lost a line and was gone on with holds other trials than MLflow."""
    with ended(open_tracker()) as tracker:
        tracker.log_trials(RECORDS, models)
    before = children(client)
    latency_ms = 0.75
    others = [
        replace(FASTER, figures=replace(FASTER.figures, latency_ms=latency_ms))
        if r is FASTER
        else r
        for r in RECORDS[:-1]
    ]
    with ended(open_tracker()) as tracker:
        tracker.log_trials(others, models)
    after = children(client)
    assert after.keys() == before.keys() - {RECORDS[-1].number}
    assert {n for n in after if after[n].info.run_id != before[n].info.run_id} == {1}
    assert after[1].data.metrics["latency_ms"] == latency_ms
    assert "another trial than the study holds as number 1: it is logged anew" in caplog.text
    assert f"showed trial {RECORDS[-1].number}, which the study does not hold" in caplog.text
    caplog.clear()
    with ended(open_tracker()) as tracker:
        tracker.log_trials(others, models)
    assert children(client).keys() == after.keys()
    assert "MLflow showed" not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_shown_as_one(
    value: float, open_tracker: Open, client: MlflowClient, state: Path
) -> None:
    odd = replace(FASTER, figures=replace(FASTER.figures, p99_ms=value, cpu_ms=value))
    for _ in range(2):  # it is not taken for another trial either
        open_tracker().log_trials([ORIGINAL, odd], {})
    shown = children(client)[1].data.metrics
    assert {"p99_ms", "cpu_ms"}.isdisjoint(shown)
    assert shown["latency_ms"] == FASTER.figures.latency_ms
    summary = state / "artifacts" / STUDY / parent(client).info.run_id / "artifacts" / "front.json"
    assert any(
        p["number"] == 1 and not p["figures"]["cpu_ms"]
        for p in json.loads(summary.read_text(), parse_constant=lambda name: None)["searched_front"]
    )


@pytest.mark.parametrize("how", ["gone", "damaged"])
def test_a_model_that_is_lost_is_told(
    how: str,
    open_tracker: Open,
    client: MlflowClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(tmp_path)
    file = store.put(b"a model", ".onnx")
    if how == "gone":
        store.path(file).unlink()
    else:
        store.path(file).write_bytes(b"a mOdel")
    open_tracker().log_trials(RECORDS[:1], {0: partial(store.read, file)})
    run = children(client)[0]
    assert run.info.status == "FINISHED"
    assert client.list_artifacts(run.info.run_id) == []
    assert f".onnx is {how}: a trial is logged without its model" in caplog.text


def test_database_cut_off_half_way_is_made_again(tmp_path: Path) -> None:
    # What a kill leaves of MLflow's first seconds, which is the file with some of its tables.
    with closing(sqlite3.connect(tmp_path / "mlflow.db.part")) as part:
        part.execute("CREATE TABLE experiments (experiment_id INTEGER)")
        part.commit()
    (tmp_path / "mlflow.db.part-journal").write_bytes(b"of a transaction")
    config = TrackingConfig(uri=None, timeout_s=10.0)
    Tracker(config, tmp_path, STUDY, "mine", OBJECTIVES, {}, "").log_trials(RECORDS[:1], {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "mlflow.db"]
    # A connection from before the file had its name must not write into another one.
    assert on_front(MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")) == {0}


def test_runs_that_a_user_added_below_the_study_are_left_alone(
    open_tracker: Open, client: MlflowClient
) -> None:
    open_tracker().log_trials(RECORDS[:2], {})
    run = parent(client)
    tags = {"mlflow.parentRunId": run.info.run_id}
    added = client.create_run(run.info.experiment_id, tags=tags)
    open_tracker().log_trials(RECORDS, {})
    assert client.get_run(added.info.run_id).info.lifecycle_stage == "active"


def test_another_study_of_the_same_name_is_left_alone(
    open_tracker: Open, client: MlflowClient
) -> None:
    with ended(open_tracker()) as tracker:
        tracker.log_trials(RECORDS[:3], {})
    mine = parent(client)
    with ended(open_tracker(identity="another")) as tracker:
        tracker.log_trials([DOMINATED, FAILED], {})
    again = client.get_run(mine.info.run_id)
    assert again.to_dictionary() == mine.to_dictionary()
    runs = client.search_runs([mine.info.experiment_id], "tags.kind = 'study'")
    assert len(runs) == 2
    assert [run.data.metrics["trials_finished"] for run in runs] == [2, 3]


@pytest.mark.parametrize(
    ("ended_by", "status"),
    [(None, "FINISHED"), (KeyboardInterrupt, "KILLED"), (ConfigError, "FAILED")],
)
def test_status_says_how_the_study_ended(
    open_tracker: Open,
    client: MlflowClient,
    ended_by: type[BaseException] | None,
    status: str,
) -> None:
    open_tracker().end(status_of(ended_by))
    assert parent(client).info.status == status


def test_deleted_experiment_comes_back(open_tracker: Open, client: MlflowClient) -> None:
    open_tracker().log_trials(RECORDS[:2], {})
    client.delete_experiment(parent(client).info.experiment_id)
    open_tracker().log_trials(RECORDS, {})
    assert sorted(children(client)) == list(range(6))


def test_description_agrees_with_the_front(logged: Logged) -> None:
    client = logged.client
    run = parent(client)
    note = run.data.tags[NOTE]
    assert markdown_rows(note) == [list(row) for row in front_rows([FASTER, BETTER], ORIGINAL)]
    assert "Front of 2 after 6 trials" in note
    assert "tags.pareto = 'true'" in note
    linked = re.findall(r"\[(\w+)\]\(#/experiments/(\d+)/runs/(\w+)\?", note)
    ids = {str(n): child.info.run_id for n, child in children(client).items()}
    assert linked == [(n, run.info.experiment_id, ids[n]) for n in ("1", "2")]
    assert f"/runs/{run.info.run_id}/artifacts/front.html" in note
    assert logged.location.startswith(
        f"/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    )


def test_study_without_a_complete_trial_is_described(
    open_tracker: Open, client: MlflowClient
) -> None:
    tracker = open_tracker()
    tracker.log_trials([], {})
    tracker.log_trials([replace(FAILED, number=0)], {})
    tracker.end("FINISHED")
    assert "No trial is on the front yet" in parent(client).data.tags[NOTE]


def test_long_front_keeps_its_picture_within_what_mlflow_keeps(
    open_tracker: Open, client: MlflowClient
) -> None:
    many = [trial(n, 0.5 + 0.005 * n, 1.0 + 0.1 * n) for n in range(40)]
    open_tracker().log_trials(many, {})
    note = parent(client).data.tags[NOTE]
    assert len(on_front(client)) == 40
    assert "The slower 10 are on the interactive page." in note
    assert len(note) < MLFLOW_KEEPS_LETTERS
    assert note.endswith(f"run_uuid={parent(client).info.run_id})")


def test_closing_shows_the_trials_since_the_front_changed(logged: Logged, tmp_path: Path) -> None:
    assert "after 6 trials" not in logged.note
    run = parent(logged.client)
    assert "after 6 trials" in run.data.tags[NOTE]
    assert b"6 trials" in read(logged.client, run, "front.html", tmp_path)


@pytest.mark.parametrize(("share", "drawn"), [(1e-9, "after 1 trial"), (1e9, "after 3 trials")])
def test_drawing_takes_no_larger_share_of_the_time(
    share: float,
    drawn: str,
    open_tracker: Open,
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracker_room, "DRAWING_SHARE", share)
    tracker = open_tracker()
    for count in range(1, len(RECORDS) + 1):
        tracker.log_trials(RECORDS[:count], {})
        assert on_front(client) == {1: {0}, 2: {0, 1}}.get(count, {1, 2})
    assert drawn in parent(client).data.tags[NOTE]


def test_experiment_leads_to_the_study_and_keeps_what_a_user_wrote(
    open_tracker: Open, client: MlflowClient
) -> None:
    open_tracker()
    run = parent(client)
    tags = client.get_experiment(run.info.experiment_id).tags
    assert run.info.run_id in tags[NOTE]
    view = json.loads(json.loads(tags["mlflow.sharedViewState.front"])["state"])
    found = client.search_runs([run.info.experiment_id], view["searchFilter"])
    assert found == []
    client.set_experiment_tag(run.info.experiment_id, NOTE, "my own words")
    open_tracker().log_trials(RECORDS, {})
    assert client.get_experiment(run.info.experiment_id).tags[NOTE] == "my own words"
    found = client.search_runs(
        [run.info.experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} ASC"]
    )
    assert [child.data.tags["trial"] for child in found] == ["1", "2"]


@pytest.mark.parametrize(
    "uri",
    [
        "http://user:hunter2@127.0.0.1:1",
        "http://user:hunter2@127.0.0.1:1/" + "path/" * 40,
        "http://user:hunter2@no-such-host.invalid",
        "postgresql://user:hunter2@127.0.0.1:1/mlflow",
        "mysql+pymysql://user:hunter2@127.0.0.1:1/mlflow",
    ],
)
def test_passwords_do_not_appear_in_errors(open_tracker: Open, uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_tracker(uri=uri)
    assert "tracking.uri=" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_remote_server_gets_everything(
    open_tracker: Open, server: str, state: Path, models: dict[int, ReadFile], tmp_path: Path
) -> None:
    before = sorted(path.name for path in state.iterdir())
    address = server.replace("http://", "http://user:hunter2@")
    settings = f"tracking:\n  uri: {address}\n"
    tracker = open_tracker(uri=address, settings=settings)
    tracker.log_trials(RECORDS[:3], models)
    tracker.end("KILLED")
    tracker = open_tracker(uri=address, settings=settings)
    tracker.log_trials(RECORDS, models)
    tracker.end("FINISHED")
    client = MlflowClient(server)
    assert sorted(children(client)) == list(range(6))
    assert on_front(client) == {1, 2}
    assert read(client, children(client)[2], "model.onnx", tmp_path) == models[2]()
    assert b"hunter2" not in read(client, parent(client), "config.yaml", tmp_path)
    assert sorted(path.name for path in state.iterdir()) == before


def test_addresses_in_the_description_answer(
    open_tracker: Open, server: str, models: dict[int, ReadFile]
) -> None:
    open_tracker(uri=server).log_trials(RECORDS, models)
    note = parent(MlflowClient(server)).data.tags[NOTE]
    (picture,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", note)
    with urllib.request.urlopen(f"{server}/{picture}", timeout=20) as answer:
        assert answer.read().startswith(b"\x89PNG")


def test_lost_server_is_told_in_one_line_without_the_password(
    open_tracker: Open,
    empty_database: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    with serve(tmp_path, tmp_path / "log") as server:
        tracker = open_tracker(uri=server.address.replace("http://", "http://user:hunter2@"))
        tracker.log_trials(RECORDS[:1], {})
        server.kill()
        started = time.monotonic()
        with pytest.raises(TrackingLost) as caught:
            tracker.log_trials(RECORDS, {})
    assert time.monotonic() - started < 200, "MLflow's own patience is more than four minutes"
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert capfd.readouterr().out == ""


# ---- the device


def test_a_noisy_device_is_marked_wherever_one_looks(
    open_tracker: Open, client: MlflowClient, tmp_path: Path
) -> None:
    calm = Canary(0, Interval(1.0, 0.98, 1.02), "resolved")
    noisy = Canary(10, Interval(1.06, 1.03, 1.09), "resolved")
    with ended(open_tracker()) as tracker:
        tracker.log_device({"device.round_to": "16"}, [calm])
        assert parent(client).data.tags["device.noisy"] == "false"
        tracker.log_device({}, [calm, noisy])
        tracker.log_trials(RECORDS, {})
    run = parent(client)
    assert (run.data.tags["device.noisy"], run.data.tags["device.round_to"]) == ("true", "16")
    history = client.get_metric_history(run.info.run_id, "canary_ratio")
    assert {(m.step, m.value) for m in history} == {(0, 1.0), (10, 1.06)}
    page = read(client, run, "front.html", tmp_path).decode()
    for text in (run.data.tags[NOTE], page):
        assert "The device is noisy: the original against itself gave 1.060" in text


def test_a_trial_says_how_far_its_latency_can_be_trusted(
    open_tracker: Open, client: MlflowClient
) -> None:
    poor = replace(BETTER, figures=replace(BETTER.figures, quality="poor"))
    open_tracker().log_trials([ORIGINAL, poor], {})
    assert children(client)[poor.number].data.tags["measuring"] == "poor"
