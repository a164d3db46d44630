"""Certificates of pools: the same bytes for a period, another one in time, and nobody else's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.builders import KEYS
from tuneyard.planning.podcertificates import LASTS, PERIOD, authority, pool_certificate

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MASTER = b"0123456789abcdef0123456789abcdef"


def parsed(certificate: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(certificate)


def test_it_names_its_pool_and_is_signed_by_the_authority() -> None:
    issued = pool_certificate(MASTER, "models", "llama-3.1-8b", NOW)
    certificate, signer = parsed(issued.certificate), parsed(authority(MASTER).encode())
    certificate.verify_directly_issued_by(signer)
    signer.verify_directly_issued_by(signer)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["llama-3.1-8b.models.tuneyard"]
    assert load_pem_private_key(issued.key, None).public_key() == certificate.public_key()
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert signer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    with pytest.raises(InvalidSignature):
        certificate.verify_directly_issued_by(parsed(authority(b"x" * 32).encode()))


def test_it_changes_with_time_and_overlaps() -> None:
    """An operator that is away for three periods leaves nobody without a valid one, and clocks may differ by a day."""
    moment, seen = NOW, []
    while moment < NOW + 3 * PERIOD:
        issued = pool_certificate(MASTER, "models", "a", moment)
        assert issued == pool_certificate(MASTER, "models", "a", moment), "the same bytes: it is written once"
        certificate = parsed(issued.certificate)
        assert certificate.not_valid_before_utc <= moment - timedelta(days=1)
        assert certificate.not_valid_after_utc >= moment + 3 * PERIOD
        assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == LASTS + timedelta(days=1)
        seen.append(issued.certificate)
        moment += timedelta(hours=12)
    assert len(set(seen)) == 4, "three whole periods, from the middle of one"


def test_pools_change_at_different_moments() -> None:
    def begin(pool: str) -> datetime:
        return parsed(pool_certificate(MASTER, "models", pool, NOW).certificate).not_valid_before_utc

    assert len({begin(f"pool-{n}") for n in range(50)}) == 50


def test_keys_belong_to_one_pool_period_and_installation() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    keys = {
        pool_certificate(MASTER, "models", "a", at).key,
        pool_certificate(MASTER, "models", "b", at).key,
        pool_certificate(MASTER, "others", "a", at).key,
        pool_certificate(MASTER, "models", "a", at + PERIOD).key,
        pool_certificate(b"x" * 32, "models", "a", at).key,
    }
    assert len(keys) == 5


def test_nothing_shows_a_key() -> None:
    issued = KEYS.certificate("models", "a", NOW)
    assert repr(issued) == "PoolCertificate([redacted])"
    assert "PRIVATE" not in f"{issued}"
