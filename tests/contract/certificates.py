"""Authorities, and certificates that they issue, for tests; and the folder of a Secret as the kubelet mounts it."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """Signs what tests need."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self.name = name
        self.path, self._key = folder / f"{name}.crt", folder / f"{name}.key"
        subject = ("-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        _openssl("req", "-x509", *_NEW_KEY, *subject, "-out", self.path, "-keyout", self._key)

    def issue(self, name: str, *, days: int = 1) -> dict[str, bytes]:
        """tls.crt and tls.key for loopback; with a negative number of days it has expired."""
        request, certificate, key = (self._folder / f"{self.name}-{name}.{end}" for end in ("csr", "crt", "key"))
        _openssl("req", *_NEW_KEY, "-subj", f"/CN={name}", "-out", request, "-keyout", key)
        extensions = self._folder / f"{self.name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        signing = ("-CA", self.path, "-CAkey", self._key, "-days", str(days), "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, *signing, "-out", certificate)
        return {"tls.crt": certificate.read_bytes(), "tls.key": key.read_bytes()}

    def trusted(self, client: Mapping[str, bytes] | None = None) -> ssl.SSLContext:
        """Of a client that believes this authority, and shows a certificate of its own if it has one."""
        context = ssl.create_default_context(cafile=str(self.path))
        if client is not None:
            both = self._folder / "client.pem"
            both.write_bytes(client["tls.crt"] + client["tls.key"])
            context.load_cert_chain(both)
        return context


class Mounted:
    """The folder of a Secret or ConfigMap: files are links through `..data`, which moves for all of them at once."""

    def __init__(self, path: Path, files: Mapping[str, bytes] | None = None) -> None:
        self.path = path
        self._versions = 0
        path.mkdir()
        if files is not None:
            self.put(files)

    def put(self, files: Mapping[str, bytes]) -> None:
        """As the kubelet does when the object has changed."""
        self._versions += 1
        version = self.path / f"..version-{self._versions}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
        link = self.path / "..data_tmp"
        link.symlink_to(version.name)
        link.replace(self.path / "..data")
        for name in files:
            visible = self.path / name
            if not visible.is_symlink():
                visible.symlink_to(f"..data/{name}")
