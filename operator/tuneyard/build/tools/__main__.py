"""One tool, once: `python -m tuneyard.build.tools REQUEST REPORT`.

A request is `{"tool": NAME, "output": FOLDER, "settings": {...}}`; a tool writes into the folder, which is empty, and
returns what is to be recorded of it.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

from tuneyard.build.tools.reporting import Report, ToolError

TOOLS = ("merge", "mergekit", "quantize", "gguf", "check")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def main(arguments: list[str]) -> int:
    """Run the tool of a request; whatever it has to say is in the report, the exit code is 0 where it was done."""
    os.environ.update(_OFFLINE)  # before any library reads it
    request = json.loads(Path(arguments[0]).read_text())
    with Path(arguments[1]).open("w") as file:
        report = Report(file)
        try:
            if request["tool"] not in TOOLS:
                raise ToolError(f"there is no tool {request['tool']}: the image is older than the operator, update it")
            module = importlib.import_module(f"tuneyard.build.tools.{request['tool']}")
            output = Path(request["output"])
            output.mkdir(parents=True, exist_ok=True)
            report.result(module.run(request["settings"], output, report))
        except ToolError as error:
            report.error(str(error))
            return 1
        except MemoryError:
            report.error("there is not enough memory: raise build.resources", expected=False)
            return 1
        except Exception as error:  # noqa: BLE001 -- of any of a dozen libraries; the log has all of it
            traceback.print_exc()
            words = (str(error).strip().splitlines() or [""])[0][:300]
            report.error(f"{request['tool']} failed with {type(error).__name__}: {words}", expected=False)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
