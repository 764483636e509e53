"""`msb cp`."""

from __future__ import annotations

import sys
import time
from contextlib import AsyncExitStack
from typing import Final, NamedTuple, Self

from microsandbox import Sandbox
from microsandbox.errors import ConfigError, FilesystemError
from microsandbox.files import CopyResult, SandboxFiles

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.listing import human_size

_QUIET_TIME: Final = 0.3
"""Seconds of work before anything is shown."""
_INTERVAL: Final = 0.1
"""Seconds between two updates."""


class Location(NamedTuple):
    """One end of a copy. `sandbox`: its name, or None for the host."""

    sandbox: str | None
    path: str


def parse_location(text: str) -> Location:
    """``NAME:/path``, or a path of the host: one without a colon, or with a slash before it.

    Raises `ConfigError`.
    """
    name, colon, path = text.partition(":")
    if not colon or "/" in name:
        if not text:
            raise ConfigError("the path is empty", hint="give a PATH, or NAME:/PATH")
        return Location(None, text)
    if not name:
        raise ConfigError(
            f"{text}: no sandbox is named before the colon", hint="NAME:/PATH, or ./:name for a file"
        )
    if not path.startswith("/"):
        raise ConfigError(
            f"{text}: the path in a sandbox has to be absolute",
            hint=f"{name}:/{path}; a file of the host with a colon in its name is ./{text}",
        )
    return Location(name, path)


def copy(source: str, destination: str, *, special_bits: bool, quiet: bool) -> None:
    """Copy, and exit: 0, 1 if a file could not be copied, 125 if a sandbox failed or is not running."""

    async def main() -> int:
        try:
            with _Progress(quiet=quiet) as progress:
                result = await _copy(
                    parse_location(source), parse_location(destination), special_bits, progress
                )
        except FilesystemError as failure:
            report.error(str(failure), failure.hint)
            return report.EXIT_FAILED
        if result is not None and result.skipped:
            shown = ", ".join(result.skipped_names)
            more = result.skipped - len(result.skipped_names)
            report.note(
                "note: not copied, because they are no files, directories or links: "
                + shown
                + (f" and {more} more" if more else "")
            )
        return 0

    run_in_loop(main)


async def _copy(
    source: Location, destination: Location, special_bits: bool, progress: _Progress
) -> CopyResult | None:
    if source.sandbox is None and destination.sandbox is None:
        raise ConfigError(
            "neither path is in a sandbox", hint="write one as NAME:/PATH; `cp` copies on the host"
        )
    async with AsyncExitStack() as stack:
        opened: dict[str, SandboxFiles] = {}

        async def files(name: str) -> SandboxFiles:
            if name not in opened:
                sandbox = await Sandbox.get(name)
                stack.push_async_callback(sandbox.detach)
                opened[name] = sandbox.fs
            return opened[name]

        if source.sandbox is None:
            assert destination.sandbox is not None
            target = await files(destination.sandbox)
            return await target.copy_from_host(
                source.path, destination.path, special_bits=special_bits, progress=progress
            )
        origin = await files(source.sandbox)
        if destination.sandbox is None:
            return await origin.copy_to_host(
                source.path, destination.path, special_bits=special_bits, progress=progress
            )
        target = await files(destination.sandbox)
        await origin.copy_to(
            source.path, target, destination.path, special_bits=special_bits, progress=progress
        )
        return None


class _Progress:
    """How much has passed, on a terminal's last line; the line is wiped when the context is left."""

    def __init__(self, *, quiet: bool) -> None:
        self._enabled = not quiet and sys.stderr.isatty()
        self._began = time.monotonic()
        self._shown = 0.0
        self._width = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()

    def __call__(self, passed: int) -> None:
        now = time.monotonic()
        took = now - self._began
        if not self._enabled or took < _QUIET_TIME or now - self._shown < _INTERVAL:
            return
        self._shown = now
        line = f"copying: {human_size(passed)}, {human_size(int(passed / took))}/s"
        sys.stderr.write("\r" + line.ljust(self._width))
        sys.stderr.flush()
        self._width = max(self._width, len(line))
