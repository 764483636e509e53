"""Commands of a `FakeSandbox`: what one is given, what it can do, and a few that are there from the start."""

from __future__ import annotations

import asyncio
import inspect
import os
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microsandbox.testing._agent import Machine


@dataclass(frozen=True, slots=True)
class Result:
    """What a scripted command prints and how it ends: with `exit_code`, or by `signal`."""

    stdout: str | bytes = b""
    stderr: str | bytes = b""
    exit_code: int = 0
    signal: int | None = None


class Call:
    """A command that was started: `argv`, the whole `env`, `cwd` and `user`; its standard input and
    outputs."""

    def __init__(
        self,
        machine: Machine,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        cwd: str,
        user: str,
        emit: Callable[[int, bytes], None],
        stdin: asyncio.Queue[bytes],
    ) -> None:
        self.argv = argv
        self.env = dict(env)
        self.cwd = cwd
        self.user = user
        self._machine = machine
        self._emit = emit
        self._stdin = stdin

    async def read(self) -> bytes:
        """Some of its standard input, as soon as there is some; empty at the end."""
        data = await self._stdin.get()
        if not data:
            self._stdin.put_nowait(b"")  # for whoever asks again
        return data

    async def read_all(self) -> bytes:
        """All of its standard input."""
        found = bytearray()
        while data := await self.read():
            found += data
        return bytes(found)

    def stdout(self, data: str | bytes) -> None:
        """Print to standard output."""
        self._emit(1, _bytes(data))

    def stderr(self, data: str | bytes) -> None:
        """Print to standard error."""
        self._emit(2, _bytes(data))

    def path(self, name: str) -> bytes:
        """A path as it is meant in its working directory."""
        return os.fsencode(os.path.join(self.cwd, name))  # noqa: PTH118 - not of this machine

    @property
    def machine(self) -> Machine:
        """The sandbox that it runs in."""
        return self._machine


Answer = Result | str | bytes | int | None
Command = Callable[[Call], "Answer | Awaitable[Answer]"]
"""A function, asynchronous or not: its answer is a `Result`, the exit code, or what it prints; None is exit
code 0."""


async def answer(command: Command, call: Call) -> Result:
    """Run a command."""
    found = command(call)
    if inspect.isawaitable(found):
        found = await found
    if isinstance(found, Result):
        return found
    if isinstance(found, int):
        return Result(exit_code=found)
    return Result(stdout=found or b"")


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else data


# -------------------------------------------------------------------------------------------- from the start


def _echo(call: Call) -> str:
    words = call.argv[1:]
    return " ".join(words[1:]) if words[:1] == ("-n",) else " ".join(words) + "\n"


async def _cat(call: Call) -> int:
    code = 0
    for name in call.argv[1:] or ("-",):
        if name == "-":
            while data := await call.read():
                call.stdout(data)
            continue
        try:
            call.stdout(call.machine.tree.read(call.path(name)))
        except OSError as error:
            call.stderr(f"cat: can't open '{name}': {error.strerror}\n")
            code = 1
    return code


async def _sleep(call: Call) -> int:
    try:
        seconds = sum(float(word) for word in call.argv[1:])
    except ValueError:
        call.stderr(f"sleep: invalid number '{call.argv[1]}'\n")
        return 1
    await asyncio.sleep(seconds)
    return 0


def _printenv(call: Call) -> Result:
    if len(call.argv) == 1:
        return Result("".join(f"{name}={value}\n" for name, value in call.env.items()))
    found = [call.env[name] for name in call.argv[1:] if name in call.env]
    return Result("".join(f"{value}\n" for value in found), exit_code=len(found) < len(call.argv) - 1)


def _hostname(call: Call) -> str:
    return f"{call.machine.hostname}\n"


async def _sh(call: Call) -> Answer:
    """`sh -c SCRIPT`: commands with `;`, newlines and `&&` between them, `$NAME`, `>FILE`, `>&2`, `exit N`
    and `kill -N $$`. No more than that: programs that need a shell are scripted."""
    if call.argv[1:2] != ("-c",) or len(call.argv) < 3:
        return Result(stderr="sh: the fake shell takes -c SCRIPT\n", exit_code=2)
    code = 0
    for line in re.split(r";|\n", call.argv[2]):
        for part in line.split("&&"):
            known = {**call.env, "?": str(code), "$": "SELF"}
            script = re.sub(r"\$(\w+|\?|\$)", partial(_value, known), part)
            words = shlex.split(script)
            if not words:
                continue
            if words[0] == "exit":
                return int(words[1]) if len(words) > 1 else code
            if words[0] == "kill" and words[-1] == "SELF":
                return Result(signal=int(words[1].lstrip("-")))
            code = await _simple(call, words)
            if code:
                break
    return code


def _value(known: Mapping[str, str], found: re.Match[str]) -> str:
    return known.get(found[1], "")


async def _simple(call: Call, words: list[str]) -> int:
    """One command of a script."""
    emit, written, target = call._emit, bytearray(), None
    arguments = []
    for word in words:
        if word in (">&2", "1>&2"):
            emit = _to_stderr(call)
        elif word.startswith(">") and len(word) > 1:
            target = word[1:]
        else:
            arguments.append(word)
    if ">" in arguments:
        at = arguments.index(">")
        target = arguments[at + 1]
        del arguments[at : at + 2]
    if target is not None:
        emit = _to_file(call, written)
    command = call.machine.commands.get(arguments[0])
    if command is None:
        call.stderr(f"sh: {arguments[0]}: not found\n")
        return 127
    inner = Call(call.machine, tuple(arguments), call.env, call.cwd, call.user, emit, call._stdin)
    result = await answer(command, inner)
    inner.stdout(result.stdout)
    inner.stderr(result.stderr)
    if target is not None:
        call.machine.tree.write(call.path(target), bytes(written))
    return result.exit_code if result.signal is None else 128 + result.signal


def _to_stderr(call: Call) -> Callable[[int, bytes], None]:
    return lambda _channel, data: call.stderr(data)


def _to_file(call: Call, written: bytearray) -> Callable[[int, bytes], None]:
    def emit(channel: int, data: bytes) -> None:
        if channel == 1:
            written.extend(data)
        else:
            call.stderr(data)

    return emit


BUILT_IN: Mapping[str, Command] = {
    "cat": _cat,
    "echo": _echo,
    "env": lambda call: _printenv(Call(call.machine, ("env",), call.env, "/", "", call._emit, call._stdin)),
    "false": lambda _: 1,
    "hostname": _hostname,
    "printenv": _printenv,
    "pwd": lambda call: f"{call.cwd}\n",
    "sh": _sh,
    "sleep": _sleep,
    "true": lambda _: 0,
    "whoami": lambda call: f"{call.user}\n",
}
