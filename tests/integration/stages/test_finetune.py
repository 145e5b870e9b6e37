"""Fine-tuning: its loss, its learning rates, and that every choice of the recipe really acts."""

from __future__ import annotations

import itertools
import math
import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from search import data
from search.config.data import ImageFolderConfig
from search.devices.stillness import working
from search.errors import ConfigError, StageFailed
from search.networks import networks
from search.networks.networks import Preprocessed
from search.networks.optimization import distillation_loss, make_pace
from search.networks.training import Feed, KeptLogits, Placement, predictions
from search.records.data import Dataset
from search.records.network import Student
from search.records.steps.training import Finetune
from search.stages.finetune import CHECK_EVERY_STEPS
from tests.workbench import Workbench

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "step", "cosine", "one_cycle", "plateau")
CHOICES = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}
RECIPES = list(itertools.product(OPTIMIZERS, SCHEDULES))


def drawn(seed: int, rows: int = 7, classes: int = 4) -> Tensor:
    return 3 * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 3, 1, 1, 2, 0, 3])


# ---- the loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_without_weight_the_teacher_says_nothing(temperature: float) -> None:
    loss = distillation_loss(drawn(0), LABELS, drawn(1), temperature, 0.0)
    torch.testing.assert_close(loss, F.cross_entropy(drawn(0), LABELS))


@pytest.mark.parametrize("temperature", [1.0, 2.5, 10.0])
def test_a_student_that_says_what_its_teacher_says_has_no_loss(temperature: float) -> None:
    shifted = drawn(0) + 5  # adding a number to all logits changes no probability
    loss = distillation_loss(drawn(0), LABELS, shifted, temperature, 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-5)


def softmax(logits: Tensor, temperature: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    powers = np.exp(logits.double().numpy() / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.3), (3.0, 1.0), (8.0, 0.6)])
def test_loss_by_its_formula(temperature: float, weight: float) -> None:
    student, teacher = softmax(drawn(0), temperature), softmax(drawn(1), temperature)
    divergence = (teacher * np.log(teacher / student)).sum(axis=1).mean()
    hard = -np.log(softmax(drawn(0), 1.0)[np.arange(7), LABELS.numpy()]).mean()
    wanted = (1 - weight) * hard + weight * temperature**2 * divergence
    loss = distillation_loss(drawn(0), LABELS, drawn(1), temperature, weight)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


def test_gradients_keep_their_size_when_the_temperature_rises() -> None:
    # For high temperatures the gradient tends to (student - teacher) / classes of centred logits.
    student = drawn(0).requires_grad_()
    distillation_loss(student, LABELS, drawn(1), 1000.0, 1.0).backward()
    centred = [x.detach() - x.detach().mean(1, keepdim=True) for x in (student, drawn(1))]
    torch.testing.assert_close(
        student.grad, (centred[0] - centred[1]) / 4 / 7, rtol=1e-2, atol=1e-3
    )


# ---- learning rates


def learning_rates(bench: Workbench, schedule: str, losses: list[float]) -> list[float]:
    """The learning rate of each of as many optimizer steps as there are losses, and after them."""
    step = bench.finetune_step("cnn", schedule=schedule, learning_rate=0.2)
    module = nn.Linear(1, 1)
    pace = make_pace(module, step, len(losses))
    rates = []
    for number, loss in enumerate(losses, 1):
        rates.append(pace.optimizer.param_groups[0]["lr"])
        pace.optimizer.step()
        pace.advance(number, loss)
    return [*rates, pace.optimizer.param_groups[0]["lr"]]


FALLING = [1 / (1 + n) for n in range(100)]


WARM_UP = [0.2 * n / 6 for n in range(1, 6)]  # a twentieth of all steps


def test_constant_rate_after_a_warm_up(bench: Workbench) -> None:
    assert learning_rates(bench, "constant", FALLING) == pytest.approx([*WARM_UP, *[0.2] * 96])


def test_step_rate_falls_tenfold_at_one_half_and_three_quarters(bench: Workbench) -> None:
    rates = learning_rates(bench, "step", FALLING)
    assert rates == pytest.approx([*WARM_UP, *[0.2] * 47, *[0.02] * 24, *[0.002] * 25])


def test_cosine_rate_falls_to_zero(bench: Workbench) -> None:
    rates = learning_rates(bench, "cosine", FALLING)
    wanted = [0.1 * (1 + math.cos(math.pi * n / 95)) for n in range(96)]
    assert rates == pytest.approx([*WARM_UP, *wanted], abs=1e-9)


def test_one_cycle_rises_to_the_rate_and_falls_to_nearly_zero(bench: Workbench) -> None:
    rates = learning_rates(bench, "one_cycle", FALLING)
    assert rates[0] == pytest.approx(0.2 / 25)
    assert max(rates) == rates[29] == pytest.approx(0.2)
    # Cosine from the peak at step 29 to 0.2 / 25 / 10000 at the last step, 99.
    low = 0.2 / 25 / 1e4
    assert rates[64] == pytest.approx((0.2 + low) / 2)
    assert rates[99] == pytest.approx(low)


def test_plateau_rate_halves_while_the_loss_stands_still(bench: Workbench) -> None:
    assert learning_rates(bench, "plateau", FALLING) == pytest.approx([*WARM_UP, *[0.2] * 96])
    rates = learning_rates(bench, "plateau", [1.0] * 100)
    # Looked at every 5 steps: the first sets the mark, then every second look without progress.
    halvings = [max(0, (n // 5 - 2) // 2) for n in range(5, 101)]
    assert rates == pytest.approx([*WARM_UP, *(0.2 * 0.5**k for k in halvings)])


@pytest.mark.parametrize(("optimizer", "schedule"), RECIPES)
def test_momentum_stays_what_the_optimizer_has(
    bench: Workbench, optimizer: str, schedule: str
) -> None:
    step = bench.finetune_step("cnn", optimizer=optimizer, schedule=schedule)
    group = make_pace(nn.Linear(1, 1), step, 100).optimizer.param_groups[0]
    momentum = group["betas"][0] if "betas" in group else group["momentum"]
    # The cycle of sgd and adam moves momentum against the rate; rmsprop has none to move.
    wanted = 0.0 if optimizer == "rmsprop" else 0.95 if schedule == "one_cycle" else 0.9
    assert momentum == pytest.approx(wanted)


@pytest.mark.parametrize(("optimizer", "schedule"), RECIPES)
@pytest.mark.parametrize("total", [1, 2, 3])
def test_the_shortest_trainings_work(
    bench: Workbench, optimizer: str, schedule: str, total: int
) -> None:
    step = bench.finetune_step("cnn", optimizer=optimizer, schedule=schedule)
    pace = make_pace(nn.Linear(1, 1), step, total)
    for number in range(1, total + 1):
        assert pace.optimizer.param_groups[0]["lr"] >= 0
        pace.optimizer.step()
        pace.advance(number, 1.0)


# ---- whole trainings


@pytest.mark.parametrize(("dimension", "choices"), CHOICES.items())
def test_every_optimizer_and_schedule_leads_elsewhere(
    bench: Workbench, dimension: str, choices: tuple[str, ...]
) -> None:
    # Long and coarse enough for the loss to stand still before the end: else a plateau is constant.
    step = bench.finetune_step("cnn", learning_rate=0.1, epochs=6.0)
    changes: list[dict[str, Any]] = [{dimension: choice} for choice in choices]
    ends = {bench.do(replace(step, **change)).network.weights for change in changes}
    assert len(ends) == len(choices)


@pytest.mark.parametrize(
    "change",
    [
        {"distill_temperature": 2.1},
        {"distill_weight": 0.4},
        {"learning_rate": 0.011},
        {"weight_decay": 0.01},
        {"epochs": 1.2},
        {"batch_size": 32},
        {"precision": "bfloat16"},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_number_of_the_recipe_acts(bench: Workbench, change: dict[str, Any]) -> None:
    before = bench.do(bench.finetune_step("cnn"))
    after = bench.do(bench.finetune_step("cnn", **change))
    assert after.network.weights != before.network.weights


def run_in_rungs(bench: Workbench, step: Finetune, rungs: tuple[float, ...]) -> Student:
    student = Student(step.start, None, 0.0)
    for begin, end in itertools.pairwise((0.0, *rungs)):
        student = bench.do(
            replace(step, start=student.network, state=student.state, begin=begin, end=end)
        )
        assert (student.state is None) == (end == 1.0)
    return student


@pytest.mark.parametrize(("optimizer", "schedule"), RECIPES)
def test_a_training_in_rungs_is_the_whole_training(
    bench: Workbench, optimizer: str, schedule: str
) -> None:
    # Two epochs of 17 steps; rungs end within an epoch, at its end and, the last, after no step.
    step = bench.finetune_step("cnn", optimizer=optimizer, schedule=schedule, epochs=2.0)
    whole = bench.do(step)
    cut = run_in_rungs(bench, step, (0.3, 0.5, 0.99, 1.0))
    assert cut.network == whole.network
    assert cut.val_accuracy == whole.val_accuracy


@pytest.mark.parametrize("name", ["custom", "ds_cnn"])
def test_rungs_change_nothing_for_dropout_and_statistics(bench: Workbench, name: str) -> None:
    step = bench.finetune_step(name)
    assert run_in_rungs(bench, step, (0.4, 1.0)).network == bench.do(step).network


def test_the_caller_s_random_numbers_stay_as_they_are(bench: Workbench) -> None:
    step = bench.finetune_step("custom", seed=12)
    before = torch.get_rng_state()
    bench.do(step)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 1e6), ("adam", 1e18)])
def test_a_diverging_training_says_where_and_with_what(
    bench: Workbench, optimizer: str, rate: float
) -> None:
    step = bench.finetune_step("cnn", optimizer=optimizer, learning_rate=rate, epochs=4.0)
    wanted = (
        rf"^finetune: the loss is not finite at step {CHECK_EVERY_STEPS} of 68 with {optimizer} "
        rf"and learning_rate {rate:.2g}; give space\.learning_rate a lower range$"
    ).replace("+", r"\+")
    with pytest.raises(StageFailed, match=wanted):
        bench.do(step)


def test_unknown_choices_are_refused(bench: Workbench) -> None:
    with pytest.raises(StageFailed, match="no optimizer lion"):
        bench.do(bench.finetune_step("cnn", optimizer="lion"))
    with pytest.raises(StageFailed, match="no schedule linear"):
        bench.do(bench.finetune_step("cnn", schedule="linear"))


@pytest.mark.parametrize(("epochs", "batch_size"), [(0.001, 64), (1.0, 5000)])
def test_the_least_training_is_one_step(bench: Workbench, epochs: float, batch_size: int) -> None:
    step = bench.finetune_step("cnn", epochs=epochs, batch_size=batch_size)
    student = bench.do(step)
    assert student.network.weights != step.start.weights
    halves = run_in_rungs(bench, step, (0.4, 1.0))  # the first of them trains nothing
    assert halves.network == student.network


def test_bfloat16_trains_about_as_well(bench: Workbench) -> None:
    step = bench.finetune_step("cnn", optimizer="adamw", learning_rate=0.003, epochs=3.0)
    full, half = (bench.do(replace(step, precision=p)) for p in ("float32", "bfloat16"))
    assert {v.dtype for v in bench.weights(half.network).values()} == {torch.float32}
    assert half.val_accuracy == pytest.approx(full.val_accuracy, abs=0.05)


def divergence_from_teacher(bench: Workbench, student: Student) -> float:
    """Mean KL divergence of the student's answers from the teacher's on the training images."""
    placement = Placement(torch.device("cpu"), "float32", "contiguous")
    module = Preprocessed(
        networks.load(student.network, bench.store), bench.data.mean, bench.data.std
    )
    train = Feed(data.load(bench.data).train, placement.device)
    with working():
        answers = predictions(module, train, placement, "answering")
        logits = torch.cat([logits for logits, _ in answers])
    kept = KeptLogits(bench.store.path(bench.teacher("cnn").logits), 10, placement.device)
    wanted = kept[torch.arange(len(train))]
    return F.kl_div(
        logits.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
    ).item()


def test_distillation_brings_a_student_nearer_to_its_teacher(bench: Workbench) -> None:
    step = bench.finetune_step("cnn", optimizer="adamw", learning_rate=0.003, epochs=8.0)
    alone, taught = (bench.do(replace(step, distill_weight=w)) for w in (0.0, 1.0))
    assert divergence_from_teacher(bench, taught) < 0.7 * divergence_from_teacher(bench, alone)


def test_fine_tuning_brings_accuracy_back(bench: Workbench) -> None:
    step = bench.finetune_step("cnn", optimizer="adamw", learning_rate=0.003, epochs=3.0)
    untrained = bench.do(replace(step, epochs=1e-6, learning_rate=1e-9))
    assert bench.do(step).val_accuracy > untrained.val_accuracy
    assert bench.do(step).val_accuracy > bench.teacher("cnn").val_accuracy - 0.05


# ---- streaming


def write_images(bench: Workbench, root: Path, count: int) -> None:
    """Writes the first training digits as a folder of images."""
    split = data.load(bench.data).train
    for number, pixels in enumerate(split.read(np.arange(count))):
        label = bench.data.labels[split.labels[number]]
        for part in ("train", "test") if number < count // 4 else ("train",):
            path = root / part / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[0]).save(path)


def describe_folder(root: Path, memory_limit_bytes: int) -> Dataset:
    config = ImageFolderConfig(
        name="image_folder",
        root=str(root),
        channels=1,
        image_size=None,
        validation_share=0.2,
        mean=(0.3,),
        std=(0.3,),
        memory_limit_bytes=memory_limit_bytes,
    )
    return data.describe(config)


def test_streamed_images_train_the_same_network(bench: Workbench, tmp_path: Path) -> None:
    write_images(bench, tmp_path, 240)
    students = []
    for limit in (1_000_000_000, 0):
        described = describe_folder(tmp_path, limit)
        assert data.load(described).train.in_memory == (limit > 0)
        teacher = bench.do(replace(bench.teach_step("custom"), data=described, epochs=2))
        step = bench.finetune_step(
            "custom",
            start=teacher.network,
            teacher_logits=teacher.logits,
            data=described,
            batch_size=50,
        )
        students.append(bench.do(step))
    assert students[0] == students[1]


def test_streaming_draws_none_of_the_caller_s_random_numbers(
    bench: Workbench, tmp_path: Path
) -> None:
    write_images(bench, tmp_path, 240)
    feed = Feed(data.load(describe_folder(tmp_path, 0)).train, torch.device("cpu"))
    before = torch.get_rng_state()
    with working():
        assert len(list(feed.batches(torch.arange(20), 10))) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_streamed_image_that_breaks_says_so_in_one_line(bench: Workbench, tmp_path: Path) -> None:
    write_images(bench, tmp_path, 240)
    described = describe_folder(tmp_path, 0)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:60])
    step = replace(bench.teach_step("cnn"), data=described, epochs=1)
    with pytest.raises(
        ConfigError, match=r"^data\.root: cannot read the image '.*\.png'"
    ) as caught:
        bench.do(step)
    assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []
