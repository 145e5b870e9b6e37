"""Where studies and what is shown of them are kept."""

from __future__ import annotations

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
)
from pydantic.dataclasses import dataclass

from search.config.values import NonNegative, Positive, strict

DATABASE_URL = re.compile(r"postgres(ql)?(\+psycopg)?://[^\s'\"@]*(@[^\s'\"@]*)?\Z")


def _has_form(address: str, form: re.Pattern[str]) -> bool:
    try:
        urlsplit(address).port  # noqa: B018 - raises when it is no number
    except ValueError:
        return False
    return form.match(address) is not None


def _name_a_database(url: str) -> str:
    if not _has_form(url, DATABASE_URL):
        raise ValueError(
            "input should be a database such as postgresql://user@host:5432/name, special "
            "characters of its password in percent form, such as %40 for @"
        )
    return url


@dataclass(frozen=True, config=strict)
class JournalStorageConfig:
    """Studies are files."""

    name: Literal["journal"]


@dataclass(frozen=True, config=strict)
class PostgresStorageConfig:
    """Studies are in a PostgreSQL database."""

    name: Literal["postgres"]
    url: Annotated[str, AfterValidator(_name_a_database)]
    retry_s: NonNegative


StorageConfig = Annotated[JournalStorageConfig | PostgresStorageConfig, Field(discriminator="name")]
TRACKING_URI = re.compile(
    r"(https?|(sqlite|postgresql|mysql|mssql)(\+\w+)?)://[^/\s'\"][^\s'\"]*\Z|sqlite:///."
)


def _trackable(uri: str) -> str:
    if not _has_form(uri, TRACKING_URI):
        raise ValueError(
            "input should be a server such as http://host:5000, a database such as "
            "sqlite:///folder/mlflow.db, or null for mlruns/mlflow.db"
        )
    return uri


@dataclass(frozen=True, config=strict)
class TrackingConfig:
    """Where finished trials are shown."""

    uri: Annotated[str, AfterValidator(_trackable)] | None
    timeout_s: Positive
