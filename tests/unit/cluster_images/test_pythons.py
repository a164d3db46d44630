"""Locks, keys and programs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import pythons
from cluster.errors import ClusterError
from cluster.pythons import Lock

TEXT = """\
one==1.0 \\
    --hash=sha256:aa
    # via -r x.in
two==2.0 ; python_version < "3.12" \\
    --hash=sha256:bb
two==3.0 ; python_version >= "3.12" \\
    --hash=sha256:cc
"""


def test_a_lock_is_read_by_package() -> None:
    entries = Lock("x", TEXT).entries

    assert list(entries) == ["one", "two"]
    assert entries["one"].startswith("one==1.0")
    assert "bb" in entries["two"]
    assert "cc" in entries["two"]
    assert "".join(entries.values()) == TEXT


def test_keys_tell_parts_apart() -> None:
    assert pythons.key_over("ab", "c") != pythons.key_over("a", "bc")
    assert pythons.key_over("ab", "c") == pythons.key_over("ab", "c")
    assert pythons.environment_key(Lock("x", TEXT)) != pythons.environment_key(Lock("x", TEXT + "#"))


def test_a_program_that_fails_is_reported_with_its_last_words() -> None:
    with pytest.raises(ClusterError, match=r"ended with 3:\n.*no such thing"):
        pythons.run([sys.executable, "-c", "import sys; print('no such thing', file=sys.stderr); sys.exit(3)"])


def test_a_program_that_is_not_there_comes_with_its_remedy() -> None:
    with pytest.raises(ClusterError, match="no-such-program is not installed: apt-get install it"):
        pythons.run(["no-such-program"], remedy="apt-get install it")


def test_scratch_folders_go_even_after_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), pythons.scratch(tmp_path / "beside") as folder:
        (folder / "x").touch()
        raise RuntimeError
    assert list((tmp_path / "beside").iterdir()) == []


@pytest.mark.lasting
def test_byte_code_is_used_unchecked_and_does_not_depend_on_the_folder(tmp_path: Path) -> None:
    made = []
    for number in ("1", "2"):
        folder = tmp_path / number
        (folder / "package" / "tests").mkdir(parents=True)
        (folder / "package" / "module.py").write_text("names = {'a', 'b', 'c'}\n\n\ndef f():\n    return __name__\n")
        (folder / "package" / "tests" / "test_x.py").write_text("raise RuntimeError\n")
        pythons.compile_site(folder, [sys.executable])
        (compiled,) = folder.rglob("*.pyc")
        made.append(compiled.read_bytes())
        os.utime(folder / "package" / "module.py", (1, 1))
        command = [sys.executable, "-v", "-c", "import package.module"]
        said = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stderr
        assert f"code object from '{compiled}'" in said

    assert made[0] == made[1]
