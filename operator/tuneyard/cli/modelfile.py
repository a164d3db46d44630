"""A BaseModel and a LoRAAdapter of a manifest as a Modelfile for Ollama.

Rules:
- a file on a volume is named as it is in the pool's pods (/artifacts/<volume>/<path>); --gguf names it elsewhere;
- what comes from a hub is named as Ollama fetches it (hf.co/<repo>), which only GGUF repositories are. That name has
  no place for a revision, so the first line says which one the manifest means;
- an adapter's system prompt becomes SYSTEM, which Ollama leaves out where a chat has one of its own;
- nothing is guessed: what a Modelfile cannot say is an error that says what to give.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any, TypeVar

from pydantic import ValidationError

from tuneyard.api.basemodel import BaseModelSpec
from tuneyard.api.loraadapter import LoRAAdapterSpec
from tuneyard.api.sources import Source
from tuneyard.cli.errors import UserError
from tuneyard.cli.manifestread import read_objects, text_of
from tuneyard.planning.podvolumes import ARTIFACTS

_QUOTES = '"""'
_S = TypeVar("_S", BaseModelSpec, LoRAAdapterSpec)


def modelfile_of(file: str, adapter: str | None, gguf: str | None, adapter_gguf: str | None) -> str:
    """The Modelfile; raises UserError."""
    objects = read_objects(file, text_of(file))
    lora = _named(objects, "LoRAAdapter", adapter, LoRAAdapterSpec) if adapter else None
    base = _named(objects, "BaseModel", lora.base_model if lora else None, BaseModelSpec)
    lines = [] if gguf else _unpinned(base.source)
    lines.append(f"FROM {gguf or _place(base.source, 'the base', '--gguf')}")
    if lora is None:
        return "\n".join([*lines, ""])
    lines.append(f"ADAPTER {adapter_gguf or _adapter(lora.source)}")
    if lora.system_prompt is not None:
        lines.append(f"SYSTEM {_QUOTES}{_prompt(lora)}{_QUOTES}")
    return "\n".join([*lines, ""])


def _named(objects: list[tuple[str, dict[str, Any]]], kind: str, name: str | None, spec: type[_S]) -> _S:
    found = [o for k, o in objects if k == kind and name in (None, (o.get("metadata") or {}).get("name"))]
    if len(found) != 1:
        which = f"{kind} {name}" if name else kind
        raise UserError(f"the file has {len(found)} objects {which}, one is needed")
    try:
        return spec.model_validate(found[0].get("spec") or {})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{kind} {name or ''}: spec.{place}: {first['msg']}") from error


def _place(source: Source, what: str, flag: str) -> str:
    if source.hugging_face is not None:
        return f"hf.co/{source.hugging_face.repo}"
    if source.volume is not None and source.volume.path.endswith(".gguf"):
        return f"{ARTIFACTS}/{source.volume.name}/{source.volume.path}"
    raise UserError(f"{what}'s source does not name a GGUF file: give its path with {flag}")


def _unpinned(source: Source) -> list[str]:
    """A comment on what Ollama fetches in place of a pinned revision."""
    hub = source.hugging_face
    if hub is None:
        return []
    words = (
        f"the manifest pins revision {hub.revision} of {hub.repo}, Ollama fetches the newest: for that one, fetch its"
    )
    return [f"# {words} file and name it with --gguf"]


def _adapter(source: Source) -> str:
    # llama.cpp reads adapters as GGUF, PEFT writes safetensors: there is a file only once it is converted
    if source.volume is not None and source.volume.path.endswith(".gguf"):
        return f"{ARTIFACTS}/{source.volume.name}/{source.volume.path}"
    raise UserError(
        "the adapter's source is a folder of safetensors, Ollama reads an adapter as GGUF: convert it with llama.cpp's "
        "convert_lora_to_gguf.py and give the file with --adapter-gguf"
    )


def _prompt(lora: LoRAAdapterSpec) -> str:
    text = lora.system_prompt.text if lora.system_prompt else None
    if not text:
        raise UserError("the adapter's system prompt is not in the manifest (spec.systemPrompt.text): write it there")
    if _QUOTES in text:
        raise UserError(f"the system prompt has {_QUOTES} in it, which a Modelfile cannot hold")
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        lost = next((c for c in line if c != "\t" and not c.isprintable()), None)
        if lost is not None:
            words = (
                f"line {number} of the system prompt has {unicodedata.name(lost, 'a character')} (U+{ord(lost):04X})"
            )
            raise UserError(f"{words} in it, which Ollama leaves out of a Modelfile: put another one there")
    return text
