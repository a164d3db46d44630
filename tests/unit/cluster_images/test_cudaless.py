"""The stand-ins load where the real libraries would, and a call of them is an error, not a crash."""

import ctypes
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import cudaless


def library(path: Path, soname: str, functions: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cudaless.stand_in(soname, functions))
    return path


def test_a_call_returns_an_error_as_number_nothing_as_text_and_no_as_boolean(tmp_path: Path) -> None:
    loaded = ctypes.CDLL(str(library(tmp_path / "libnccl.so.2", "libnccl.so.2", ["first", "ncclText", "last"])))

    loaded.first.restype = ctypes.c_int
    loaded.ncclText.restype = ctypes.c_char_p
    loaded.last.restype = ctypes.c_bool
    assert loaded.first() != 0
    assert loaded.ncclText() == b""
    assert loaded.last() is False
    with pytest.raises(AttributeError):
        _ = loaded.missing


def test_a_library_without_functions_loads(tmp_path: Path) -> None:
    ctypes.CDLL(str(library(tmp_path / "libcublas.so.13", "libcublas.so.13", [])))


def test_the_symbols_of_a_real_library_are_read_with_the_libraries_their_versions_name() -> None:
    # Python's own extension modules are linked with libc and leave its versions in their tables.
    import _ctypes

    symbols = {symbol.name: symbol for symbol in cudaless.dynamic_symbols(Path(_ctypes.__file__))}

    assert symbols["PyInit__ctypes"].defined
    assert not symbols["PyErr_Format"].defined
    assert symbols["PyErr_Format"].library is None
    assert "libc.so.6" in {symbol.library for symbol in symbols.values()}


def elf(path: Path, symbols: list[tuple[str, bool, str | None]]) -> Path:
    """A library file with a section table: name, defined, library of the version."""
    libraries = list(dict.fromkeys(lib for _, _, lib in symbols if lib))
    strings = bytearray(b"\0")

    def text(value: str) -> int:
        strings.extend(value.encode() + b"\0")
        return len(strings) - 1 - len(value.encode())

    table, versions, needs = bytearray(24), bytearray(2), bytearray()
    for name, defined, lib in symbols:
        table += struct.pack("<IBBHQQ", text(name), 1 << 4 | 2, 0, 1 if defined else 0, 0, 0)
        versions += struct.pack("<H", libraries.index(lib) + 2 if lib else 1)
    for index, lib in enumerate(libraries):
        last = index == len(libraries) - 1
        needs += struct.pack("<HHIII", 1, 1, text(lib), 16, 0 if last else 32)
        needs += struct.pack("<IHHII", 0, 0, index + 2, text(lib), 0)
    parts = [(11, bytes(table), 1, 0), (3, bytes(strings), 0, 0), (0x6FFFFFFF, bytes(versions), 0, 0)]
    parts.append((0x6FFFFFFE, bytes(needs), 1, len(libraries)))
    content, headers = bytearray(64), bytearray()
    for kind, data, link, info in parts:
        headers += struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, len(content), len(data), link, info, 1, 0)
        content += data
    content[0x28:0x30] = struct.pack("<Q", len(content))
    content[0x3A:0x3E] = struct.pack("<HH", 64, len(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(content + headers))
    return path


def site_with_torch(tmp_path: Path) -> Path:
    folder = tmp_path / "site" / "torch" / "lib"
    elf(
        folder / "libtorch_cuda.so",
        [
            ("cublasCreate_v2", False, "libcublas.so.13"),
            ("ncclAllReduce", False, None),
            ("cudaMalloc", False, "libcudart.so.13"),
            ("ncclOwn", False, None),
            ("memcpy", False, "libc.so.6"),
            ("PyErr_Format", False, None),
        ],
    )
    elf(folder / "libtorch_python.so", [("ncclOwn", True, None), ("cuFileRead", False, None)])
    elf(folder / "libtorch_cuda_linalg.so", [("cublasOnlyWithGpu", False, "libcublas.so.13")])
    return tmp_path / "site"


def test_the_functions_are_those_of_absent_libraries_that_nothing_here_defines(tmp_path: Path) -> None:
    site = site_with_torch(tmp_path)
    folder = site / "torch" / "lib"

    written = cudaless.complete(site)

    assert written == [folder / name for name in cudaless.STAND_INS]
    wanted = ["cuFileRead", "cublasCreate_v2", "ncclAllReduce"]
    assert (folder / "libnccl.so.2").read_bytes() == cudaless.stand_in("libnccl.so.2", wanted)
    assert (folder / "libcublas.so.13").read_bytes() == cudaless.stand_in("libcublas.so.13")
    assert cudaless.complete(site) == written, "a second time changes nothing"
    assert (folder / "libnccl.so.2").read_bytes() == cudaless.stand_in("libnccl.so.2", wanted)


def test_real_libraries_are_left_alone(tmp_path: Path) -> None:
    site = site_with_torch(tmp_path)
    (site / "nvidia" / "cu13" / "lib").mkdir(parents=True)
    (site / "nvidia" / "cu13" / "lib" / "libcublas.so.13").touch()

    assert cudaless.complete(site) == []


def test_a_folder_without_torch_gets_none(tmp_path: Path) -> None:
    assert cudaless.complete(tmp_path) == []


def test_a_dockerfile_can_run_it_alone(tmp_path: Path) -> None:
    site = site_with_torch(tmp_path)
    alone = shutil.copy(cudaless.__file__, tmp_path / "cudaless.py")

    said = subprocess.run([sys.executable, "-I", alone, str(site)], check=True, capture_output=True, text=True).stdout

    assert said.splitlines() == [str(site / "torch" / "lib" / name) for name in cudaless.STAND_INS]
