"""Tables, plots and pages from records."""

from search.report.advice import describe_no_gain, describe_result
from search.report.description import describe_trial
from search.report.page import front_page
from search.report.plot import front_png, halved
from search.report.profile import describe_noise
from search.report.table import (
    finalist_markdown,
    finalist_table,
    front_table,
    markdown_table,
)

__all__ = [
    "describe_no_gain",
    "describe_noise",
    "describe_result",
    "describe_trial",
    "finalist_markdown",
    "finalist_table",
    "front_page",
    "front_png",
    "front_table",
    "halved",
    "markdown_table",
]
