"""The checksum of an event file's records.

That of tensorboard and of tensorboardX is a loop in Python over the bytes: two seconds of a large report, in which the
training waits for the interpreter. numpy, which both of them need, halves the message instead, until one word is left.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Words = np.ndarray[Any, np.dtype[np.uint32]]
_POLYNOMIAL = 0x82F63B78  # bit 31 is the coefficient of x**0, in words as in bytes
_BITS = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.uint32)


def masked_crc32c(data: bytes) -> int:
    """CRC-32C of four bytes or more, masked as TensorFlow does it."""
    started = struct.pack("<I", struct.unpack_from("<I", data)[0] ^ 0xFFFFFFFF) + data[4:]
    words = np.frombuffer(bytes(-len(data) % 4) + started, np.dtype("<u4"))
    power = x_to_the_32 = _POLYNOMIAL
    while len(words) > 1:
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, words.dtype), words])
        words = _times(words[::2], power) ^ words[1::2]
        power = int(_times(np.array([power], np.uint32), power)[0])
    crc = int(_times(words, x_to_the_32)[0]) ^ 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _times(words: Words, factor: int) -> Words:
    """The products of polynomials: each byte's is looked up."""
    products = []  # with x**0, x**1 ...
    for _ in range(32):
        products.append(factor)
        factor = factor >> 1 ^ (_POLYNOMIAL if factor & 1 else 0)
    of_bytes = np.bitwise_xor.reduce(_BITS * np.array(products[::-1], np.uint32).reshape(4, 1, 8), axis=2)
    found: Words = of_bytes[0][words & 0xFF]
    for place in (1, 2, 3):
        found ^= of_bytes[place][words >> 8 * place & 0xFF]
    return found
