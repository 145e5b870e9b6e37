"""A real browser for tests of pages, Debian's Chromium, driven by playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "google-chrome")


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Starts a browser without windows; the test fails where none is installed."""
    found = next((path for name in NAMES if (path := shutil.which(name)) is not None), None)
    if found is None:
        pytest.fail("there is no Chromium to open pages in: apt-get install chromium")
    with sync_playwright() as playwright:
        # Containers lack what its sandbox needs; it opens nothing but this project's own pages.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass(frozen=True)
class Choice:
    """What the page says with its sliders at ``budget`` and ``floor``."""

    budget: int
    floor: int
    prefer: str
    name: str
    command: str
    by_number: str
    is_offered: bool


class Visit:
    """A page in a window of its own, and everything that it complained of or asked for.

    Args:
        browser: To open the window in.
        file: The page.
        options: Of the window, such as ``color_scheme`` or ``viewport``.
    """

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self._note(said.type, said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def text(self, selector: str) -> str:
        """Returns what is to be read in an element."""
        return self.page.inner_text(selector)

    def slide(self, name: str, position: int) -> None:
        """Puts a slider somewhere, as a hand would."""
        self.page.locator(f"#{name}").evaluate(
            "(slider, position) => { slider.value = position;"
            " slider.dispatchEvent(new Event('input', { bubbles: true })); }",
            position,
        )

    def positions(self, name: str) -> int:
        """Returns the last position of a slider."""
        return int(self.page.get_attribute(f"#{name}", "max") or 0)

    def choices(self, places: Sequence[tuple[int, int]]) -> list[Choice]:
        """Puts both sliders to many places, with either preference, all in one go."""
        told = self.page.evaluate(
            """places => {
              const find = id => document.getElementById(id);
              const text = id => find(id).textContent;
              const put = (id, value) => {
                find(id).value = value;
                find(id).dispatchEvent(new Event('input', { bubbles: true }));
              };
              return places.flatMap(([budget, floor]) => ['accuracy', 'latency'].map(prefer => {
                document.querySelector(`input[value=${prefer}]`).checked = true;
                put('budget', budget);
                put('floor', floor);
                return [
                  budget, floor, prefer, text('choice-name'), text('command'),
                  text('command-number'), !find('commands').hidden,
                ];
              }));
            }""",
            places,
        )
        return [Choice(*one) for one in told]

    def drawn(self, kind: str) -> int:
        """Returns how many marks of a kind can be seen in the plot."""
        count: int = self.page.evaluate(
            "kind => { const chart = document.getElementById('chart');"
            " const shown = chart.data.filter(trace => trace.visible !== false);"
            " const traces = chart.querySelectorAll('.scatterlayer .trace');"
            " return [...traces].flatMap(one => one.__data__[0].trace.name === kind"
            "   ? [...one.querySelectorAll('.point')] : []).length; }",
            kind,
        )
        return count
