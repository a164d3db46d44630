"""The Debian part of an image, made by mmdebstrap from the package sources of this machine.

Packages are pinned by release, not by version: the archive drops a version when it is superseded, and security updates
are wanted. What was installed stands in the image's own package database; the cached layer stays until its list,
release or recipe changes.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from cluster.errors import ClusterError
from cluster.layers import Layer, LayerWriter, cached
from cluster.progress import Progress
from cluster.pythons import key_over, run, scratch

USER_ID = 65532
_RECIPE = "debian root 1"
_EMPTIED = ("dev", "proc", "run", "sys", "tmp", "var/cache", "var/lib/apt/lists", "var/log", "var/tmp")
_LEFT_OUT = (
    "etc/apt/sources.list",
    "etc/apt/sources.list.d",
    "etc/hostname",
    "etc/resolv.conf",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
)


def debian_layer(packages: list[str], progress: Progress) -> Layer:
    """A root file system with these packages; its fact `python` is the version of its python3 ("3.13"), if any."""
    codename = _codename()
    sources = package_sources(Path("/etc/apt"), codename)
    if not sources:
        raise ClusterError(
            f"/etc/apt names no source of {codename}'s main packages; images are made from these (or use Docker)"
        )
    key = key_over(_RECIPE, codename, platform.machine(), *sorted(packages), *sources)

    def write(layer: LayerWriter) -> dict[str, str]:
        with scratch(Path("/var/tmp")) as temporary:
            root = temporary / "root"
            _bootstrap(root, codename, packages, sources)
            _add_user(root)
            layer.tree(PurePosixPath(), root, wanted, _has_timed_byte_code, empty_folders=True)
            return {"release": codename, "python": _python_of(root)}

    return cached(f"debian-{'-'.join(sorted(packages))[:40]}", key, write, progress)


def wanted(path: PurePosixPath) -> bool:
    """Whether a path of the root belongs into the image."""
    text = str(path)
    if text in _LEFT_OUT or str(path.parent) in _EMPTIED:
        return False
    return not (text.startswith("usr/share/doc/") and len(path.parts) > 4 and path.name != "copyright")


def _has_timed_byte_code(path: PurePosixPath) -> bool:
    # Debian's byte code is checked against the date of its source: with another, Python compiles at every start.
    return path.suffix == ".py"


def _bootstrap(root: Path, codename: str, packages: list[str], sources: list[str]) -> None:
    if os.geteuid() != 0:
        raise ClusterError("images without Docker are made as root: run with sudo, or build the Dockerfiles of images/")
    options = ["--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}"]
    run(
        ["mmdebstrap", *options, codename, str(root), *sources],
        remedy="apt-get install mmdebstrap (root file systems without Docker are made with it)",
    )


def _add_user(root: Path) -> None:
    """Programs that ask who they are get an answer."""
    for name, line in (
        ("passwd", f"nonroot:x:{USER_ID}:{USER_ID}:nonroot:/nonexistent:/usr/sbin/nologin"),
        ("group", f"nonroot:x:{USER_ID}:"),
    ):
        path = root / "etc" / name
        path.write_text(f"{path.read_text()}{line}\n")


def _python_of(root: Path) -> str:
    python = root / "usr" / "bin" / "python3"
    return python.readlink().name.removeprefix("python") if python.is_symlink() else ""


def _codename() -> str:
    try:
        return platform.freedesktop_os_release()["VERSION_CODENAME"]
    except (OSError, KeyError) as error:
        raise ClusterError(
            "images without Docker are made from the packages of a Debian or Ubuntu machine; here, use Docker"
        ) from error


def package_sources(apt: Path, codename: str) -> list[str]:
    """One-line sources of the release's own main packages, out of both formats; other vendors' are left alone."""
    suites = {codename, f"{codename}-updates", f"{codename}-security"}
    found: list[str] = []
    for path in [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        lines = _stanza_lines(path.read_text()) if path.suffix == ".sources" else path.read_text().splitlines()
        for line in lines:
            match = re.match(r"deb\s+(\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
            if match and match[3] in suites and "main" in match[4].split():
                found.append(f"deb {match[1] or ''}{match[2]} {match[3]} main")
    return list(dict.fromkeys(found))


def _stanza_lines(text: str) -> Iterator[str]:
    """The stanzas of a deb822 file as one-line entries."""
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            if line.startswith("#") or ":" not in line or line[0].isspace():
                continue
            name, value = line.split(":", 1)
            fields[name.strip().lower()] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        # A key within the file itself has no path to name; mmdebstrap then uses the machine's keyrings.
        keyring = f"[signed-by={fields['signed-by']}] " if fields.get("signed-by") else ""
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield f"deb {keyring}{uri} {suite} {fields.get('components', '')}"
