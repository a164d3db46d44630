"""Certificates of model pods, derived from the master: nobody keeps an authority, and nobody has to hand one on.

Rules:
- the authority's key follows from the master, as engine keys do. So the operator can sign and a gateway knows whom to
  believe, both without asking anybody; who has the master had every engine key before;
- a pool's key and certificate follow from master, pool and time: as long as PERIOD lasts they are the same bytes, so
  that the pool's Secret is written once a period and not once a pass;
- a certificate is good for LASTS, four periods: the operator may be away for three of them, and a pod's clock may be a
  day behind. Periods of different pools begin at different moments;
- the name is that of one pool of one namespace: a pool's Secret, which tenants of its namespace may be able to read,
  stands for no other pool.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tuneyard.api import names

PERIOD = timedelta(days=30)
LASTS = 4 * PERIOD
_EARLY = timedelta(days=1)
_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
_END = datetime(2120, 1, 1, tzinfo=UTC)
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Of P-256's group: private keys are 1 to one less."""


class PoolCertificate(NamedTuple):
    """PEM, as pods' fronts read it."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "PoolCertificate([redacted])"


def _bytes(master: bytes, *what: str) -> bytes:
    return hmac.new(master, "/".join(("tls", *what)).encode(), hashlib.sha512).digest()


def _key(master: bytes, *what: str) -> ec.EllipticCurvePrivateKey:
    # 512 bits over 256: no number is noticeably likelier than another
    return ec.derive_private_key(1 + int.from_bytes(_bytes(master, "key", *what)) % (_ORDER - 1), ec.SECP256R1())


def _serial(master: bytes, *what: str) -> int:
    """Positive, with at most the 20 bytes that RFC 5280 allows."""
    return 1 + int.from_bytes(_bytes(master, "serial", *what)[:19])


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


_AUTHORITY = _name("tuneyard")


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _signed(
    builder: x509.CertificateBuilder, public: ec.EllipticCurvePublicKey, by: ec.EllipticCurvePrivateKey
) -> bytes:
    whole = (
        builder.issuer_name(_AUTHORITY)
        .public_key(public)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    return whole.sign(by, SHA256(), ecdsa_deterministic=True).public_bytes(Encoding.PEM)


@lru_cache(maxsize=4)
def authority(master: bytes) -> str:
    """The certificate that signs all pools', in PEM: public."""
    key = _key(master, "authority")
    builder = (
        x509.CertificateBuilder()
        .subject_name(_AUTHORITY)
        .serial_number(_serial(master, "authority"))
        .not_valid_before(_EPOCH)
        .not_valid_after(_END)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )
    return _signed(builder, key.public_key(), key).decode()


def pool_certificate(master: bytes, namespace: str, pool: str, now: datetime) -> PoolCertificate:
    """What the fronts of a pool's pods show at that time."""
    offset = timedelta(seconds=int.from_bytes(_bytes(master, "offset", namespace, pool)[:4]) % PERIOD.total_seconds())
    return _issued(master, namespace, pool, (now - _EPOCH + offset) // PERIOD, offset)


@lru_cache(maxsize=8192)
def _issued(master: bytes, namespace: str, pool: str, period: int, offset: timedelta) -> PoolCertificate:
    what = (namespace, pool, str(period))
    key, begin = _key(master, *what), _EPOCH + period * PERIOD - offset
    server = names.pod_server_name(namespace, pool)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(names.bounded(server)))
        .serial_number(_serial(master, *what))
        .not_valid_before(begin - _EARLY)
        .not_valid_after(begin + LASTS)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(server)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return PoolCertificate(
        _signed(builder, key.public_key(), _key(master, "authority")),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
