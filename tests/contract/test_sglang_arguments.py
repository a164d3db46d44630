"""What the preset `sglang` says to SGLang: each argument is one that its command has, read in its package.

SGLang derives its command line from fields of classes: `name: A[type, "help"]` or `name: A[type, Arg(aliases=[…])]`.
They are read, not run: that would need torch, and of SGLang's kernels the package index has no build for CPUs.
Marked slow: the package has 39 MB.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.builders import VOLUME, base_model, deployment, revision
from tuneyard.api.serving import ServingSpec
from tuneyard.planning.pools import pools_of
from tuneyard.planning.presetcontainers import arguments, command
from tuneyard.planning.servingchecks import engine_cannot, reserved_argument

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

LOCK = Path(__file__).resolve().parents[2] / "requirements" / "sglang.txt"
FIELDS = "sglang/srt/arg_groups/fields/"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("sglang")
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([*fetch, "--require-hashes", "--dest", str(folder), "-r", str(LOCK)], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        yield archive


@pytest.fixture(scope="module")
def options(package: zipfile.ZipFile) -> dict[str, list[str]]:
    """Every argument's names, by its field."""
    files = [name for name in package.namelist() if name.startswith(FIELDS) and name.endswith(".py")]
    found: dict[str, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(package.read(file))):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = list(_names(node.target.id, node.annotation))
                found |= {node.target.id: names} if names else {}
    return found


def _names(field: str, annotation: ast.expr) -> Iterator[str]:
    """What an annotated field is called on the command line."""
    if not (isinstance(annotation, ast.Subscript) and isinstance(annotation.value, ast.Name)):
        return
    if annotation.value.id != "A" or not isinstance(annotation.slice, ast.Tuple):
        return
    told = next((part for part in annotation.slice.elts[1:] if isinstance(part, ast.Call)), None)
    given = {word.arg: word.value for word in told.keywords} if told else {}
    if "no_cli" in given:
        return
    yield ast.literal_eval(given["cli_name"]) if "cli_name" in given else f"--{field.replace('_', '-')}"
    if "aliases" in given:
        yield from ast.literal_eval(given["aliases"])


def test_every_argument_of_the_preset_is_one_of_sglang(options: dict[str, list[str]]) -> None:
    serving = ServingSpec(
        engine="sglang", image="i", tensor_parallel_size=2, max_model_len=512, artifact_volumes=[VOLUME]
    )
    base = base_model(serving=serving)
    (pool,) = pools_of(base, [deployment(revisions=[revision("v1")])])
    known = {name for names in options.values() for name in names}
    assert len(known) > 100, "the package's command line is found where it was"
    given = [argument for argument in arguments(pool, base) if argument.startswith("-")]
    assert len(given) == 7
    assert set(given) <= known


def test_its_command_is_a_module_of_sglang(package: zipfile.ZipFile) -> None:
    serving = ServingSpec(engine="sglang", image="i", artifact_volumes=[VOLUME])
    (pool,) = pools_of(base_model(serving=serving), [deployment(revisions=[revision("v1")])])
    module = (command(pool) or [])[-1]
    assert f"{module.replace('.', '/')}.py" in package.namelist()
    assert b'if __name__ == "__main__":' in package.read(f"{module.replace('.', '/')}.py")


@pytest.mark.parametrize("field", ["model_path", "served_model_name", "host", "port", "tp_size", "api_key"])
def test_under_no_name_of_its_own_can_it_be_said_again(options: dict[str, list[str]], field: str) -> None:
    for name in options[field]:
        spec = ServingSpec(engine="sglang", image="i", extra_args=[name, "x"], artifact_volumes=[VOLUME])
        (pool,) = pools_of(base_model(serving=spec), [deployment(revisions=[revision("v1")])])
        assert reserved_argument(pool.serving) or engine_cannot(pool.serving), f"extraArgs may not set {name}"
