"""The one exception that becomes a line on stderr instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can put right; the message says what and how. `exit_code` is the program's."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
