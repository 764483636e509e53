"""The boot disk is an EROFS that its own checker accepts and that holds agentd."""

import shutil
import subprocess
from pathlib import Path

import pytest
from microsandbox_core.bootdisk import MOUNT_POINTS, build, ensure_boot_disk
from microsandbox_core.errors import AgentMissing


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 1_200_000])
def test_fsck_accepts_it_and_extracts_what_was_put_in(tmp_path: Path, size: int) -> None:
    fsck = shutil.which("fsck.erofs")
    assert fsck, "install erofs-utils: `make test` does"
    agent = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    disk = tmp_path / "boot.erofs"
    disk.write_bytes(build(agent))
    tree = tmp_path / "tree"
    done = subprocess.run([fsck, f"--extract={tree}", disk], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tree / "agentd").read_bytes() == agent
    assert (tree / "agentd").stat().st_mode & 0o777 == 0o755
    assert sorted(entry.name for entry in tree.iterdir()) == sorted(["agentd", *MOUNT_POINTS])
    assert all((tree / name).is_dir() for name in MOUNT_POINTS)


def test_the_same_agent_gives_the_same_bytes() -> None:
    assert build(b"agent") == build(b"agent")
    assert build(b"agent") != build(b"tnega")


def test_it_is_made_once_and_again_for_another_agent(tmp_path: Path) -> None:
    agent = tmp_path / "agentd"
    agent.write_bytes(b"one")
    first = ensure_boot_disk(tmp_path / "home", agent=agent)
    made = first.path.stat().st_ino
    assert ensure_boot_disk(tmp_path / "home", agent=agent).path.stat().st_ino == made
    agent.write_bytes(b"two")
    assert ensure_boot_disk(tmp_path / "home", agent=agent).digest != first.digest


def test_a_damaged_boot_disk_is_made_again(tmp_path: Path) -> None:
    agent = tmp_path / "agentd"
    agent.write_bytes(b"one" * 5000)
    first = ensure_boot_disk(tmp_path / "home", agent=agent)
    first.path.chmod(0o600)
    first.path.write_bytes(first.path.read_bytes()[:4096])
    again = ensure_boot_disk(tmp_path / "home", agent=agent)
    assert again == first
    assert len(again.path.read_bytes()) > 4096


def test_a_missing_agent_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentMissing, match="nowhere"):
        ensure_boot_disk(tmp_path, agent=tmp_path / "nowhere")
