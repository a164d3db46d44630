"""Artifacts are read safely: nothing outside, nothing twice, nothing half; values are judged by their bits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from models.artifact import digest as independent_digest
from models.tensors import Tensor as RawTensor
from models.tensors import bfloat16, float32, write_safetensors
from models.tiny import build_tiny
from tuneyard.api.reasons import Reason
from tuneyard.systems.artifacts import safetensors
from tuneyard.systems.artifacts.arriving import unwritable
from tuneyard.systems.artifacts.copying import copy_checked
from tuneyard.systems.artifacts.folder import (
    ArtifactError,
    FolderDigest,
    digest_of,
    find_folder,
    list_files,
    opened,
)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "volumes" / "models" / "tenant" / "v1"
    shutil.copytree(build_tiny() / "adapter-a", folder)
    return folder


def reason_of(call: Callable[..., object], *args: object) -> Reason:
    with pytest.raises(ArtifactError) as caught:
        call(*args)
    assert len(str(caught.value)) > 20
    return caught.value.reason


def test_the_digest_is_the_published_one(adapter: Path) -> None:
    (adapter / "sub").mkdir()
    (adapter / "sub" / "more.json").write_bytes(os.urandom(3_000_000))
    heard: list[int] = []
    found = digest_of(adapter, workers=3, on_bytes=heard.append)
    assert found.digest == independent_digest(adapter)
    assert found.size_bytes == sum(heard) == sum(f.stat().st_size for f in adapter.rglob("*") if f.is_file())
    assert [f.path for f in found.files] == ["adapter_config.json", "adapter_model.safetensors", "sub/more.json"]
    assert found.files[2].sha256 == hashlib.sha256((adapter / "sub" / "more.json").read_bytes()).hexdigest()


def test_documents_do_not_change_the_digest(adapter: Path) -> None:
    before = digest_of(adapter).digest
    (adapter / "README.md").write_text("hello")
    (adapter / ".git").mkdir()
    (adapter / ".git" / "HEAD").symlink_to("/etc/passwd")
    assert digest_of(adapter).digest == before


def test_a_folder_is_found_only_on_its_volume(adapter: Path) -> None:
    volumes = adapter.parents[2]
    assert find_folder(volumes, "models", "tenant/v1") == adapter
    (adapter.parent / "inside").symlink_to("v1")
    assert find_folder(volumes, "models", "tenant/inside") == adapter
    (adapter.parent / "outside").symlink_to("/etc")
    (adapter.parent / "loop").symlink_to("loop")
    assert reason_of(find_folder, volumes, "models", "tenant/outside") == Reason.UNSAFE_PATH
    assert reason_of(find_folder, volumes, "models", "tenant/../../..") == Reason.UNSAFE_PATH
    assert reason_of(find_folder, volumes, "models", "/etc") == Reason.UNSAFE_PATH
    assert reason_of(find_folder, volumes, "models/..", "x") == Reason.UNSAFE_PATH
    assert reason_of(find_folder, volumes, "..", "x") == Reason.UNSAFE_PATH
    assert reason_of(find_folder, volumes, "models", "tenant/v2") == Reason.ARTIFACT_NOT_FOUND
    assert reason_of(find_folder, volumes, "models", "tenant/v1/adapter_config.json") == Reason.ARTIFACT_NOT_FOUND
    assert reason_of(find_folder, volumes, "models", "tenant/v1/adapter_config.json/x") == Reason.ARTIFACT_NOT_FOUND
    assert reason_of(find_folder, volumes, "others", "x") == Reason.VOLUME_NOT_DECLARED
    assert reason_of(find_folder, volumes, "models", "tenant/loop") == Reason.ARTIFACT_UNREADABLE


def test_links_and_odd_files_are_not_followed(adapter: Path) -> None:
    (adapter / "link").symlink_to(adapter / "adapter_config.json")
    with opened(adapter, "link") as file:
        assert b"lora_alpha" in file.read()
    (adapter / "link").unlink()
    (adapter / "link").symlink_to("/etc/hostname")
    assert reason_of(digest_of, adapter) == Reason.UNSAFE_PATH
    (adapter / "link").unlink()
    os.mkfifo(adapter / "fifo")
    assert reason_of(digest_of, adapter) == Reason.UNSAFE_PATH
    (adapter / "fifo").unlink()
    (adapter / "folder").symlink_to("/etc")
    assert reason_of(digest_of, adapter) == Reason.UNSAFE_PATH
    (adapter / "folder").unlink()
    (adapter / "dangling").symlink_to("nowhere")
    assert reason_of(digest_of, adapter) == Reason.FILES_MISSING


@pytest.mark.parametrize("path", [b"caf\xe9.json", b"caf\xe9/config.json"])
def test_names_that_are_not_utf_8_are_refused(adapter: Path, path: bytes) -> None:
    file = adapter / os.fsdecode(path)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"caf\\xe9") as caught:
        digest_of(adapter)
    assert caught.value.reason == Reason.UNSAFE_PATH
    str(caught.value).encode()


def test_a_parent_folder_by_mistake_is_told(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}").write_text("x")
    assert len(list_files(tmp_path)) == 5
    assert reason_of(list_files, tmp_path, 4) == Reason.ARTIFACT_UNREADABLE


def test_a_copy_is_whole_or_not_there(adapter: Path, tmp_path: Path) -> None:
    target = tmp_path / "adapters" / "a-123"
    seen: list[FolderDigest] = []

    def check(copy: Path, digest: FolderDigest) -> None:
        assert sorted(p.name for p in copy.iterdir()) == ["adapter_model.safetensors"]
        assert not target.exists()
        seen.append(digest)

    copy_checked(adapter, ["adapter_model.safetensors"], target, check, most=1 << 30)
    assert seen == [digest_of(adapter)]
    assert (target / "adapter_model.safetensors").read_bytes() == (adapter / "adapter_model.safetensors").read_bytes()
    assert [p.name for p in target.parent.iterdir()] == ["a-123"]

    def refuse(copy: Path, digest: FolderDigest) -> None:
        raise ArtifactError(Reason.DIGEST_MISMATCH, "these are other bytes")

    with pytest.raises(ArtifactError):
        copy_checked(adapter, ["adapter_model.safetensors"], tmp_path / "adapters" / "b-1", refuse, most=1 << 30)
    assert [p.name for p in target.parent.iterdir()] == ["a-123"]


def copied(adapter: Path, target: Path, most: int = 1 << 40, going_on: Callable[[], None] = lambda: None) -> None:
    copy_checked(adapter, ["adapter_config.json"], target, lambda *_: None, most=most, going_on=going_on)


def test_a_folder_that_is_too_large_is_refused_before_it_is_read(adapter: Path, tmp_path: Path) -> None:
    with (adapter / "optimizer.safetensors").open("wb") as sparse:
        sparse.truncate(1 << 43)
    with pytest.raises(ArtifactError, match="name the adapter's own folder") as caught:
        copied(adapter, tmp_path / "copy", going_on=lambda: pytest.fail("nothing is read"))
    assert caught.value.reason is Reason.ARTIFACT_UNREADABLE


def test_a_file_that_grows_while_it_is_read_ends_somewhere(adapter: Path, tmp_path: Path) -> None:
    def grow() -> None:
        with (adapter / "adapter_model.safetensors").open("ab") as file:
            file.write(bytes(1 << 20))

    with pytest.raises(ArtifactError, match=f"more than {20 << 20} bytes"):
        copied(adapter, tmp_path / "copy", 20 << 20, grow)
    assert not list(tmp_path.glob("*copy*"))


def test_copying_ends_when_it_is_told_to(adapter: Path, tmp_path: Path) -> None:
    (adapter / "more.json").write_bytes(bytes(5 << 20))
    pieces = iter(range(5))

    def going_on() -> None:
        if next(pieces, None) is None:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        copied(adapter, tmp_path / "copy", going_on=going_on)
    assert not list(tmp_path.glob("*copy*"))


def test_a_quota_is_a_full_disk_too(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EDQUOT):
        found = unwritable(tmp_path / "not" / "there", "x", 7, OSError(number, "full"))
        assert found.reason is Reason.DISK_FULL
        assert "7 bytes are needed" in str(found)
    other = unwritable(tmp_path, "x", 7, OSError(errno.EROFS, "read-only"))
    assert (other.reason, str(other)) == (Reason.ARTIFACT_UNREADABLE, "x cannot be written: read-only")


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b"", "shorter"),
        (b"\x01", "shorter"),
        (struct.pack("<Q", 1 << 60), "shorter"),
        (struct.pack("<Q", 2) + b"{}x", "3 bytes|11 bytes"),
        (struct.pack("<Q", 2) + b"[]", "not a JSON object"),
        (struct.pack("<Q", 4) + b"\xff\xfe{}", "not valid JSON"),
        (struct.pack("<Q", 9) + b'{"a":NaN}', "not valid JSON"),
        (struct.pack("<Q", 15) + b'{"a":{},"a":{}}', "not valid JSON"),
        (struct.pack("<Q", 8) + b'{"a":{}}', "incomplete"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "not valid JSON"),
    ],
)
def test_damaged_headers_are_corrupt_weights(tmp_path: Path, raw: Any, told: Any) -> None:
    (tmp_path / "x").write_bytes(raw)
    with pytest.raises(ArtifactError, match=told) as caught:
        safetensors.read_header(tmp_path, "x")
    assert caught.value.reason == Reason.CORRUPT_WEIGHTS


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]},
        {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
        "text",
        None,
    ],
)
def test_entries_that_do_not_fit_are_corrupt_weights(tmp_path: Path, entry: Any) -> None:
    header = json.dumps({"t": entry}).encode()
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    assert reason_of(safetensors.read_header, tmp_path, "x") == Reason.CORRUPT_WEIGHTS


def test_a_header_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", 100) + b" " * 98 + b"{}")
    assert safetensors.read_header(tmp_path, "x") == []
    assert reason_of(safetensors.read_header, tmp_path, "x", 99) == Reason.CORRUPT_WEIGHTS


def scan(tmp_path: Path, tensor: RawTensor, factor: float = 1.0) -> None:
    write_safetensors(tmp_path / "x", {"other": float32(np.ones(3, np.float32)), "t": tensor})
    safetensors.check_finite(tmp_path, "x", safetensors.read_header(tmp_path, "x"), {"t": factor})


def as_tensor(values: npt.NDArray[Any], dtype: str) -> RawTensor:
    if dtype == "BF16":
        return bfloat16(values.astype(np.float32))
    if dtype == "F32":
        return float32(values.astype(np.float32))
    return RawTensor("F16", values.shape, values.astype("<f2").tobytes())


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_finite_values_pass(tmp_path: Path, dtype: str) -> None:
    values = np.array([0.0, -0.0, 1e-7, -65000.0, 65000.0, 1.5])
    scan(tmp_path, as_tensor(values, dtype))
    scan(tmp_path, as_tensor(np.zeros((0, 4)), dtype))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 4_200_000 // 2, -1])
@pytest.mark.lasting
def test_one_value_that_is_not_finite_is_found(tmp_path: Path, dtype: str, value: Any, place: Any) -> None:
    values = np.full(4_200_001, 0.5, np.float32)  # more than one piece of the scan
    values[place] = value
    assert reason_of(scan, tmp_path, as_tensor(values, dtype)) == Reason.NON_FINITE_VALUES


@pytest.mark.parametrize("bits", [0x7F80_0001, 0xFF80_0001, 0x7FC0_0000, 0xFFFF_FFFF])
def test_every_nan_is_found(tmp_path: Path, bits: Any) -> None:
    tensor = RawTensor("F32", (1,), struct.pack("<I", bits))
    assert reason_of(scan, tmp_path, tensor) == Reason.NON_FINITE_VALUES


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_what_is_infinite_in_float16_is_refused(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ArtifactError, match="65504"):
        scan(tmp_path, as_tensor(np.array([1e6]), dtype))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_becomes_infinite_by_its_scale_is_refused(tmp_path: Path, dtype: str, sign: int) -> None:
    scan(tmp_path, as_tensor(np.array([0.5, 64.0 * sign]), dtype), 1000.0)
    scan(tmp_path, as_tensor(np.array([0.5, 60_000.0 * sign]), dtype), 0.5)
    with pytest.raises(ArtifactError, match="70 times its scale of 1000") as caught:
        scan(tmp_path, as_tensor(np.array([0.5, 70.0 * sign]), dtype), 1000.0)
    assert caught.value.reason == Reason.NON_FINITE_VALUES


def test_every_float16_pattern_is_judged_as_numpy_judges(tmp_path: Path) -> None:
    patterns = np.arange(65536, dtype=np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))]
    scan(tmp_path, RawTensor("F16", finite.shape, finite.tobytes()))
    for pattern in patterns[~np.isfinite(patterns.view(np.float16))][::97]:
        assert reason_of(scan, tmp_path, RawTensor("F16", (1,), struct.pack("<H", pattern))) == Reason.NON_FINITE_VALUES
