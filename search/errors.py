"""The error tree, named by what the caller does next."""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

PASSWORD = re.compile(r"(?<=://)([^/\s:@]*):\S*@")
PASSWORD_KEY = re.compile(r"(?i)([?&]\w*pass\w*=)[^&\s'\"]+")
PASSWORD_KEY_WITH_QUOTES = re.compile(r"(?i)([?&]\w*pass\w*=)[^&]+")
PASSWORD_WITH_SPACES = re.compile(r"(?s)(?<=://)([^/:@]*):.*@")
# Endings of names whose values are nobody's business.
SECRET = r"password|passwd|pwd|secret|token|(?:api|access|private|secret)_?key|credentials?"
# As YAML, Python, a shell or an address writes it; whether there is none may be known.
# A quote that ends behind the name must have begun as the name does, or it ends some value.
NAMED_SECRET = re.compile(
    rf"(?i)((?:['\"][\w .-]*(?:{SECRET})['\"]|(?:{SECRET}))[ \t]*[:=][ \t]*)"
    r"(?!(?:null|none|true|false)\b|\*\*\*)('[^']*'|\"[^\"]*\"|[^\s,;&}\])'\"]+)"
)
# A line of YAML: its value may hold spaces, and ends with it.
SECRET_LINE = re.compile(
    rf"(?im)^([ \t]*[\w.-]*(?:{SECRET})['\"]?:[ \t]+)(?!(?:null|none|true|false)[ \t]*$|['\"])(.+)$"
)
BEARER = re.compile(r"(?i)(\bbearer[ \t]+)[\w.~+/=-]+")
# Where there is no password, the user's part may be a token.
TOKEN = re.compile(r"(?i)(\bhttps?://)[^/\s:@]+@")
LONGEST_LINE = 1000


def hide_passwords(text: str) -> str:
    """Returns ``text`` with ``***`` for every password in an address, and every named secret.

    An address that is written wrongly counts too: its password is as secret.
    """
    shown = PASSWORD_KEY.sub(r"\1***", PASSWORD.sub(r"\1:***@", text))
    shown = SECRET_LINE.sub(r"\1'***'", BEARER.sub(r"\1***", TOKEN.sub(r"\1***@", shown)))
    # In quotes, because bare asterisks mean something in YAML.
    return NAMED_SECRET.sub(r"\1'***'", shown)


def hide_password(address: str) -> str:
    """Returns what should be one address, written wrongly or not, with ``***`` for its password."""
    return hide_passwords(
        PASSWORD_KEY_WITH_QUOTES.sub(r"\1***", PASSWORD_WITH_SPACES.sub(r"\1:***@", address))
    )


def printable(text: str, longest: int = LONGEST_LINE) -> str:
    """Returns ``text`` in one line that does nothing to a terminal, cut where it is too long."""
    cut = text[: longest + 1]
    flat = "".join(letter if letter.isprintable() else " " for letter in cut)
    return flat if len(text) <= longest else f"{flat[:longest]}..."


def one_line(error: BaseException) -> str:
    """Returns an exception's type and the first line of its text, without secrets."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    # Cut before, because looking for secrets in a flood takes long.
    return f"{name}: {printable(hide_passwords(lines[0][: 10 * LONGEST_LINE]))}" if lines else name


def raised_at(error: BaseException) -> str:
    """Names the line of the user's code that an exception came from, such as `` (nets.py:12)``."""
    paths = sysconfig.get_paths()
    others = (
        *(paths[name] for name in ("stdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
    )
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*others, "<"))]
    return f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""


class SearchError(Exception):
    """Base of every error this project raises on purpose; its text is one line."""


class ConfigError(SearchError):
    """The configuration or an input cannot work: stop, and let the user edit it."""


class StudyNotReady(ConfigError):  # noqa: N818 - named by what is so
    """The study is being searched, or has not begun: come back later."""


class TrackingSilent(ConfigError):  # noqa: N818 - named by what happened
    """The tracking server does not answer: go on without it where that works, or stop.

    Args:
        what: Which one, and how it failed.
        remedy: What the user can do where nothing works without it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what}; {remedy}")
        self.what = what


class DeviceLost(SearchError):  # noqa: N818 - named by what happened
    """The connection to the device broke and did not come back; finished trials are kept."""


class StorageLost(SearchError):  # noqa: N818 - named by what happened
    """The database that holds the study went away; finished trials are kept."""


class StudyTaken(StorageLost):
    """Another process took the study over while its database was away: leave it all to that one."""


class TrackingLost(SearchError):  # noqa: N818 - named by what happened
    """The tracking server went away: deliver later what it missed."""


class FileLost(SearchError):  # noqa: N818 - named by what happened
    """A file of the store is missing or damaged: do without it, or have it made anew."""


class NotRemembered(SearchError):  # noqa: N818 - an answer, not a fault
    """The store does not know what a step answers: leave out what needs it."""


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
