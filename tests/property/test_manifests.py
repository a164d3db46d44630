"""Pinning any layout of a manifest: what was inserted taken out again, every byte is the old one."""

from __future__ import annotations

import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneyard.cli.manifests import Pins, artifacts, pinned

COMMIT = "0e9e39f249a16976918f6564b8830bc894c89659"
DIGEST = f"sha256:{'ab' * 32}"

spaces = st.sampled_from(["", " ", "   "])
comments = st.sampled_from(["", "  # why", " # it's: {odd} 'text' ☃ 😀"])
between = st.lists(st.sampled_from(["", "# a comment", "      # far right", "#digest: no"]), max_size=3)
quotes = st.sampled_from(["", "'", '"'])
line_ends = st.sampled_from(["\n", "\r\n"])


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A BaseModel, in lines that end with \\n."""
    indent = " " * draw(st.integers(1, 6))
    quote = draw(quotes)
    if draw(st.booleans()):
        source = [f"{indent}source: {{huggingFace: {{repo: a/b, revision: {quote}main{quote}}}}}{draw(comments)}"]
    else:
        deep = indent + " " * draw(st.integers(1, 4))
        fields = [f"{deep}  repo: a/b{draw(comments)}", f"{deep}  revision: {quote}main{quote}{draw(comments)}"]
        source = [
            f"{indent}source:{draw(comments)}",
            *draw(between),
            f"{deep}huggingFace:{draw(comments)}",
            *draw(st.permutations(fields)),
        ]
    serving = [f"{indent}serving: {{engine: vllm}}{draw(comments)}"]
    parts = [source, draw(between), serving] if draw(st.booleans()) else [serving, draw(between), source, draw(between)]
    head = draw(st.permutations(["apiVersion: tuneyard.dev/v1alpha1", "kind: BaseModel", "metadata: {name: x}"]))
    return "\n".join([*draw(between), *head, f"spec:{draw(comments)}", *(line for part in parts for line in part)])


@given(st.lists(documents(), min_size=1, max_size=3), line_ends, st.booleans(), st.data())
def test_only_the_pins_are_new(found: list[str], end: str, last: bool, data: st.DataObject) -> None:
    text = ("\n---\n".join(found) + ("\n" if last else "")).replace("\n", end)
    chosen = [
        Pins(a.position, COMMIT if data.draw(st.booleans()) else None, DIGEST if data.draw(st.booleans()) else None)
        for a in artifacts(text)
    ]
    changed = pinned(text, chosen)
    for document, pin in zip(yaml.safe_load_all(changed), chosen, strict=True):
        assert document["spec"]["source"]["huggingFace"]["revision"] == (pin.revision or "main")
        assert document["spec"].get("digest") == pin.digest
    lines = [line for line in changed.split(end) if line.strip() != f"digest: {DIGEST}"]
    assert end.join(lines).replace(COMMIT, "main") == text
