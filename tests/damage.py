"""Damage to files: the same for the same number."""

import random
from collections.abc import Callable
from pathlib import Path

CLEAR = (ValueError, OSError)  # with what is derived from them, such as FileNotFoundError


def damaged(whole: bytes, number: int) -> bytes:
    """One of many damages: cut short, bytes flipped, blocks swapped, zeroed, repeated, pushed in; or no byte left."""
    draw = random.Random(number)
    data, length = bytearray(whole), len(whole)
    a, b = sorted(draw.randrange(length) for _ in range(2))
    kind = draw.randrange(7)
    if kind == 0:
        return bytes(data[:a])
    if kind <= 2:
        for _ in range(draw.choice((1, 1, 2, 8))):
            data[draw.randrange(length) if kind == 1 else draw.randrange(min(length, 512))] ^= 1 << draw.randrange(8)
    elif kind == 3:
        size = min(64, length - b, b - a)
        data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]
    elif kind == 4:
        data[a:b] = bytes(b - a)
    elif kind == 5:
        data[a:a] = data[a:b]
    else:
        data[a:a] = draw.randbytes(draw.choice((1, 4, 300)))
    return bytes(data)


def survives(path: Path, whole: bytes, numbers: range, read: Callable[[Path], object], right: Callable) -> dict:
    """Read a file after each damage. Returns damage -> what went wrong: another error, or a wrong result in silence.

    Args:
        right: whether what was read of a damaged file may pass.
    """
    wrong = {}
    for number in numbers:
        path.write_bytes(damaged(whole, number))
        try:
            result = read(path)
        except CLEAR:
            continue
        except BaseException as error:
            wrong[number] = f"{type(error).__name__}: {error}"[:200]
            continue
        if not right(result):
            wrong[number] = "another result in silence"
    path.write_bytes(whole)
    return wrong
