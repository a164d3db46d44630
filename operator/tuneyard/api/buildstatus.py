"""How far the build of a base is: `BaseModel.status.build`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tuneyard.api.base import ApiModel
from tuneyard.api.buildtask import StepRecord, UsedInput
from tuneyard.api.lineage import Moment
from tuneyard.api.schema import Text


class BuildStatus(ApiModel):
    """Where a build stands. Once it has succeeded nothing of it changes any more."""

    state: Annotated[
        Literal["Waiting", "Running", "Failed", "Succeeded"],
        Field(description="Waiting: for its inputs. Failed: an attempt has, and another follows at retryAt."),
    ]
    key: Annotated[
        str | None,
        Field(
            max_length=32, description="Hash of the steps, the inputs' digests and the toolset: what names the result."
        ),
    ] = None
    step: Annotated[str | None, Field(max_length=64, description="Which is made now, for example 2/2 quantize.")] = None
    progress: Annotated[Text | None, Field(description="How far that is, or why it waits or failed.")] = None
    attempt: Annotated[int | None, Field(ge=1, description="The one that runs, or the next one.")] = None
    job: Annotated[str | None, Field(max_length=63, description="Name of the Job of the last attempt.")] = None
    started_at: Moment | None = None
    finished_at: Moment | None = None
    retry_at: Annotated[
        Moment | None,
        Field(description="When the next attempt starts; at once, when somebody deletes the Job of the last one."),
    ] = None
    final: Annotated[
        bool | None, Field(description="The task fails again whenever it is run: it is tried once a day.")
    ] = None
    output: Annotated[Text | None, Field(description="Where the result is, or will be.")] = None
    commit: Annotated[str | None, Field(max_length=40, description="Of a hub: the result's.")] = None
    inputs: Annotated[list[UsedInput] | None, Field(max_length=64, description="What it is made of.")] = None
    steps: Annotated[list[StepRecord] | None, Field(max_length=4, description="How each step was made.")] = None

    @property
    def succeeded(self) -> bool:
        """Whether the result is there."""
        return self.state == "Succeeded"
