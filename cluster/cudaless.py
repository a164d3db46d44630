"""Stand-ins for the CUDA libraries that torch is linked with and never calls on a machine without a GPU.

The torch of the public package index needs 2.9 GB of CUDA libraries to be loaded at all. What has to be there is their
names and the names of the functions torch refers to, because Python loads libraries with every reference resolved. So
each missing library becomes an ELF file of a few hundred bytes, and one of them holds all the functions.

Rules:
- The functions are those that torch's own libraries refer to and nothing else there defines: read from these libraries,
  so another torch release gets its own list.
- Every function returns the address of a page of zeros whose lowest byte is zero. As a status that is an error, as a
  boolean false, as a text empty: a call by mistake fails like a broken driver instead of jumping into nothing.
- The stand-ins have no symbol versions. glibc takes an unversioned definition for a versioned reference, except from
  the very library the version names, so the functions live in one that torch refers to without versions (NCCL).
- Files are only added: the folder may be hard-linked with a package cache.
- Real CUDA runtime and profiler libraries stay: torch calls them when it starts, to learn that there is no GPU.

Runs by itself, `python3 cudaless.py SITE_PACKAGES`, so that a Dockerfile can use it too. 64-bit x86 only.
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

FUNCTIONS_IN = "libnccl.so.2"
STAND_INS = (
    FUNCTIONS_IN,
    "libcublas.so.13",
    "libcublasLt.so.13",
    "libcudnn.so.9",
    "libcufft.so.12",
    "libcufile.so.0",
    "libcurand.so.10",
    "libcusparse.so.12",
    "libcusparseLt.so.0",
    "libnvrtc.so.13",
    "libnvshmem_host.so.3",
)
# Libraries whose functions are referred to without naming a version; everything else of CUDA's names one.
UNVERSIONED = ("cuFile", "curand", "cusparseLt", "nccl", "nvshmem")
# Loaded by torch only when a GPU is used.
UNLOADED = ("libtorch_cuda_linalg.so", "libcaffe2_nvrtc.so")

_PAGE = 0x1000
_HEADER, _PROGRAM_HEADER, _SYMBOL = 64, 56, 24
_SHT_DYNSYM, _SHT_VERSYM, _SHT_VERNEED = 11, 0x6FFFFFFF, 0x6FFFFFFE


@dataclass(frozen=True)
class Symbol:
    """A dynamic symbol: `library` is the one its version names, None for a symbol without version."""

    name: str
    defined: bool
    weak: bool
    library: str | None


def dynamic_symbols(path: Path) -> Iterator[Symbol]:
    """The dynamic symbols of a 64-bit little-endian ELF library."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        (start,) = struct.unpack_from("<Q", data, 0x28)
        size, count = struct.unpack_from("<HH", data, 0x3A)
        sections = [struct.unpack_from("<IIQQQQIIQQ", data, start + i * size) for i in range(count)]
        table = next((s for s in sections if s[1] == _SHT_DYNSYM), None)
        if table is None:
            return
        names = sections[table[6]][4]
        versions = next((s[4] for s in sections if s[1] == _SHT_VERSYM), None)
        libraries = _version_libraries(data, names, sections)
        for index in range(1, table[5] // _SYMBOL):
            name, info, _other, section = struct.unpack_from("<IBBH", data, table[4] + index * _SYMBOL)
            version = struct.unpack_from("<H", data, versions + 2 * index)[0] & 0x7FFF if versions else 0
            yield Symbol(_text(data, names + name), section != 0, info >> 4 == 2, libraries.get(version))


def _version_libraries(data: mmap.mmap, names: int, sections: list[tuple[int, ...]]) -> dict[int, str]:
    """Version index to the name of the library that has to provide it (.gnu.version_r)."""
    needs = next((s for s in sections if s[1] == _SHT_VERNEED), None)
    found: dict[int, str] = {}
    if needs is None:
        return found
    at = needs[4]
    for _ in range(needs[7]):
        _version, count, library, first, following = struct.unpack_from("<HHIII", data, at)
        entry = at + first
        for _ in range(count):
            _hash, _flags, index, _name, step = struct.unpack_from("<IHHII", data, entry)
            found[index & 0x7FFF] = _text(data, names + library)
            entry += step
        at += following
    return found


def _text(data: mmap.mmap, at: int) -> str:
    return data[at : data.find(b"\0", at)].decode()


def missing_functions(libraries: Iterable[Path]) -> list[str]:
    """What these libraries refer to in stood-in libraries and none of them defines, sorted."""
    defined: set[str] = set()
    wanted: set[str] = set()
    for library in libraries:
        for symbol in dynamic_symbols(library):
            if symbol.defined:
                defined.add(symbol.name)
            elif not symbol.weak and _stood_in(symbol):
                wanted.add(symbol.name)
    return sorted(wanted - defined)


def _stood_in(symbol: Symbol) -> bool:
    if symbol.library is None:
        return symbol.name.startswith(UNVERSIONED)
    return symbol.library in STAND_INS


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def stand_in(soname: str, functions: Iterable[str] = ()) -> bytes:
    """An ELF library called `soname` with these functions, all of them the same one (see the top of the file)."""
    exported = list(functions)
    count = len(exported) + 1
    strings = bytearray(b"\0" + soname.encode() + b"\0")
    places = []
    for name in exported:
        places.append(len(strings))
        strings += name.encode() + b"\0"

    hashes_at = _HEADER + 4 * _PROGRAM_HEADER
    symbols_at = _up(hashes_at + 4 * (3 + count), 8)
    strings_at = symbols_at + _SYMBOL * count
    code_at = _up(strings_at + len(strings), 16)
    code_end = code_at + 8
    zeros_at = _up(code_end, _PAGE)
    dynamic_at = zeros_at + _PAGE

    # One hash bucket: a chain through all symbols.
    chain = [0, *((i + 1) % count for i in range(1, count))]
    hashes = struct.pack(f"<III{count}I", 1, count, 1 if count > 1 else 0, *chain)
    symbols = bytes(_SYMBOL) + b"".join(
        struct.pack("<IBBHQQ", place, (1 << 4) | 2, 0, 1, code_at, 8) for place in places
    )
    # lea rax, [rip + distance]; ret
    code = b"\x48\x8d\x05" + struct.pack("<i", zeros_at - (code_at + 7)) + b"\xc3"
    entries = [(14, 1), (4, hashes_at), (5, strings_at), (6, symbols_at), (10, len(strings)), (11, _SYMBOL), (0, 0)]
    dynamic = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    end = dynamic_at + len(dynamic)

    headers = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 3, 62, 1, 0, _HEADER, 0, 0, _HEADER, _PROGRAM_HEADER, 4, 64, 0, 0
    )
    for kind, flags, at, until, alignment in (
        (1, 5, 0, code_end, _PAGE),  # what is read and run
        (1, 6, zeros_at, end, _PAGE),  # what the loader writes to
        (2, 6, dynamic_at, end, 8),
        (0x6474E551, 6, 0, 0, 16),  # without it the loader wants an executable stack
    ):
        headers += struct.pack("<IIQQQQQQ", kind, flags, at, at, at, until - at, until - at, alignment)
    file = (headers + hashes).ljust(symbols_at, b"\0") + symbols + strings
    file = file.ljust(code_at, b"\0") + code
    return file.ljust(dynamic_at, b"\0") + dynamic


def complete(site_packages: Path) -> list[Path]:
    """Write the stand-ins that torch lacks beside its libraries, where its search path ends; return their paths.

    A folder without torch, or with the real libraries, gets none.
    """
    folder = site_packages / "torch" / "lib"
    libraries = [path for path in sorted(folder.glob("*.so*")) if path.name not in (*UNLOADED, *STAND_INS)]
    if not (folder / "libtorch_cuda.so").exists() or any(site_packages.glob("nvidia/**/libcublas.so.*")):
        return []
    functions = missing_functions(libraries)
    written = []
    for soname in STAND_INS:
        path = folder / soname
        path.write_bytes(stand_in(soname, functions if soname == FUNCTIONS_IN else ()))
        path.chmod(0o755)
        written.append(path)
    return written


if __name__ == "__main__":
    print("\n".join(str(path) for path in complete(Path(sys.argv[1]))))
