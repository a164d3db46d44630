"""Why a build ends without a result."""

from __future__ import annotations

from tuneyard.systems.artifacts.folder import ArtifactError


class BuildError(Exception):
    """One line for people; `again`: whether the next attempt may succeed with the same task."""

    def __init__(self, message: str, *, again: bool, reason: str | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.reason = reason


class StoppedError(BuildError):
    """The pod is to end."""

    def __init__(self) -> None:
        super().__init__("it was told to end; the next attempt goes on after the last step that was kept", again=True)


def of_artifact(what: str, error: ArtifactError) -> BuildError:
    """An error of files or of where they are: people can put it right, so that the next attempt may succeed."""
    return BuildError(f"{what}: {error}", again=True, reason=error.reason.value)
