"""XXH64 with seed 0, which is how Envoy hashes a header's value: so tests can say where Envoy will send a user."""

from __future__ import annotations

_MASK = (1 << 64) - 1
_1, _2, _3 = 11400714785074694791, 14029467366897019727, 1609587929392839161
_4, _5 = 9650029242287828579, 2870177450012600261


def _turned(value: int, bits: int) -> int:
    return ((value << bits) | (value >> (64 - bits))) & _MASK


def _round(state: int, lane: int) -> int:
    return _turned((state + lane * _2) & _MASK, 31) * _1 & _MASK


def xxh64(data: bytes) -> int:
    """The hash."""
    at, size = 0, len(data)
    if size >= 32:
        states = [(_1 + _2) & _MASK, _2, 0, -_1 & _MASK]
        while at + 32 <= size:
            for lane in range(4):
                states[lane] = _round(states[lane], int.from_bytes(data[at : at + 8], "little"))
                at += 8
        found = sum(_turned(s, bits) for s, bits in zip(states, (1, 7, 12, 18), strict=True)) & _MASK
        for state in states:
            found = ((found ^ _round(0, state)) * _1 + _4) & _MASK
    else:
        found = _5
    found = (found + size) & _MASK
    while at + 8 <= size:
        found ^= _round(0, int.from_bytes(data[at : at + 8], "little"))
        found = (_turned(found, 27) * _1 + _4) & _MASK
        at += 8
    if at + 4 <= size:
        found ^= int.from_bytes(data[at : at + 4], "little") * _1 & _MASK
        found = (_turned(found, 23) * _2 + _3) & _MASK
        at += 4
    for byte in data[at:]:
        found = _turned(found ^ (byte * _5 & _MASK), 11) * _1 & _MASK
    found = (found ^ (found >> 33)) * _2 & _MASK
    found = (found ^ (found >> 29)) * _3 & _MASK
    return found ^ (found >> 32)
