"""The error tree, named by what the caller does next; knows nothing of what failed."""

from __future__ import annotations

import re

PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):\S*@")
PASSWORD_KEY = re.compile(r"(?i)([?&]\w*pass\w*=)[^&\s'\"]+")
PASSWORD_WITH_SPACES = re.compile(r"(?s)(?<=://)([^/:@]*):.*@")


def hide_passwords(text: str) -> str:
    """Returns ``text`` with ``***`` for the password of every address in it.

    An address that is written wrongly counts too: its password is as secret.
    """
    return PASSWORD_KEY.sub(r"\1***", PASSWORD.sub(r"\1:***@", text))


def hide_password(address: str) -> str:
    """Returns what should be one address, written wrongly or not, with ``***`` for its password."""
    return hide_passwords(PASSWORD_WITH_SPACES.sub(r"\1:***@", address))


def one_line(error: BaseException) -> str:
    """Returns an exception's type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


class SearchError(Exception):
    """Base of every error this project raises on purpose; its text is one line."""


class ConfigError(SearchError):
    """The configuration or an input cannot work: stop, and let the user edit it."""


class DeviceLost(SearchError):  # noqa: N818 - named by what happened
    """The connection to the device broke and did not come back; finished trials are kept."""


class StorageLost(SearchError):  # noqa: N818 - named by what happened
    """The database that holds the study went away; finished trials are kept."""


class TrackingLost(SearchError):  # noqa: N818 - named by what happened
    """The tracking server went away: stop; the same command delivers what it missed."""


class NotMet(SearchError):  # noqa: N818 - an answer, not a fault
    """What the user demands of a point or a model is not met; says what binds, what there is."""


class InfeasiblePoint(SearchError):  # noqa: N818 - a verdict on a point, not a fault
    """This point cannot be realised: record the trial as infeasible and go on."""


class StageFailed(SearchError):  # noqa: N818 - named by what happened to the trial
    """A stage of this trial failed: record the reason and go on.

    Args:
        stage: Name of the stage, such as ``finetune``.
        reason: One line with what was needed, what was got, and the remedy.
    """

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason

    def __reduce__(self) -> tuple[type[StageFailed], tuple[str, str]]:
        """Lets it pass between processes."""
        return type(self), (self.stage, self.reason)
