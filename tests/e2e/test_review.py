"""Reviewing a study in MLflow's own pages, in a real browser, as a newcomer would."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests import commands
from tests.browser import Visit, open_browser
from tests.e2e.searching import Tracked
from tests.mlflow_server import serve

PICTURE_WIDTH = 900  # half of front.png's pixels
PATIENCE_MS = 60_000
FOR_MODELS = "workflowType=machine_learning"
FRONT_VIEW = f"?viewStateShareKey=front&{FOR_MODELS}"
# MLflow asks a server without accounts for its user, and logs that there is none. Its charts may be
# laid out over two frames on a busy machine, which browsers tell and which breaks nothing, and its
# parallel coordinates may be drawn there before they have a size, and then again.
OWN_COMPLAINTS = re.compile(
    r"users/current|ResizeObserver loop completed|"
    r"<(path|g|rect)> attribute \w+: .*NaN.*/static-files/static/js/"
)


@pytest.fixture(scope="module")
def tracked(finished: tuple[Path, str]) -> Tracked:
    return Tracked(finished[0])


@pytest.fixture(scope="module")
def server(finished: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an MLflow server that shows the finished study, started as ``make ui`` does."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with serve(finished[0] / "mlruns", log) as running:
        yield running.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window; whatever its page complains of fails the test."""
    opened = browser.new_page(viewport={"width": 1500, "height": 1200})
    opened.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        lambda said: (
            complaints.append(f"{said.text} {said.location}") if said.type == "error" else None
        ),
    )
    yield opened
    opened.close()
    assert [text for text in complaints if not OWN_COMPLAINTS.search(text)] == []


def address(server: str, tracked: Tracked, rest: str) -> str:
    return f"{server}/#/experiments/{tracked.parent.info.experiment_id}/runs{rest}"


def test_the_studys_page_opens_on_its_front(server: str, tracked: Tracked, page: Page) -> None:
    page.goto(address(server, tracked, f"/{tracked.parent.info.run_id}?{FOR_MODELS}"))
    page.get_by_text("Show more").click()
    rows = page.locator("table", has_text="Test accuracy").locator("tbody tr")
    expect(rows.first).to_be_visible()
    beside = 0 if 0 in tracked.tagged() else 1  # the original, in brackets
    assert rows.count() == len(tracked.tagged()) + beside
    picture = page.locator("img[src*='front-small.png']")
    expect(picture).to_be_visible()
    expect(picture).to_have_js_property("naturalWidth", PICTURE_WIDTH)
    expect(page.get_by_role("link", name="interactive page")).to_be_visible()


def test_the_page_works_in_the_artifact_viewer(server: str, tracked: Tracked, page: Page) -> None:
    run_id = tracked.parent.info.run_id
    page.goto(address(server, tracked, f"/{run_id}/artifacts/front.html?{FOR_MODELS}"))
    inside = page.frame_locator("iframe")
    expect(inside.locator("#chart.js-plotly-plot")).to_be_visible()
    before = inside.locator("#command").inner_text()
    assert before.startswith("python -m search.pick study=")
    inside.locator("#budget").focus()
    page.keyboard.press("ArrowLeft")
    expect(inside.locator("#command")).to_contain_text("max_latency_ms=")


def test_the_saved_view_lists_the_front(server: str, tracked: Tracked, page: Page) -> None:
    page.goto(address(server, tracked, FRONT_VIEW))
    for number in tracked.tagged():
        expect(page.get_by_role("link", name=f"trial {number}", exact=True)).to_be_visible()
    expect(page.get_by_text(f"{len(tracked.tagged())} matching run")).to_be_visible()


def test_the_saved_view_draws_the_front(server: str, tracked: Tracked, page: Page) -> None:
    page.goto(address(server, tracked, f"{FRONT_VIEW}&compareRunsMode=CHART"))
    expect(page.get_by_role("heading", name="Parallel Coordinates")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    expect(page.locator("path.domain").first).to_be_attached()  # an axis of the coordinates
    expect(page.locator("path[d*=NaN], g[transform*=NaN], rect[height=NaN]")).to_have_count(0)


@pytest.mark.parametrize("prefer", ["accuracy", "latency"])
def test_the_command_that_the_page_shows_picks_what_it_says(
    finished: tuple[Path, str], tracked: Tracked, browser: Browser, tmp_path: Path, prefer: str
) -> None:
    visit = Visit(browser, tracked.read(tracked.parent, "front.html", tmp_path))
    last = visit.positions("budget"), visit.positions("floor")
    places = [(last[0] // 2, 0), (last[0], last[1] // 2), (0, 0)]
    chosen = [choice for choice in visit.choices(places) if choice.prefer == prefer]
    assert visit.complaints == []
    assert any(choice.is_offered for choice in chosen)
    for choice in chosen:
        python, flag, *command = shlex.split(choice.command)
        assert (python, flag) == ("python", "-m")
        result = commands.run(finished[0], *command, "dry_run=true")
        if choice.is_offered:
            (number,) = re.findall(r"^trial (\d+):", result.stdout, re.MULTILINE)
            named = re.findall(r"\d+", choice.name) or ["0"]  # the original
            assert named == [number], choice
        else:
            assert result.returncode == 3, result
