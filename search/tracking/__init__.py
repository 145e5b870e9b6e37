"""Experiment tracking with MLflow: ``server`` reaches it, ``tracker`` writes a study into it."""

import logging
import os

# MLflow reads these when it is imported. Or it prints two lines a trial, with the server's password
# in them.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

import mlflow  # noqa: F401  # it sets the level of its own log, which is set again below

# It would write to standard error by itself, past what hides passwords in the project's log.
logging.getLogger("mlflow").handlers.clear()
logging.getLogger("mlflow").propagate = True
# Both are chatty about creating a database, which is no news to a user.
logging.getLogger("mlflow").setLevel(logging.WARNING)
logging.getLogger("alembic").setLevel(logging.WARNING)
# What it says there with a traceback of many lines it raises too, and is then told in one.
logging.getLogger("mlflow.store.db.utils").addFilter(lambda record: record.exc_info is None)
