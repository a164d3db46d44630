"""The operator's log: one line per fact on standard error, plain or JSON (TUNEYARD_LOG=json).

Libraries speak up from WARNING on only: at DEBUG they print requests, and a request may hold a Secret.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

_OWN = "tuneyard"


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and error where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def configure() -> None:
    """Set logging up for this process; level from TUNEYARD_LOG_LEVEL (default INFO) for our own loggers."""
    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    handler.setFormatter(JsonLines() if os.environ.get("TUNEYARD_LOG") == "json" else plain)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    level = os.environ.get("TUNEYARD_LOG_LEVEL", "INFO").upper()
    logging.getLogger(_OWN).setLevel(level if level in logging.getLevelNamesMapping() else "INFO")
    # kopf prints pages for every watch that ends; the informers, and handlers.events, say the same in one line
    logging.getLogger("kopf").setLevel(logging.CRITICAL + 1)
