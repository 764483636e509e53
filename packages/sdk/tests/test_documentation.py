"""docs/sdk.md: its examples run, and it names everything that is public."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import microsandbox
import pytest
from microsandbox import sync
from microsandbox.testing import FakeSandbox
from microsandbox.testing import sync as fake

DOCUMENT = Path(__file__).parents[3] / "docs" / "sdk.md"

if not DOCUMENT.is_file():
    pytest.skip("only a checkout has the documents", allow_module_level=True)

TEXT = DOCUMENT.read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("MSB_HOME", str(tmp_path))
    monkeypatch.setattr("microsandbox.sandbox.Sandbox", FakeSandbox)
    monkeypatch.setattr(sync, "Sandbox", fake.FakeSandbox)
    yield
    FakeSandbox.reset()


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run(example: str) -> None:
    code = compile(example, str(DOCUMENT), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    namespace: dict[str, object] = {}
    found = eval(code, namespace)
    if inspect.iscoroutine(found):
        asyncio.run(_finish(found))


async def _finish(found: object) -> None:
    assert inspect.isawaitable(found)
    await found


def test_everything_public_is_named() -> None:
    words = set(re.findall(r"\w+", TEXT))
    # What is only seen in annotations says by itself what it is.
    unnamed = {
        "Cause",
        "Change",
        "CreateOptions",
        "ExecEvent",
        "FileKind",
        "ImageArgument",
        "ImageSource",
        "LogSource",
        "Modifications",
        "SandboxDetails",
        "SandboxFiles",
        "SandboxOptions",
    }
    assert set(microsandbox.__all__) - words <= unnamed
    for name in microsandbox.__all__:
        found = getattr(microsandbox, name)
        if not isinstance(found, type) or issubclass(found, dict):
            continue
        members = {
            member
            for member, value in vars(found).items()
            if not member.startswith("_")
            and (inspect.isroutine(value) or isinstance(value, property | classmethod))
        }
        left = members - words - {"adopt"}
        assert left - {"active", "items"} == set(), name
