"""Views of `tuneyard lineage` as a tree for a terminal. Pure: a view in, a rich tree out.

Rules:
- the chain is in the branches, the facts of each link are its first lines;
- nothing is shortened: a digest that is cut proves nothing;
- words are folded to the terminal's width; what people copy (digests, addresses) is not, however narrow that is: a
  terminal that wraps a line by itself copies it whole.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from rich.text import Text
from rich.tree import Tree

from tuneyard.api.buildstatus import BuildStatus
from tuneyard.api.buildtask import StepRecord
from tuneyard.api.lineage import Evaluation, Lineage
from tuneyard.cli.lineageview import LineageView, Made, MadeAdapter, ServedRevision

Facts = Iterator[tuple[str, str | Text]]
UNFOLDED = 8192
"""Width of the console that the tree is printed to, so that it folds nothing more."""
_WORDS = frozenset({"missing", "prompt", "warning", "with", "lineage", "build", "by"})
_INDENT = 4
"""Columns that a branch is set in."""


def _headline(word: str, name: str, *more: str) -> Text:
    text = Text.assemble(f"{word} ", (name, "bold"))
    for part in more:
        text.append(f"  {part}" if part else "")
    return text


def _evaluation(evaluation: Evaluation) -> Text:
    words = Text(evaluation.name)
    if evaluation.score is not None:
        words.append(f" {evaluation.score:g}")
    if evaluation.passed is not None:
        words.append(" passed" if evaluation.passed else " failed", style="green" if evaluation.passed else "red")
    words.append(f" on {evaluation.dataset}" if evaluation.dataset else "")
    words.append(f" at {evaluation.evaluated_at}" if evaluation.evaluated_at else "")
    return words


def _record(lineage: Lineage) -> Facts:
    if lineage.parent:
        yield "trained from", lineage.parent
    if lineage.dataset or lineage.dataset_hash:
        known = [lineage.dataset, lineage.dataset_hash]
        yield "data", "\n".join(k for k in known if k)
    if lineage.hyperparameters:
        yield "with", ", ".join(f"{key}={value}" for key, value in sorted(lineage.hyperparameters.items()))
    if lineage.run:
        yield "run", lineage.run
    if lineage.commit:
        yield "commit", lineage.commit
    trained = [lineage.trained_at or "", f"by {lineage.trained_by}" if lineage.trained_by else ""]
    if any(trained):
        yield "trained", " ".join(t for t in trained if t)
    if lineage.evals:
        yield "evals", Text("\n").join(_evaluation(e) for e in lineage.evals)


def _step(step: StepRecord) -> str:
    """One step of a build, with all that it takes to make it again."""
    tools = ", ".join(f"{name} {version}" for name, version in sorted((step.tools or {}).items()))
    seed = f"seed {step.seed}" if step.seed is not None else ""
    checks = ", ".join(f"{name}: {found}" for name, found in sorted((step.checks or {}).items()))
    return _printable("; ".join(part for part in (step.kind, tools, seed, checks) if part))


def _built(build: BuildStatus) -> Facts:
    if not build.succeeded:
        yield "build", Text(_printable(f"{build.state}: {build.progress or 'it has not begun'}"), style="yellow")
    for given in build.inputs or ():
        yield "built from", f"{given.kind} {given.name}\n{given.digest}"
    for step in build.steps or ():
        yield "by", _step(step)
    if build.output and build.succeeded:
        yield "built at", f"{build.finished_at} into {build.output}" + (f"@{build.commit}" if build.commit else "")


def _facts(made: Made) -> Facts:
    if made.missing:
        yield "missing", Text("it is named and does not exist", style="red")
        return
    yield "digest", made.digest or Text("not known yet: no pod has read it", style="yellow")
    if made.source:
        yield "source", made.source
    if made.build is not None:
        yield from _built(made.build)
    if made.promoted_at:
        yield "promoted", f"{made.promoted_at} by {made.promoted_by}"
    if isinstance(made, MadeAdapter) and made.system_prompt:
        yield "prompt", f"{made.system_prompt.identity[1]}: {_printable(made.system_prompt.text)}"
    if isinstance(made, MadeAdapter) and made.warning:
        yield "warning", Text(made.warning, style="yellow")
    if made.lineage is not None:
        yield from _record(made.lineage)
    elif isinstance(made, MadeAdapter):
        yield "lineage", Text("nothing was recorded; `tuneyard import` does for the next version", style="dim")


def _link(tree: Tree, word: str, made: Made, depth: int, width: int) -> Tree:
    """Add a link of the chain; `depth`: how many branches are above it."""
    version = made.lineage.version if made.lineage else None
    facts = list(_facts(made))
    keys = max(len(key) for key, _ in facts) + 2
    room = max(width - _INDENT * (depth + 2) - keys, 20)
    block = Text("\n").join(
        Text.assemble(((key if first else "").ljust(keys), "dim"), line)
        for key, value in facts
        for first, line in _lines(key, value, room)
    )
    branch = tree.add(_headline(word, made.name, version or ""))
    branch.add(block)
    return branch


def _lines(key: str, value: str | Text, room: int) -> Iterator[tuple[bool, Text]]:
    """The lines of a fact, each with whether it is the first."""
    text = Text(value) if isinstance(value, str) else value
    lines = [Text(line, text.style) for line in _folded(text.plain, room)] if key in _WORDS else text.split("\n")
    for number, line in enumerate(lines):
        yield number == 0, line


def _folded(text: str, room: int) -> list[str]:
    """Folded between words only: `2e-4` is one."""
    lines = text.split("\n")
    return [f for line in lines for f in textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)]


def _printable(text: str) -> str:
    """What a terminal would take for a command, as an escape."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _gets(revision: ServedRevision) -> str:
    if revision.weight is None or revision.weight == revision.spec_weight:
        return f"{revision.spec_weight} %"
    return f"{revision.weight} % now, {revision.spec_weight} % in spec"


def _revision_line(revision: ServedRevision, name: str) -> Text:
    role = f"{revision.role} since {revision.stable_since}" if revision.stable_since else revision.role
    return _headline("revision", name, _gets(revision), role)


def _made_of(branch: Tree, revision: ServedRevision, width: int) -> None:
    if revision.external is not None:
        branch.add(_headline("external", revision.external.model, revision.external.url))
    if revision.adapter is not None:
        branch = _link(branch, "adapter", revision.adapter, 1, width)
    if revision.base is not None:
        _link(branch, "base", revision.base, 2 if revision.adapter else 1, width)


def render_lineage(view: LineageView, width: int) -> Tree:
    """The whole tree, its words folded at `width`; to be printed UNFOLDED."""
    word = {"ModelDeployment": "deployment", "LoRAAdapter": "adapter", "BaseModel": "base"}[view.kind]
    tree = Tree(_headline(word, f"{view.namespace}/{view.name}"), guide_style="dim")
    if view.kind == "ModelDeployment":
        for revision in view.revisions:
            branch = tree.add(_revision_line(revision, revision.name))
            _made_of(branch, revision, width)
        return tree
    for revision in view.revisions:
        if view.adapter is not None or revision.adapter is None:
            tree.add(_revision_line(revision, f"{revision.deployment}/{revision.name}"))
    if not view.revisions:
        tree.add(Text("no revision serves it", style="yellow"))
    branch = _link(tree, "adapter", view.adapter, 0, width) if view.adapter is not None else tree
    if view.base is not None:
        branch = _link(branch, "base", view.base, 1 if view.adapter is not None else 0, width)
    for adapter in view.adapters:
        _link(branch, "adapter", adapter, 1, width)
    return tree
