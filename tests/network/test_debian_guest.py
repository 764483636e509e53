"""What people do with a network, in a Debian guest, in an internet of the test's own.

    MSB_TEST_DEBIAN=DIRECTORY pytest tests/network/test_debian_guest.py

DIRECTORY is as tests/support/debian.py has it. No test itself leaves its namespaces.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.debian import DIRECTORY, Debian, root
from tests.support.internet import ROUTER, WWW, Internet
from tests.support.internet_servers import pattern
from tests.support.msb import Msb
from tests.support.namespace import why_not

PACKAGES = "curl,git,python3-minimal,python3-pip,iputils-ping,ca-certificates"
MEGABYTE = 1 << 20

pytestmark = [
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(DIRECTORY is None, reason="MSB_TEST_DEBIAN names no directory for a Debian guest"),
]
FAMILIES = pytest.mark.parametrize("family", ["4", "6"])

WEBSOCKET = """
import base64, hashlib, os, socket, sys
family = {"4": socket.AF_INET, "6": socket.AF_INET6}[sys.argv[1]]
((*_, address),) = socket.getaddrinfo("www.example.com", 80, family, socket.SOCK_STREAM)
stream = socket.socket(family)
stream.connect(address)
key = base64.b64encode(os.urandom(16)).decode()
stream.sendall(("GET /websocket HTTP/1.1\\r\\nHost: www.example.com\\r\\nUpgrade: websocket\\r\\n"
    "Connection: Upgrade\\r\\nSec-WebSocket-Version: 13\\r\\n"
    "Sec-WebSocket-Key: " + key + "\\r\\n\\r\\n").encode())
reader = stream.makefile("rb")
head = b"".join(iter(reader.readline, b"\\r\\n")).decode()
accept = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
assert head.startswith("HTTP/1.1 101") and base64.b64encode(accept).decode() in head, head
for number in range(100):
    text = b"message %d" % number
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
    stream.sendall(bytes([0x81, 0x80 | len(text)]) + mask + masked)
    assert reader.read(2 + len(text)) == bytes([0x81, len(text)]) + text
print("echoed")
"""

PARALLEL = """
import resource, selectors, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
addresses = [info[::4] for info in socket.getaddrinfo("www.example.com", 7, type=socket.SOCK_STREAM)]
waiting = selectors.DefaultSelector()
answers = {}
for number in range(1000):
    family, address = addresses[number % len(addresses)]
    stream = socket.socket(family)
    stream.setblocking(False)
    stream.connect_ex(address)
    waiting.register(stream, selectors.EVENT_WRITE, number)
while waiting.get_map():
    ready = waiting.select(60)
    assert ready, "%d connections say nothing" % len(waiting.get_map())
    for key, events in ready:
        if events & selectors.EVENT_WRITE:
            key.fileobj.sendall(b"\\0%d" % key.data)
            key.fileobj.shutdown(socket.SHUT_WR)
            waiting.modify(key.fileobj, selectors.EVENT_READ, key.data)
        elif data := key.fileobj.recv(1000):
            answers[key.data] = answers.get(key.data, b"") + data
        else:
            waiting.unregister(key.fileobj)
            key.fileobj.close()
assert answers == {number: b"\\0%dend" % number for number in range(1000)}
print(len({family for family, _ in addresses}), len(answers))
"""


@pytest.fixture(scope="module")
def internet() -> Iterator[Internet]:
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    with Internet() as internet:
        yield internet


@pytest.fixture(scope="module")
def guest(internet: Internet, shared_home: Path, settings: dict[str, str]) -> Iterator[Debian]:
    msb = Msb(shared_home, settings).within(internet.host)
    options = ["--memory", "1G", "--dns-nameserver", ROUTER[0]]
    msb("create", root("root", PACKAGES), "--name", "debian", *options, timeout=280).succeeded()
    yield Debian(msb, "debian")
    msb("rm", "--force", "debian").succeeded()


@FAMILIES
def test_curl(guest: Debian, family: str) -> None:
    answer = guest('curl -fsS -"$1" http://www.example.com/who', family)
    assert f'"address": "{WWW[family == "6"]}"' in answer


@FAMILIES
def test_a_long_download_arrives_whole(guest: Debian, family: str) -> None:
    size = 256 * MEGABYTE
    answer = guest('curl -fsS -"$1" "http://www.example.com/size/$2" | sha256sum', family, str(size))
    assert answer.split()[0] == hashlib.sha256(pattern(size)).hexdigest()


def test_apt_get(guest: Debian, internet: Internet, tmp_path: Path) -> None:
    tree = tmp_path / "worldly"
    (tree / "DEBIAN").mkdir(parents=True)
    control = (
        "Package: worldly\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.com>\nDescription: x\n"
    )
    (tree / "DEBIAN" / "control").write_text(control)
    (tree / "etc").mkdir()
    (tree / "etc" / "worldly").write_text("from the mirror\n")
    subprocess.run(["dpkg-deb", "-Zgzip", "--root-owner-group", "-b", tree, tmp_path], check=True)
    package = (tmp_path / "worldly_1.0_all.deb").read_bytes()
    digest = hashlib.sha256(package).hexdigest()
    listing = f"{control}Filename: ./worldly_1.0_all.deb\nSize: {len(package)}\nSHA256: {digest}\n".encode()
    release = f"SHA256:\n {hashlib.sha256(listing).hexdigest()} {len(listing)} Packages\n"
    place = "mirror.example.com/debian/./"
    internet.servers.files.update(
        {
            f"{place}Packages": listing,
            f"{place}Release": b"Date: Thu, 01 Jan 2026 00:00:00 UTC\n" + release.encode(),
            f"{place}worldly_1.0_all.deb": package,
        }
    )
    guest(
        'echo "deb [trusted=yes] http://mirror.example.com/debian ./" > /etc/apt/sources.list; '
        "rm -rf /etc/apt/sources.list.d/*"
    )
    guest("apt-get update")
    guest("DEBIAN_FRONTEND=noninteractive apt-get install -y worldly")
    assert guest("cat /etc/worldly") == "from the mirror\n"


def test_git_clone(guest: Debian, internet: Internet, tmp_path: Path) -> None:
    def git(*arguments: str | Path) -> None:
        who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
        for role in ("AUTHOR", "COMMITTER"):
            who |= {f"GIT_{role}_NAME": "A", f"GIT_{role}_EMAIL": "a@example.com"}
        subprocess.run(["git", *arguments], check=True, capture_output=True, env={**os.environ, **who})

    work, bare = tmp_path / "work", tmp_path / "project.git"
    git("init", "-q", work)
    (work / "large").write_bytes(pattern(4 * MEGABYTE))
    git("-C", work, "add", ".")
    git("-C", work, "commit", "-qm", "first")
    git("clone", "-q", "--bare", work, bare)
    git("-C", bare, "update-server-info")
    for path in bare.rglob("*"):
        if path.is_file():
            name = f"git.example.com/project.git/{path.relative_to(bare)}"
            internet.servers.files[name] = path.read_bytes()
    answer = guest(
        "git clone -q http://git.example.com/project.git /tmp/project; sha256sum /tmp/project/large"
    )
    assert answer.split()[0] == hashlib.sha256(pattern(4 * MEGABYTE)).hexdigest()


def test_pip_install(guest: Debian, internet: Internet) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("worldly.py", "print('from the index')\n")
        about = "worldly-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: worldly\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    name = "worldly-1.0-py3-none-any.whl"
    page = f'<!DOCTYPE html><html><body><a href="/{name}">{name}</a></body></html>'
    internet.servers.files["pypi.example.com/simple/worldly/"] = page.encode()
    internet.servers.files[f"pypi.example.com/{name}"] = wheel.getvalue()
    index = "--index-url http://pypi.example.com/simple --trusted-host pypi.example.com"
    guest(f"pip install -q --no-cache-dir --break-system-packages --root-user-action=ignore {index} worldly")
    assert guest("python3 -c 'import worldly'") == "from the index\n"


@FAMILIES
def test_websocket(guest: Debian, family: str) -> None:
    assert guest('python3 - "$1"', family, stdin=WEBSOCKET) == "echoed\n"


def test_a_thousand_connections_at_once(guest: Debian) -> None:
    assert guest("python3 -", stdin=PARALLEL) == "2 1000\n"


@FAMILIES
def test_ping(guest: Debian, family: str) -> None:
    assert "3 received" in guest('ping -"$1" -c 3 -i 0.2 www.example.com', family)
