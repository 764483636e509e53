"""The network options as the parser has them. `network` says what they mean."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class NetworkPreset(StrEnum):
    """What stands below the rules of a policy."""

    NONE = "none"
    PUBLIC_ONLY = "public-only"
    NONLOCAL = "nonlocal"
    ALLOW_ALL = "allow-all"


class NetNames(StrEnum):
    """What a rule for a name asks of clients."""

    STRICT = "strict"
    PIN_ONLY = "pin-only"


class DnsMode(StrEnum):
    """How names are resolved."""

    RESOLVE = "resolve"
    SYNTHETIC = "synthetic"


Port = Annotated[
    list[str] | None,
    typer.Option(
        "--port",
        "-p",
        metavar="[HOST:]PORT:PORT[/udp]",
        help="Publish a port: 8080:80, 0.0.0.0:80:80, 8000-8009:9000-9009. HOST: 127.0.0.1.",
    ),
]
NetworkPolicyOption = Annotated[
    NetworkPreset | None,
    typer.Option(
        "--network-policy",
        help="Whom it may reach; nonlocal adds private networks. Default: public-only.",
        show_default=False,
    ),
]
NetRule = Annotated[
    list[str] | None,
    typer.Option(
        "--net-rule",
        metavar="RULE",
        help="A rule before the policy: allow@example.com:tcp:443, deny@10.0.0.0/8.",
    ),
]
NetNamesOption = Annotated[
    NetNames | None,
    typer.Option(
        "--net-names",
        help="Rules for names: strict: clients have to state them; pin-only: resolved is enough.",
        show_default=False,
    ),
]
AllowDomain = Annotated[
    list[str] | None,
    typer.Option("--allow-domain", metavar="NAME", help="Allow a name; *.NAME: all below; .NAME: both."),
]
DenyDomain = Annotated[
    list[str] | None, typer.Option("--deny-domain", metavar="NAME", help="Deny a name, before all rules.")
]
DenyDomainSuffix = Annotated[
    list[str] | None,
    typer.Option(
        "--deny-domain-suffix", metavar=".NAME", help="Deny a name and all below, before all rules."
    ),
]
AllowCidr = Annotated[
    list[str] | None, typer.Option("--allow-cidr", metavar="NETWORK", help="Allow a network: 10.0.0.0/8.")
]
DnsNameserver = Annotated[
    list[str] | None,
    typer.Option(
        "--dns-nameserver", metavar="ADDRESS", help="Ask this server for names. Default: the host's."
    ),
]
DnsModeOption = Annotated[
    DnsMode | None,
    typer.Option(
        "--dns-mode",
        help="synthetic: allowed names get addresses without asking anybody. Default: resolve.",
        show_default=False,
    ),
]
MaxConnections = Annotated[
    int | None, typer.Option("--max-connections", metavar="N", help="TCP connections at a time.")
]
NetRate = Annotated[
    list[str] | None,
    typer.Option(
        "--net-rate",
        metavar="DIRECTION:RATE[,LIMIT]",
        help="Bytes a second: egress:10M, ingress:1M,burst=4M,packets=1000,packet-burst=50.",
    ),
]
UpstreamProxy = Annotated[
    str | None,
    typer.Option(
        "--upstream-proxy",
        metavar="URL",
        help="Go out through http:// or socks5://[USER:PASSWORD@]HOST:PORT; env: as HTTPS_PROXY says.",
    ),
]
NoProxy = Annotated[
    str | None,
    typer.Option(
        "--no-proxy", metavar="HOSTS", help="Go there without it: localhost,.example.com,10.0.0.0/8."
    ),
]


def given(**options: Any) -> Any:
    """Those that are on the command line, as `network.NetworkOptions` has them."""
    return {name: value for name, value in options.items() if value is not None and value != []}
