"""The view of `tuneyard plan` for a terminal. Pure: a view in, rich renderables out."""

from __future__ import annotations

import shlex

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tuneyard.cli.planview import MemoryView, PlanView, PoolView
from tuneyard.planning.sizes import size_for_people

_INDENT = (0, 0, 0, 2)


def rendered(view: PlanView) -> RenderableType:
    """Each pool: pods, GPUs, arguments, memory."""
    notes = [Text(f"note: {note}") for note in view.notes or ()]
    if not view.pools:
        return Group(Text("the manifests make no pool: there is no BaseModel in them"), *notes)
    return Group(*(part for pool in view.pools for part in (_pool(pool), Text(""))), *notes)


def _pool(pool: PoolView) -> RenderableType:
    users = ", ".join(pool.used_by) if pool.used_by else "nothing yet"
    grouped = f" in {_counted(pool.groups, 'group')}" if pool.groups is not None else ""
    each = f"{_counted(pool.pods, 'pod')}{grouped} of {_counted(pool.gpus_per_pod, 'GPU')}"
    parts: list[RenderableType] = [
        Text(f"Pool {pool.name} of {pool.base_model}, used by {users}", style="bold"),
        *([Padding(Text(f"made first, by a Job: {', then '.join(pool.built_by)}"), _INDENT)] if pool.built_by else []),
        Padding(Text(f"{each}: {pool.gpus} in all"), _INDENT),
        Padding(Text(f"{pool.engine}, image {pool.image}"), _INDENT),
        Padding(Text(shlex.join(pool.arguments)), _INDENT),
    ]
    if pool.problem:
        parts.append(Padding(Text(f"refused: {pool.problem}", style="red"), _INDENT))
    if pool.warning:
        parts.append(Padding(Text(f"warning: {pool.warning}", style="yellow"), _INDENT))
    if pool.memory:
        parts.append(Padding(_memory(pool.memory, bool(pool.gpus_per_pod)), _INDENT))
    elif pool.memory_unknown:
        parts.append(Padding(Text(f"memory: {pool.memory_unknown}"), _INDENT))
    return Group(*parts)


def _memory(memory: MemoryView, on_gpus: bool) -> RenderableType:
    table = Table(box=None, pad_edge=False, show_header=True, header_style="")
    table.add_column("MEMORY OF THE FULLEST GPU" if on_gpus else "MEMORY OF AN ENGINE PROCESS")
    table.add_column("", justify="right")
    table.add_row("weights", size_for_people(memory.weights))
    table.add_row("slots for adapters", size_for_people(memory.adapters))
    table.add_row("working memory (a rule of thumb)", size_for_people(memory.working))
    cache = memory.kv_per_token * memory.context
    per_token = size_for_people(memory.kv_per_token)
    table.add_row(f"KV cache of one request of {memory.context} tokens, {per_token} each", size_for_people(cache))
    table.add_row("needed", size_for_people(memory.needed))
    if memory.usable is not None and memory.kv_cache is not None:
        of = f" of {size_for_people(memory.gpu_memory)}" if memory.gpu_memory else ""
        table.add_row(
            "the engine may use" if memory.gpu_memory else "given for the KV cache",
            f"{size_for_people(memory.usable)}{of}",
        )
        table.add_row("left for the KV cache", size_for_people(memory.kv_cache))
        table.add_row("tokens of KV cache", str(memory.kv_tokens))
        table.add_row("requests of full length at a time", str(memory.requests_at_full_context))
    if memory.adapters_in_memory:
        table.add_row("adapters in the pod's memory, at most", size_for_people(memory.adapters_in_memory))
    parts: list[RenderableType] = [table]
    if memory.usable is None and on_gpus:
        parts.append(Text("how much a GPU has is not known: set serving.gpuMemory, or give --gpu-memory"))
    if memory.not_counted:
        parts.append(Text(f"not counted: {'; '.join(memory.not_counted)}"))
    if memory.not_checked:
        parts.append(Text(f"no reason to refuse the pool: {memory.not_checked}"))
    return Group(*parts)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
