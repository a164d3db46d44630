"""The few calls of the container runtime interface that the cluster itself makes.

The messages used are so small (strings, and lists of messages with strings) that they are coded by hand here rather
than with a generated module: a field is a tag, a length and its bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc

_CALL_SECONDS = 30


class Runtime:
    """The runtime behind a Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix://{socket}")

    def __enter__(self) -> Runtime:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def images(self) -> dict[str, str]:
        """Image name to image id (the digest of its configuration)."""
        answer = self._method("ImageService/ListImages")(b"", timeout=_CALL_SECONDS)
        named = {}
        for image in strings(answer, 1):
            identity = next(strings(image, 1)).decode()
            named.update({name.decode(): identity for name in strings(image, 2)})
        return named

    def remove_sandboxes(self, seconds: float) -> None:
        """End and remove every pod on the node, all at once; raises grpc.RpcError past `seconds`."""
        answer = self._method("RuntimeService/ListPodSandbox")(b"", timeout=seconds)
        identities = [next(strings(sandbox, 1)) for sandbox in strings(answer, 1)]
        remove = self._method("RuntimeService/RemovePodSandbox")
        for call in [remove.future(field(1, identity), timeout=seconds) for identity in identities]:
            call.result()

    def _method(self, name: str) -> grpc.UnaryUnaryMultiCallable[bytes, bytes]:
        return self._channel.unary_unary(f"/runtime.v1.{name}")


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def strings(message: bytes, number: int) -> Iterator[bytes]:
    """The contents of every length-delimited field `number` of a message, in order."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        kind = tag & 7
        if kind == 2:
            length, position = _read_varint(message, position)
            if tag >> 3 == number:
                yield message[position : position + length]
            position += length
        elif kind == 0:
            _, position = _read_varint(message, position)
        else:
            position += {1: 8, 5: 4}[kind]


def _varint(value: int) -> bytes:
    output = bytearray()
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    output.append(value)
    return bytes(output)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
