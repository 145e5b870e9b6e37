"""The learning rate's range test: what it finds, and what it does not fall for."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from search.records.survey import FoundRate
from search.stages import rate
from search.stages.rate import SAFETY, SETTLING, choose
from search.techniques.finetuning import USUAL_RATE
from tests.workbench import Workbench


def test_a_found_rate_is_a_sound_one(bench: Workbench) -> None:
    start = bench.do(bench.reestimate_step(bench.prune("resnet8", 0.5).network))
    found = bench.do(bench.rate_step("resnet8"))
    rates = [rate for rate, _ in found.tried]
    assert rates == sorted(rates)
    assert rates[0] < found.learning_rate < rates[-1]
    common = {"optimizer": "adamw", "schedule": "one_cycle", "epochs": 2.0, "start": start.network}
    by_rate = {
        factor: bench.do(
            bench.finetune_step("resnet8", learning_rate=factor * found.learning_rate, **common)
        ).val_accuracy
        for factor in (0.03, 1.0)
    }
    assert by_rate[1.0] > by_rate[0.03]


def tried(*losses: float) -> list[tuple[float, float]]:
    return [(10.0**number, loss) for number, loss in enumerate(losses, -5)]


def test_a_lucky_beginning_does_not_count() -> None:
    beginning = [0.1] + [1.0] * (SETTLING - 1)
    assert choose(tried(*beginning, 0.9, 0.5, 0.7)) == SAFETY * tried(*beginning, 0.9, 0.5)[-1][0]


def test_a_test_that_ends_at_once_finds_nothing_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for short in (tried(), tried(*[1.0] * SETTLING)):
        caplog.clear()
        assert choose(short) == USUAL_RATE
        assert f"step {len(short) + 1} " in caplog.text


def losing(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Has the test see these losses, and the last one for good."""
    numbers = iter(losses)

    def lose(logits: Tensor, *_: Any) -> Tensor:
        return logits.sum() * 0 + next(numbers, losses[-1])

    monkeypatch.setattr(rate, "distillation_loss", lose)


def test_a_loss_that_is_no_number_ends_the_test(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bench.rate_step("cnn")
    losing(monkeypatch, math.nan)
    assert rate.run(step, bench.store) == FoundRate(USUAL_RATE, ())


def test_a_lucky_first_batch_does_not_end_the_test(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = bench.rate_step("cnn")
    state = torch.get_rng_state()
    losing(monkeypatch, 0.01, 1.0)
    found = rate.run(step, bench.store)
    assert len(found.tried) == rate.STEPS
    assert found.learning_rate > SAFETY * found.tried[SETTLING - 1][0]
    assert torch.equal(torch.get_rng_state(), state)
