"""The error tree: everything under one base, everything with a code, the drawing true."""

import re

import microsandbox
import pytest
from microsandbox import errors
from microsandbox.errors import MicrosandboxError, translated
from microsandbox_core import errors as core

TREE = {
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, MicrosandboxError)
}


def test_every_error_is_under_the_base_and_has_a_code_of_its_own() -> None:
    raised = {v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)}
    assert raised == TREE
    codes = [error.code for error in TREE]
    assert len(set(codes)) == len(codes)


def test_every_error_is_public_and_in_the_drawing() -> None:
    drawn = set(re.findall(r"[A-Z][A-Za-z]+(?:Error|[a-z])\b", (errors.__doc__ or "").split("::")[1]))
    names = {error.__name__ for error in TREE}
    assert names <= drawn
    assert names <= set(microsandbox.__all__)


def test_everything_public_can_be_had() -> None:
    for name in microsandbox.__all__:
        # A union of types has no name.
        assert getattr(getattr(microsandbox, name), "__name__", name) == name
    with pytest.raises(AttributeError, match="nothing"):
        _ = microsandbox.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (core.StorageError("m", hint="h"), errors.StateError),
        (core.SpecInvalid("m", hint="h"), errors.ConfigError),
        (core.VmmNotFound("m", hint="h"), errors.NoHypervisor),
        (core.KernelError("m", hint="h"), errors.StartError),
        (core.BootFailed("m", stage="boot", console="c", hint="h"), errors.BootFailed),
    ],
)
def test_errors_of_core_come_out_as_ours(raised: core.CoreError, expected: type[MicrosandboxError]) -> None:
    with pytest.raises(expected, match="m") as caught, translated():
        raise raised
    assert caught.value.hint == "h"
    assert caught.value.__cause__ is raised


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(KeyError), translated():
        raise KeyError("x")
