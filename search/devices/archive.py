"""The agent as one file that Python runs.

Source: PEP 441, zip applications.
"""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

from search.devices import agent

FOLDER = Path(agent.__file__).parent
NAME = "agent.pyz"
MAIN = "from agent.supervisor import main\n\nmain()\n"
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # a zip file's earliest time


@functools.cache
def archive() -> bytes:
    """Returns the archive: the same bytes whenever and wherever it is made."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr(zipfile.ZipInfo("__main__.py", LONG_AGO), MAIN)
        for path in sorted(FOLDER.rglob("*.py")):
            name = f"agent/{path.relative_to(FOLDER).as_posix()}"
            packed.writestr(zipfile.ZipInfo(name, LONG_AGO), path.read_bytes())
    return content.getvalue()
