"""Mistakes that a type checker has to find: each line with `ignore` would be an error without it, and the
checker is told to complain of one that is not needed. Nothing here is run."""

from __future__ import annotations

import microsandbox
import microsandbox.sync as plain
from microsandbox import Sandbox, SandboxPool


async def mistaken() -> None:
    await Sandbox.create("dev")  # type: ignore[call-arg]
    await Sandbox.create(image="busybox", memory=1.5)  # type: ignore[arg-type]
    await Sandbox.create(image="busybox", memroy="1G")  # type: ignore[call-arg]
    await Sandbox.connect_or_create("dev", image="busybox", memroy="1G")  # type: ignore[call-arg]
    await (await Sandbox.get("dev")).exec("true")  # type: ignore[attr-defined]
    await (await Sandbox.connect("dev")).modify(image="other")  # type: ignore[call-arg]
    SandboxPool(image="busybox", size=1, detached=True)  # type: ignore[call-arg]
    plain.Sandbox.create(image="busybox", cpus="two")  # type: ignore[arg-type]
    microsandbox.Nonsense  # type: ignore[attr-defined]  # noqa: B018
