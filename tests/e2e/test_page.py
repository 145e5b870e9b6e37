"""The front's page in a real browser, opened from disk."""

from __future__ import annotations

import random
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from search.front.front import front
from search.front.importance import importances
from search.records.closing import Finalist
from search.records.trial import Progress, TrialRecord
from search.report import front_page
from tests.browser import Visit, open_browser
from tests.plants import plant, plant_finalist, with_layers

OBJECTIVES = ("accuracy", "latency")
STUDY = "digits-1.5_b"
WINDOWS: Mapping[str, Mapping[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
    "still": {"viewport": {"width": 800, "height": 600}, "reduced_motion": "reduce"},
}
HOSTILE = "</script><img src=x onerror='window.broken = true'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def search(trials: int = 60, seed: int = 5) -> list[TrialRecord]:
    """A search whose trials end in all ways."""
    draw = random.Random(seed)
    records: list[TrialRecord] = [
        with_layers(plant(0, latency_ms=0.8, val_accuracy=0.93), conv1=(32, 32), fc=(10, 10))
    ]
    for number in range(1, trials):
        ratio = draw.uniform(0.05, 0.9)
        latency_ms = 0.8 * (1 - ratio) ** 1.5 + draw.uniform(0.02, 0.1)
        accuracy = 0.94 - 0.08 * ratio**2 - draw.uniform(0.0, 0.01)
        known: dict[str, Any] = {"latency_ms": latency_ms, "val_accuracy": accuracy}
        if number % 5 == 3:
            known = {**known, "val_accuracy": None, "float_accuracy": accuracy - 0.01}
            record: TrialRecord = plant(
                number, "stopped", "behind at rung 0.5 of all trials there", **known
            )
        elif number % 10 == 4:
            known = {**known, "val_accuracy": None, "float_accuracy": None}
            record = plant(number, "stopped", "too slow for the front", **known)
        elif number % 10 == 9:
            record = plant(number, "infeasible", "exceeds max_accuracy_drop by 0.01", **known)
        else:
            record = plant(number, **known)
        point = record.point.replaced(
            prune_ratio=ratio,
            learning_rate=10 ** draw.uniform(-4, -1),
            optimizer=draw.choice(("sgd", "adamw")),
            bits=draw.choice((32, 8)),
        )
        kept = max(1, round(32 * (1 - ratio)))
        records.append(with_layers(replace(record, point=point), conv1=(kept, 32), fc=(10, 10)))
    return records


def closing(records: Sequence[TrialRecord]) -> list[Finalist]:
    """A closing round: two points tie, one leaves."""
    members = [plant_finalist(record) for record in front(records, OBJECTIVES)][:8]
    found = []
    for place, finalist in enumerate(members):
        accuracy = (finalist.figures.val_accuracy or 0.0) - 0.003
        found.append(
            replace(
                finalist,
                test_accuracy=accuracy,
                test_low=accuracy - 0.004,
                test_high=accuracy + 0.004,
            )
        )
        if place in (1, 2):
            found[-1] = replace(found[-1], tie=1)
    found[-1] = replace(found[-1], stands=False, reason="another is no less accurate")
    return found


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search that had no closing round."""
    return _written(tmp_path_factory.mktemp("searched"), search(), ())


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a search with a closing round."""
    records = search()
    return _written(tmp_path_factory.mktemp("closed"), records, closing(records))


def _written(folder: Path, records: list[TrialRecord], finalists: Sequence[Finalist]) -> Path:
    numbers = {record.number for record in front(records, OBJECTIVES)}
    decisive = importances(records, OBJECTIVES)
    page = front_page(
        STUDY, records, numbers, "noisy", finalists, "a board", OBJECTIVES, decisive, "<p>Wide.</p>"
    )
    path = folder / "front.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def windows(browser: Browser, searched: Path, closed: Path) -> Iterator[Mapping[str, Visit]]:
    """Both pages, opened once for all tests that leave them as they were."""
    opened = {"searched": Visit(browser, searched), "closed": Visit(browser, closed)}
    yield opened
    for visit in opened.values():
        visit.context.close()


@pytest.fixture
def visit(windows: Mapping[str, Visit]) -> Iterator[Visit]:
    """The page of a search that had no closing round, with its limits as at first."""
    yield from _as_at_first(windows["searched"])


@pytest.fixture
def visit_closed(windows: Mapping[str, Visit]) -> Iterator[Visit]:
    """The page of a search with a closing round, with its limits as at first."""
    yield from _as_at_first(windows["closed"])


def _as_at_first(visit: Visit) -> Iterator[Visit]:
    visit.page.check("input[name=prefer][value=accuracy]")
    visit.slide("budget", visit.positions("budget"))
    visit.slide("floor", 0)
    yield visit
    assert visit.complaints == []


@pytest.mark.parametrize(
    ("kind", "window"),
    [*(("searched", window) for window in WINDOWS), ("closed", "light"), ("closed", "phone")],
)
def test_page_opens_from_disk_without_a_complaint(
    browser: Browser, request: pytest.FixtureRequest, kind: str, window: str
) -> None:
    file: Path = request.getfixturevalue(kind)
    visit = Visit(browser, file, **WINDOWS[window])
    visit.page.wait_for_selector("#chart .scatterlayer .point")
    for section in ("parallel", "progress"):  # drawn when they come near
        visit.page.locator(f"#{section}").scroll_into_view_if_needed()
        visit.page.wait_for_selector(f"#{section} .main-svg")
    width = visit.page.evaluate("document.documentElement.scrollWidth")
    assert visit.complaints == []
    assert [url for url in visit.requests if not url.startswith(("data:", "blob:"))] == [
        file.as_uri()
    ]
    assert width <= WINDOWS[window]["viewport"]["width"]
    visit.context.close()


def test_colours_follow_the_browser(browser: Browser, searched: Path) -> None:
    visit = Visit(browser, searched, color_scheme="light")
    mark = "#chart .scatterlayer .trace:has(text) .point"
    colour = "mark => getComputedStyle(mark).fill"
    light = visit.page.locator(mark).first.evaluate(colour)
    visit.page.emulate_media(color_scheme="dark")
    visit.page.wait_for_function(
        "([mark, light]) => getComputedStyle(document.querySelector(mark)).fill !== light",
        arg=[mark, light],
    )
    assert visit.complaints == []
    visit.context.close()


def _standing(records: Sequence[TrialRecord], finalists: Sequence[Finalist]) -> list[Any]:
    """Returns ``(accuracy, latency_ms, number)`` of every point that can be chosen."""
    if finalists:
        return [(f.test_accuracy, f.figures.latency_ms, f.number) for f in finalists if f.stands]
    members = front(records, OBJECTIVES)
    return [(r.figures.val_accuracy, r.figures.latency_ms, r.number) for r in members]


def _pick(command: str, points: Sequence[Any]) -> int | None:
    """Reads a command and picks as search.pick does, by its own reckoning."""
    python, dash_m, module, *rest = shlex.split(command)
    given = dict(part.split("=", 1) for part in rest)
    assert (python, dash_m, module, given.pop("study")) == ("python", "-m", "search.pick", STUDY)
    budget = float(given.pop("max_latency_ms", "inf"))
    floor = float(given.pop("min_accuracy", "-inf"))
    prefer = given.pop("prefer")
    assert given == {}
    keys = {"accuracy": lambda p: (-p[0], p[1], p[2]), "latency": lambda p: (p[1], -p[0], p[2])}
    within = [p for p in points if p[1] <= budget and p[0] >= floor]
    return int(min(within, key=keys[prefer])[2]) if within else None


@pytest.mark.parametrize("kind", ["visit", "visit_closed"])
def test_limits_choose_what_the_command_picks(request: pytest.FixtureRequest, kind: str) -> None:
    records = search()
    points = _standing(records, closing(records) if kind == "visit_closed" else ())
    visit: Visit = request.getfixturevalue(kind)
    last, top = visit.positions("budget"), visit.positions("floor")
    draw, chosen = random.Random(1), set()
    places = [(last, 0), (last, top), (0, 0), (0, top)]
    places += [(draw.randint(0, last), draw.randint(0, top)) for _ in range(80)]
    for choice in visit.choices(places):
        assert ("max_latency_ms=" in choice.command) is (choice.budget < last)
        assert ("min_accuracy=" in choice.command) is (choice.floor > 0)
        assert choice.command.endswith(f" prefer={choice.prefer}")
        picked = _pick(choice.command, points)
        assert choice.is_offered is (picked is not None)
        if picked is not None:
            name = "The original" if picked == 0 else f"Trial {picked}"
            assert choice.name.startswith(name)
            assert choice.by_number == f"python -m search.pick study={STUDY} trial={picked}"
        chosen.add(picked)
    assert len(chosen) == len(points) + 1  # each, and none


def test_every_point_can_be_reached_by_its_own_limits(visit: Visit) -> None:
    places = [(position, 0) for position in range(visit.positions("budget") + 1)]
    names = {choice.name for choice in visit.choices(places)}
    assert len(names - {"No point"}) == len(front(search(), OBJECTIVES))


def test_limits_that_leave_nothing_say_which_and_what_is_near(
    browser: Browser, tmp_path: Path
) -> None:
    fast = plant(1, latency_ms=0.1, val_accuracy=0.85)
    fine = plant(2, latency_ms=0.5, val_accuracy=0.93)
    visit = Visit(browser, _written(tmp_path, [fast, fine], ()))
    visit.slide("budget", 0)
    assert visit.text("#choice-name") == "No point"
    note = visit.text("#choice-note")
    assert note.startswith("No point is as fast as 0.09")
    assert note.endswith("the fastest, trial 1, offers 85.00 % at 0.100 ms.")
    assert not visit.page.is_visible("#command")
    visit.slide("budget", visit.positions("budget"))
    visit.slide("floor", visit.positions("floor"))
    assert visit.text("#choice-note").endswith("trial 2, offers 93.00 % at 0.500 ms.")
    visit.slide("budget", visit.positions("budget") // 2)
    visit.slide("floor", visit.positions("floor") // 2)
    note = visit.text("#choice-note")
    assert "together" in note
    assert "the most accurate, trial 1, offers 85.00 %" in note
    assert "the fastest, trial 2, offers 93.00 %" in note
    visit.context.close()


def test_copy_puts_the_command_on_the_clipboard(browser: Browser, searched: Path) -> None:
    visit = Visit(browser, searched, permissions=["clipboard-read", "clipboard-write"])
    visit.page.click("[data-copies=command]")
    visit.page.wait_for_function("document.getElementById('copied').textContent === 'Copied.'")
    copied = visit.page.evaluate("navigator.clipboard.readText()")
    assert copied == visit.page.text_content("#command")
    visit.context.close()


def test_a_sandboxed_frame_without_a_clipboard_selects_the_command(
    browser: Browser, searched: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.html"
    outside.write_text("<body></body>")
    visit = Visit(browser, outside)
    # As MLflow shows artifacts.
    visit.page.evaluate(
        "page => { const frame = document.createElement('iframe');"
        " frame.sandbox = 'allow-scripts'; frame.width = 1200; frame.height = 800;"
        " frame.src = URL.createObjectURL(new Blob([page], { type: 'text/html' }));"
        " document.body.append(frame); }",
        searched.read_text(encoding="utf-8"),
    )
    frame = visit.page.frame_locator("iframe")
    frame.locator("[data-copies=command]").click()
    copied = frame.locator("#copied")
    copied.filter(has_text=re.compile("Copied|Selected")).wait_for()
    selected = frame.locator("body").evaluate("() => getSelection().toString()")
    assert selected == frame.locator("#command").text_content()
    assert visit.complaints == []
    visit.context.close()


def test_stopped_and_infeasible_trials_come_and_go(visit: Visit) -> None:
    records = search()
    stopped = [record for record in records if record.outcome == "stopped"]
    trained = sum(isinstance(record.figures, Progress) for record in stopped)
    assert (visit.drawn("stopped"), visit.drawn("untrained")) == (0, 0)
    visit.page.check("[name=stopped]")
    assert visit.drawn("stopped") == trained
    assert visit.drawn("untrained") == len(stopped) - trained
    hovers = visit.page.evaluate(
        "document.getElementById('chart').data.find(t => t.name === 'stopped').hovertext"
    )
    assert all("stopped, behind at rung 0.5" in hover for hover in hovers)
    infeasible = sum(record.outcome == "infeasible" for record in records)
    assert visit.drawn("infeasible") == infeasible
    visit.page.uncheck("[name=infeasible]")
    visit.page.uncheck("[name=stopped]")
    assert visit.drawn("infeasible") == visit.drawn("stopped") == 0
    visit.page.check("[name=infeasible]")


def test_search_comes_beside_finalists_on_request(visit_closed: Visit) -> None:
    assert visit_closed.drawn("searched") == 0
    visit_closed.page.check("[name=searched]")
    records = search()
    complete = sum(record.outcome == "complete" for record in records)
    assert visit_closed.drawn("searched") == complete - len(closing(records))
    assert "on validation" in visit_closed.text(".key")
    visit_closed.page.uncheck("[name=searched]")


def test_ties_share_a_letter_and_a_ring(visit_closed: Visit) -> None:
    visit = visit_closed
    tied = [finalist.number for finalist in closing(search()) if finalist.tie]
    assert visit.drawn("tie") == len(tied) == 2
    labels = visit.page.locator("#chart .textpoint").all_text_contents()
    assert {f"{number} a" for number in tied} <= set(labels)
    hovers = visit.page.evaluate(
        "document.getElementById('chart').data.find(t => t.name === 'front').hovertext"
    )
    assert sum(f"tie a with {tied[1]}: neither" in hover for hover in hovers) == 1
    visit.page.click(f"#front tr[data-trial='{tied[0]}']")
    assert f"Tie a with {tied[1]}" in visit.text("#choice-note")


def test_keys_move_the_sliders(visit: Visit) -> None:
    visit.page.focus("#budget")
    assert visit.text("#budget-value") == "no limit"
    for _ in range(3):
        visit.page.keyboard.press("ArrowLeft")
    value = visit.text("#budget-value")
    assert value.endswith(" ms")
    assert visit.page.get_attribute("#budget", "aria-valuetext") == value
    assert f"max_latency_ms={value.removesuffix(' ms')} " in visit.text("#command")
    visit.page.keyboard.press("End")
    assert "max_latency_ms" not in visit.text("#command")
    visit.page.keyboard.press("Tab")
    visit.page.keyboard.press("ArrowRight")
    assert visit.text("#floor-value").endswith(" %")


def test_a_row_points_at_its_mark_and_chooses_it(visit: Visit) -> None:
    row = visit.page.locator("#front tbody tr").nth(1)
    trial = row.get_attribute("data-trial")
    rings = visit.page.locator("#chart .shapelayer path")
    before = rings.count()
    row.focus()
    assert rings.count() == before + 1
    visit.page.wait_for_selector("#chart .hoverlayer .hovertext")
    assert f"Trial {trial}" in (visit.page.text_content("#chart .hoverlayer") or "")
    visit.page.keyboard.press("Enter")
    assert visit.text("#choice-name") == f"Trial {trial}"
    assert visit.text("#command").endswith(f"trial={trial}")
    visit.slide("budget", visit.positions("budget"))  # a limit takes over again
    assert "prefer=accuracy" in visit.text("#command")


def test_progress_is_told_by_trial_and_by_minute(visit: Visit) -> None:
    visit.page.locator("#progress").scroll_into_view_if_needed()
    visit.page.wait_for_selector("#progress .main-svg")
    last = "document.getElementById('progress').data[0].x.at(-1)"
    assert visit.page.evaluate(last) == 59
    visit.page.check("input[name=progress][value=minutes]")
    assert visit.page.evaluate(last) == pytest.approx(60)  # a minute each


def test_a_print_has_what_was_not_scrolled_to(browser: Browser, searched: Path) -> None:
    visit = Visit(browser, searched)
    assert visit.page.locator("#progress .main-svg").count() == 0
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for drawing in ("#parallel", "#progress"):
        visit.page.wait_for_selector(f"{drawing} .main-svg", state="attached")
    visit.context.close()


def test_names_with_markup_stay_text(browser: Browser, tmp_path: Path) -> None:
    layered, other = with_layers(plant(1), **{f"conv{HOSTILE}": (4, 8)}), plant(4, latency_ms=0.4)
    model = replace(layered, point=layered.point.replaced(schedule=HOSTILE))
    records = [model, plant(2, "infeasible", HOSTILE), plant(3, "stopped", HOSTILE), other]
    finalists = [plant_finalist(model), plant_finalist(other, stands=False, reason=HOSTILE)]
    for closing_round in ((), finalists):
        path = tmp_path / f"{len(closing_round)}.html"
        page = front_page(HOSTILE, records, {1, 4}, HOSTILE, closing_round, HOSTILE)
        path.write_text(page, encoding="utf-8")
        visit = Visit(browser, path)
        visit.page.check("[name=stopped]")
        visit.page.locator("#front tbody tr").first.focus()
        visit.page.locator("#parallel-section").scroll_into_view_if_needed()
        visit.page.wait_for_selector("#parallel .main-svg")
        assert visit.text("h1") == HOSTILE
        assert visit.page.locator("img").count() == 0
        assert visit.page.evaluate("window.broken") is None
        assert visit.complaints == []
        visit.context.close()


def test_a_search_without_a_front_has_nothing_to_choose(browser: Browser, tmp_path: Path) -> None:
    for number, records in enumerate(([], [plant(1, "infeasible", "too large")])):
        path = tmp_path / f"{number}.html"
        path.write_text(front_page("s", records, set()), encoding="utf-8")
        visit = Visit(browser, path)
        assert not visit.page.is_visible("#choose")
        assert visit.complaints == []
        visit.context.close()
