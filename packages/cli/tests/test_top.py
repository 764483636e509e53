"""The screen of `msb top`, without a terminal."""

from datetime import UTC, datetime

from microsandbox.metrics import GuestMetrics, NetworkMetrics, ProcessUsage, SandboxMetrics
from microsandbox_cli.metrics import as_json
from microsandbox_cli.top import picture

_USAGE = ProcessUsage(7, 1.25, 1.0, 0.25, 30 << 20, 20 << 20, 4096, None)


def _sandbox(name: str, percent: float | None, memory: int) -> SandboxMetrics:
    return SandboxMetrics(
        id="0123456789abcdef", name=name, image="busybox", isolation="kvm",
        taken_at=datetime(2026, 5, 4, tzinfo=UTC), uptime=61.5, cpus=2, memory=512 << 20, cpu_percent=percent,
        vmm=_USAGE._replace(pss=memory << 20), supervisor=_USAGE, upper_allocated=None, upper_size=None,
        network=None, host_limits=None, guest=GuestMetrics(500 << 20, 400 << 20), guest_error=None,
    )  # fmt: skip


_FOUND = [_sandbox("b", 10.0, 30), _sandbox("a", None, 10), _sandbox("c", 50.25, 20)]


def _names(order: str) -> str:
    return "".join(line[0] for line in picture(_FOUND, order, 200, 50)[2:-1])


def test_it_is_sorted_as_wanted() -> None:
    assert (_names("c"), _names("m"), _names("n")) == ("cba", "bca", "abc")


def test_it_shows_what_is_known() -> None:
    total, header, first, *_ = picture(_FOUND, "n", 200, 50)
    assert total == "3 running, CPU 60.2 %, memory 120 MiB"
    assert " ".join(header.split()) == (
        "NAME CPU % HOST MEM GUEST MEM DISK READ WRITTEN UPPER TASKS UPTIME NET SENT RECEIVED CONNS DENIED"
    )
    assert " ".join(first.split()) == "a - 30.0 MiB 100 MiB / 512 MiB 4.0 KiB - - - 1m - - - -"


def test_it_shows_what_has_passed_the_network_card() -> None:
    counted = NetworkMetrics(*range(1024, 1024 + len(NetworkMetrics._fields)))
    counted = counted._replace(sent=3 << 20, connections=7, denied=0)
    one = _FOUND[0]._replace(network=counted)
    assert picture([one], "n", 200, 50)[2].split()[-6:] == ["3.0", "MiB", "1.0", "KiB", "7", "0"]
    assert as_json(one)["network"] == counted._asdict()
    assert as_json(_FOUND[0])["network"] is None


def test_it_fits_every_terminal() -> None:
    for rows in range(1, 8):
        for cols in (1, 20, 200):
            lines = picture(_FOUND, "c", cols, rows)
            assert len(lines) <= rows
            assert all(len(line) <= cols for line in lines)
    assert "(2 more do not fit)" in picture(_FOUND, "c", 200, 4)[-1]
    assert picture([], "c", 80, 24)[0] == "0 running, CPU 0.0 %, memory 0 B"
