"""Programs of one system call each, to try in a guest what no shell can: made without a compiler."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

_BASE = 0x400000
_HEADERS = 64 + 56

Argument = int | bytes
"""A number, or bytes whose address is given."""

# rdi, rsi, rdx, r10, r8, r9: movabs has these two bytes before the eight of the value.
_MOVABS = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_SYSCALL = b"\x0f\x05"


class Call(NamedTuple):
    """A system call of x86-64."""

    number: int
    arguments: Sequence[Argument] = ()


def program(call: Call) -> bytes:
    """A static ELF executable that makes the call and exits with its errno, or with 0 if it succeeded."""
    # The data comes behind the code, whose length does not depend on it.
    data_at = _BASE + _HEADERS + len(_code(call, [0] * len(call.arguments)))
    values, data = [], b""
    for argument in call.arguments:
        if isinstance(argument, bytes):
            values.append(data_at + len(data))
            data += argument
        else:
            values.append(argument)
    body = _code(call, values) + data
    size = _HEADERS + len(body)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, 62, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0,
    )  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + body


def _code(call: Call, values: Sequence[int]) -> bytes:
    code = b""
    for move, value in zip(_MOVABS, values, strict=False):
        code += move + (value & (2**64 - 1)).to_bytes(8, "little")
    code += b"\xb8" + call.number.to_bytes(4, "little")  # mov eax, number
    code += _SYSCALL
    # exit_group(result < 0 ? -result : 0)
    code += b"\x31\xff"  # xor edi, edi
    code += b"\x85\xc0"  # test eax, eax
    code += b"\x79\x04"  # jns over the next two
    code += b"\x89\xc7"  # mov edi, eax
    code += b"\xf7\xdf"  # neg edi
    code += b"\xb8" + (231).to_bytes(4, "little")
    return code + _SYSCALL
