"""`msb load`, `images`, `image inspect`, `rmi`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from microsandbox import images as store
from microsandbox.errors import MicrosandboxError, translated
from microsandbox.images import Image
from microsandbox_core import env
from microsandbox_oci import ImageError

from microsandbox_cli import report
from microsandbox_cli.listing import age, human_size, print_json, print_names, print_table
from microsandbox_cli.progress import LoadProgress
from microsandbox_cli.text import printable


def load(
    source: str | None,
    *,
    input: str | None = None,
    tag: str | None = None,
    compression: str | None = None,
    quiet: bool = False,
) -> None:
    """Load images and print their names."""
    if source is None:
        source = input
    if source is None and sys.stdin.isatty():
        report.error("no archive was given and standard input is a terminal", "msb load -i FILE")
        sys.exit(report.EXIT_USAGE)
    with LoadProgress(quiet=quiet) as progress:
        found = store.load(
            env.home(),
            sys.stdin.buffer if source in (None, "-") else source,
            tag=tag,
            compression=compression,
            progress=progress,
        )
    print_names([_name(image) for image in found])


def save(names: Sequence[str], output: Path | None, *, form: str) -> None:
    """Write images to a file, whole or not at all, or to standard output."""
    hint = "msb save -o FILE IMAGE, or redirect it"
    _write(output, lambda target: store.save_to(env.home(), names, target, form=form), hint)


def export(name: str, output: Path | None) -> None:
    """Write an image's root file system to a file, whole or not at all, or to standard output."""
    hint = "msb image export -o FILE IMAGE, or redirect it"
    _write(output, lambda target: store.export_to(env.home(), name, target), hint)


def _write(output: Path | None, write: Callable[[Path | BinaryIO], None], hint: str) -> None:
    if output is None or str(output) == "-":
        if sys.stdout.isatty():
            report.error("an archive would go to the terminal", hint)
            sys.exit(report.EXIT_USAGE)
        write(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    try:
        write(output)
    except OSError as error:
        report.error(f"cannot write {output}: {error.strerror or error}", "choose another file with -o")
        sys.exit(report.EXIT_FAILED)


def list_images(*, quiet: bool, as_json: bool) -> None:
    """Print the images in the store."""
    damaged: list[str] = []
    found = store.list_all(env.home(), on_damaged=lambda name, error: damaged.append(f"{name}: {error}"))
    if quiet:
        print_names([_name(image) for image in found])
    elif as_json:
        print_json([_plain(image) for image in found])
    else:
        now = time.time()
        print_table(
            ("IMAGE", "DIGEST", "LAYERS", "SIZE", "CREATED"),
            [
                (
                    _name(image),
                    image.digest[7:19],
                    str(len(image.layers)),
                    human_size(image.size),
                    _created(image.created, now),
                )
                for image in found
            ],
        )
    for line in damaged:
        report.error(f"damaged image: {line}", "load it again")
    if damaged:
        sys.exit(report.EXIT_FAILED)


def inspect_image(name: str) -> None:
    """Print everything known about an image."""
    image = store.get(env.home(), name)
    config = image.config
    plain = _plain(image)
    plain["config"] = {
        "env": list(config.env),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "working_dir": config.working_dir,
        "user": config.user,
        "labels": dict(config.labels),
        "stop_signal": config.stop_signal,
        "exposed_ports": list(config.exposed_ports),
        "volumes": list(config.volumes),
    }
    plain["disk"] = str(image.disk)
    plain["layers"] = [
        {"diff_id": layer.diff_id, "path": str(layer.path), "size": layer.size} for layer in image.layers
    ]
    print_json(plain)


def verify_images(names: Sequence[str], *, remove_damaged: bool, quiet: bool) -> None:
    """Check images, all without names, and exit 1 if one is damaged."""
    failed = False
    chosen = list(names) or sorted({image.digest for image in store.list_all(env.home(), on_damaged=_told)})
    for name in chosen:
        try:
            with LoadProgress(quiet=quiet) as progress:
                result = store.verify(env.home(), name, remove_damaged=remove_damaged, progress=progress)
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
            continue
        for problem in result.problems:
            report.error(f"{name}: {problem}", None if remove_damaged else problem.hint)
        failed = failed or bool(result.problems)
        if not result.problems:
            part = f" ({len(result.unchecked)} layers by their metadata only)" if result.unchecked else ""
            print_names([name if quiet else f"{name}: undamaged{part}"])
    if failed:
        sys.exit(report.EXIT_FAILED)


def show_history(name: str, *, as_json: bool) -> None:
    """Print how an image was built, the newest step first."""
    steps = list(reversed(store.history(env.home(), name)))
    if as_json:
        print_json(
            [
                {
                    "created": step.created,
                    "created_by": step.created_by,
                    "comment": step.comment,
                    "layer": step.layer,
                    "size": step.size,
                }
                for step in steps
            ]
        )
        return
    now = time.time()
    print_table(
        ("CREATED", "SIZE", "LAYER", "CREATED BY"),
        [
            (
                _created(step.created, now),
                human_size(step.size) if step.layer else "-",
                step.layer[7:19] if step.layer else "-",
                printable(step.created_by),
            )
            for step in steps
        ],
    )


def prune_images(*, dry_run: bool, quiet: bool, as_json: bool) -> None:
    """Remove images without a name and what no image needs."""
    removed = store.prune(env.home(), dry_run=dry_run)
    if as_json:
        print_json({"images": list(removed.images), "layers": list(removed.layers), "size": removed.size})
        return
    print_names(removed.images)
    if not quiet:
        verb = "can be freed" if dry_run else "freed"
        what = f"{len(removed.images)} images and {len(removed.layers)} layers"
        report.note(f"{what}: {human_size(removed.size)} {verb}")


def _told(name: object, error: ImageError) -> None:
    report.error(f"damaged image: {name}: {error}", error.hint)


def remove_images(names: Sequence[str]) -> None:
    """Remove images; go on after a failure and exit 1 at the end."""
    failed = False
    for name in names:
        try:
            with translated():
                store.remove(env.home(), name)
            sys.stdout.write(name + "\n")
        except MicrosandboxError as failure:
            report.error(str(failure), failure.hint)
            failed = True
    if failed:
        sys.exit(report.EXIT_FAILED)


def _name(image: Image) -> str:
    return image.digest if image.reference is None else image.reference.familiar


def _plain(image: Image) -> dict[str, object]:
    return {
        "reference": None if image.reference is None else str(image.reference),
        "digest": image.digest,
        "layers": [layer.diff_id for layer in image.layers],
        "size": image.size,
        "created": image.created,
        "architecture": image.architecture,
    }


def _created(text: str, now: float) -> str:
    try:
        return age(now - datetime.fromisoformat(text).timestamp())
    except ValueError:
        return "-"  # the configuration does not say, or not in a form that is a time
