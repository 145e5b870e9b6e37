"""What is said of a device."""

from __future__ import annotations

from dataclasses import replace

from search.records.closing import Closing
from search.records.measurement import Canary, Interval
from search.report.profile import (
    describe_device,
    describe_formats,
    describe_later,
    describe_noise,
)
from tests.fakes import PROFILE
from tests.plants import plant, plant_finalist

PROBED = replace(
    PROFILE,
    speeds={
        "16-bit weights": Interval(0.99, 0.97, 1.01),
        "4-bit weights": Interval(0.80, 0.78, 0.82),
        "8 bits u8s8": Interval(0.40, 0.38, 0.43),
    },
    probe_ms=0.3,
)


def test_formats_that_only_save_storage_are_said_to_be_so() -> None:
    assert describe_formats(PROBED) == (
        "on a wide network 8 bits (u8s8) take 0.40 of float's time; 16 bits save storage, not time"
    )
    assert describe_formats(PROFILE) == ""


def test_description_ends_with_what_follows_from_the_probe() -> None:
    facts = dict(describe_device(PROBED))
    assert facts["Hence"] == describe_formats(PROBED)
    assert facts["4-bit weights"].endswith("(faster)")
    assert not facts["16-bit weights"].endswith("(faster)")
    assert "Hence" not in dict(describe_device(PROFILE))


def test_only_a_canary_that_excludes_one_is_noise() -> None:
    calm = Canary(0, Interval(1.01, 0.99, 1.03), "resolved")
    noisy = Canary(10, Interval(1.05, 1.02, 1.08), "unresolved")
    lost = Canary(20, Interval(1.0, 0.8, 1.2), "poor")
    assert (calm.is_noisy, noisy.is_noisy, lost.is_noisy) == (False, True, True)
    assert describe_noise([calm]) == ""
    said = describe_noise([calm, noisy])
    assert "1.050× [1.020–1.080] after 10 trials" in said  # noqa: RUF001 - as shown
    assert "after 0 trials" not in said


def test_many_poor_trials_are_noise() -> None:
    records = [plant(n, quality=quality) for n, quality in enumerate(["poor", "poor", "resolved"])]
    said = describe_noise([], records)
    assert said.startswith("The device is noisy: 2 of 3 trials could not be measured within ±5 %")
    assert describe_noise([], records[1:]) == ""


def test_what_the_closing_round_left_out_is_named() -> None:
    finalists = (plant_finalist(plant(0), stands=False, reason="slow"), plant_finalist(plant(4)))
    closing = Closing(9, finalists, ())
    assert describe_later(None, 9, [plant(4)]) == ""
    assert describe_later(closing, 9, [plant(4)]) == ""
    assert describe_later(closing, 9, [plant(7), plant(4), plant(2)]) == (
        "Of the search's front, trials 2, 7 took no part in the closing round: a larger "
        "finalists.count with study.n_trials=0 takes more."
    )
    full = Closing(9, tuple(plant_finalist(plant(n)) for n in range(13)), ())
    assert describe_later(full, 9, [plant(20)]) == (
        "Of the search's front, trial 20 took no part in the closing round, which takes 12 at most."
    )
    assert describe_later(closing, 11, [plant(7)]).startswith(
        "2 trials came after the closing round; "
    )
