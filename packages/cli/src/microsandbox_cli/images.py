"""`msb load`, `images`, `image inspect`, `rmi`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime

from microsandbox import images as store
from microsandbox.errors import MicrosandboxError, translated
from microsandbox.images import Image
from microsandbox_core import env

from microsandbox_cli import report
from microsandbox_cli.listing import age, human_size, print_json, print_names, print_table
from microsandbox_cli.progress import LoadProgress


def load(source: str | None, *, tag: str | None, quiet: bool) -> None:
    """Load images and print their names."""
    if source is None and sys.stdin.isatty():
        report.error("no archive was given and standard input is a terminal", "msb load -i FILE")
        sys.exit(report.EXIT_USAGE)
    with LoadProgress(quiet=quiet) as progress:
        found = store.load(
            env.home(), sys.stdin.buffer if source in (None, "-") else source, tag=tag, progress=progress
        )
    print_names([_name(image) for image in found])


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
