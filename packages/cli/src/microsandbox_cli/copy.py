"""`msb cp`."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

from microsandbox.errors import ConfigError, FilesystemError
from microsandbox.files import CopyResult, SandboxFiles

from microsandbox_cli import report
from microsandbox_cli.attached import run_in_loop
from microsandbox_cli.progress import CopyProgress
from microsandbox_cli.run import end_if_ours, entered


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
    """Copy, and exit: 0, 1 if a file could not be copied, 125 if a sandbox failed. One that is stopped is
    started for it."""

    async def main() -> int:
        try:
            with CopyProgress(quiet=quiet) as progress:
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
    source: Location, destination: Location, special_bits: bool, progress: CopyProgress
) -> CopyResult | None:
    if source.sandbox is None and destination.sandbox is None:
        raise ConfigError(
            "neither path is in a sandbox", hint="write one as NAME:/PATH; `cp` copies on the host"
        )
    async with AsyncExitStack() as stack:
        opened: dict[str, SandboxFiles] = {}

        async def files(name: str) -> SandboxFiles:
            if name not in opened:
                sandbox = await entered(name, detached=False)
                stack.push_async_callback(end_if_ours, sandbox)
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
