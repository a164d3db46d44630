"""The digest of an artifact depends on the files that matter, and on nothing else."""

from __future__ import annotations

import hashlib

from tuneyard.api.digests import FileDigest, artifact_digest, is_digest

A = FileDigest("adapter_config.json", 3, "aa" * 32)
B = FileDigest("adapter_model.safetensors", 5, "bb" * 32)


def test_is_the_hash_of_the_documented_lines():
    lines = f"{'aa' * 32}  3  adapter_config.json\n{'bb' * 32}  5  adapter_model.safetensors\n"
    assert artifact_digest([B, A]) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_documents_about_it_do_not_count():
    assert artifact_digest([A, B, FileDigest("README.md", 1, "cc" * 32), FileDigest(".git/HEAD", 1, "dd" * 32)]) == (
        artifact_digest([A, B])
    )


def test_weights_in_other_formats_do_not_count():
    others = ("pytorch_model.bin", "original/consolidated.00.pth", "onnx/model.onnx", "tf_model.h5", "optimizer.pt")
    assert artifact_digest([A, B, *(FileDigest(path, 1, "cc" * 32) for path in others)]) == artifact_digest([A, B])


def test_any_change_of_a_file_changes_it():
    assert (
        len({artifact_digest(f) for f in ([A], [B], [A, B], [A, B._replace(size=6)], [A._replace(path="x"), B])}) == 5
    )


def test_form():
    assert is_digest(artifact_digest([]))
    assert not is_digest("sha256:" + "A" * 64)
