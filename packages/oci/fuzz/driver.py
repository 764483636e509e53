"""Draws inputs for a function, keeps those that execute something new, and draws from them: no dependency.

A target is a script that calls `fuzz` with its function and a few good inputs::

    python fuzz_documents.py [--seconds N] [--seed N]     # exits with 1 and leaves failing-documents
    python fuzz_documents.py --input FILE                 # repeats one input
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import microsandbox_oci
from microsandbox_oci import ImageError

SLOWEST = 2.0
"""Seconds of processor time that no input may take."""
LONGEST = 16 << 10
_PACKAGE = str(Path(microsandbox_oci.__file__).parent)
_NUMBERS = [b"0", b"-1", b"1e9", b"1.5", b"9223372036854775808", b"18446744073709551616", b"9" * 400]

Mutate = Callable[[random.Random, bytes], bytes]


def fuzz(
    name: str,
    one_input: Callable[[bytes], None],
    seeds: Sequence[bytes],
    *,
    tokens: Sequence[bytes] = (),
    mutate: Mutate | None = None,
) -> None:
    """Run ``one_input``, which raises if a promise does not hold, for the time the command line says.

    ``tokens`` are inserted now and then; ``mutate`` is another way to change an input.
    """
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path)
    options = parser.parse_args()
    if options.input is not None:
        one_input(options.input.read_bytes())
        return
    chance = random.Random(options.seed)
    corpus = list(seeds)
    trace = _Trace()
    slowest, runs, begun = 0.0, 0, time.monotonic()
    while runs < len(seeds) or time.monotonic() - begun < options.seconds:
        data = corpus[runs] if runs < len(seeds) else _changed(chance, corpus, [*tokens, *_NUMBERS], mutate)
        started = time.thread_time()
        try:
            new = trace.run(one_input, data)
            taken = time.thread_time() - started
            assert taken < SLOWEST, f"it takes {taken:.1f} s"
        except BaseException:
            failing = Path(f"failing-{name}")
            failing.write_bytes(data)
            sys.stderr.write(f"{name}: the input is in {failing}\n")
            raise
        slowest = max(slowest, taken)
        runs += 1
        if new and runs > len(seeds):
            corpus.append(data)
    sys.stdout.write(
        f"{name}: {runs} inputs in {time.monotonic() - begun:.0f} s, {len(corpus)} kept, "
        f"{len(trace.seen)} steps reached, the slowest took {slowest * 1000:.0f} ms\n"
    )


def shown(error: ImageError) -> None:
    """Look at an error as a terminal would: two short lines without control characters."""
    for text in (str(error), error.hint or "-"):
        assert text
        assert text.isprintable(), repr(text)
        assert len(text) < 2000, repr(text)


class _Trace:
    """Which steps from line to line of the package were ever executed."""

    def __init__(self) -> None:
        self.seen: set[tuple[CodeType, int, int]] = set()

    def run(self, function: Callable[[bytes], None], data: bytes) -> bool:
        """Call the function; say whether it took a step that none before it took."""
        before = len(self.seen)
        sys.settrace(self._call)
        try:
            function(data)
        finally:
            sys.settrace(None)
        return len(self.seen) > before

    def _call(self, frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith(_PACKAGE):
            return None
        seen, last = self.seen, 0

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal last
            seen.add((code, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line


def _changed(
    chance: random.Random, corpus: Sequence[bytes], tokens: Sequence[bytes], mutate: Mutate | None
) -> bytes:
    # The latest as often as all others together: what is new has been tried least.
    data = chance.choice(corpus if chance.random() < 0.5 else corpus[-20:])
    for _ in range(1 << chance.randrange(4)):
        if mutate is not None and chance.random() < 0.5:
            data = mutate(chance, data)
        else:
            data = _bytes_changed(chance, data, corpus, tokens)
    return data[:LONGEST]


def _bytes_changed(
    chance: random.Random, data: bytes, corpus: Sequence[bytes], tokens: Sequence[bytes]
) -> bytes:
    at = chance.randrange(len(data) + 1)
    length = chance.choice((1, chance.randrange(1, 17), 512, chance.randrange(len(data) + 1)))
    match chance.randrange(7):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        case 1 if at < len(data):
            return data[:at] + chance.randbytes(1) + data[at + 1 :]
        case 2:
            return data[:at] + data[at + length :]
        case 3:
            return data[:at] + data[at : at + length] * chance.choice((2, 2, 2, 50)) + data[at + length :]
        case 4:
            other = chance.choice(corpus)
            start = chance.randrange(len(other) + 1)
            return data[:at] + other[start : start + length] + data[at + chance.choice((0, length)) :]
        case _:
            token = chance.choice(tokens)
            return data[:at] + token + data[at + chance.choice((0, 0, len(token))) :]
