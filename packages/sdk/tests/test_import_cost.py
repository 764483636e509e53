"""What a start imports before the VM runs: nothing that only later steps need."""

import subprocess
import sys

import pytest

HEAVY = {"asyncio", "typer", "pydantic", "httpx", "ssl", "http", "email", "subprocess", "cffi", "logging"}


@pytest.mark.parametrize(
    "module", ["microsandbox", "microsandbox._create", "microsandbox.supervisor._supervise"]
)
def test_the_start_path_stays_light(module: str) -> None:
    script = f"import {module}, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & set(done.stdout.split()) == set()


def test_a_supervisor_does_without_openssl() -> None:
    script = "import microsandbox.supervisor._supervise, microsandbox_core.relay_server, sys"
    script += "; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert {"hashlib", "_hashlib"} & set(done.stdout.split()) == set()


def test_the_first_step_of_a_start_imports_next_to_nothing() -> None:
    script = "import sys; before = set(sys.modules)\nimport microsandbox._spawn\n"
    script += "print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__future__", "_socket", "microsandbox", "microsandbox._spawn"}
