"""Front table, plot and page from records; knows neither where records came from nor who shows it.

In particular it imports neither MLflow nor Optuna nor torch.
"""

from search.report.page import front_page
from search.report.plot import front_png
from search.report.table import front_table, markdown_table

__all__ = ["front_page", "front_png", "front_table", "markdown_table"]
