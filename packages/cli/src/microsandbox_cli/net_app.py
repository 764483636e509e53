"""The commands of `msb net` and their options. What they do is in `net`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from microsandbox_cli import network_options as net

net_app = typer.Typer(
    help="Ask what a network policy says, see what was decided, change it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class NetProtocol(StrEnum):
    """What a flow consists of."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"


class NetFormat(StrEnum):
    """How answers and records are printed."""

    TEXT = "text"
    JSON = "json"


Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
FormatOption = Annotated[NetFormat, typer.Option("--format", help="How to print it.")]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="The sandbox.",
        show_default=False,
        autocompletion=lambda incomplete: ["@sandboxes"],
    ),
]


@net_app.command("explain")
def net_explain(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET...",
            help="HOST:PORT, for a sandbox NAME HOST:PORT; IPv6 in brackets, for icmp without a port.",
            show_default=False,
            autocompletion=lambda incomplete: ["@sandboxes"],
        ),
    ],
    protocol: Annotated[NetProtocol, typer.Option("--protocol", help="Of the flow.")] = NetProtocol.TCP,
    network_policy: Annotated[
        net.NetworkPreset | None,
        typer.Option(
            "--network-policy", "--policy", help="As of msb run, if no sandbox is named.", show_default=False
        ),
    ] = None,
    net_rule: net.NetRule = None,
    net_names: net.NetNamesOption = None,
    allow_domain: net.AllowDomain = None,
    deny_domain: net.DenyDomain = None,
    deny_domain_suffix: net.DenyDomainSuffix = None,
    allow_cidr: net.AllowCidr = None,
    upstream_proxy: net.UpstreamProxy = None,
    no_proxy: net.NoProxy = None,
    json: Json = False,
    format: FormatOption = NetFormat.TEXT,
) -> None:
    """Say whether a policy lets a flow pass, and by which rule. Nothing is resolved and nothing is sent.

    The policy is that of a sandbox, or the one that options say. A name is judged as for a client that states
    it, at a public address. allow-if-named: passes once the client has stated a name that is allowed. With a
    proxy it is said whether the flow goes through it.

    Example: msb net explain dev example.com:443

    Example: msb net explain --network-policy none --net-rule allow@10.0.0.0/8 10.1.2.3:22
    """
    from microsandbox_cli.net import explain

    explain(
        words, protocol=protocol, as_json=json or format is NetFormat.JSON,
        options=net.given(
            network_policy=network_policy, net_rule=net_rule, net_names=net_names, allow_domain=allow_domain,
            deny_domain=deny_domain, deny_domain_suffix=deny_domain_suffix, allow_cidr=allow_cidr,
            upstream_proxy=upstream_proxy, no_proxy=no_proxy,
        ),
    )  # fmt: skip


@net_app.command("audit")
def net_audit(
    name: Name,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as more comes, until the sandbox stops.")
    ] = False,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was stopped.")] = False,
    tail: Annotated[
        int | None, typer.Option("--tail", metavar="N", min=0, help="The last N records only.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="From 2026-05-04T10:20:30Z on, or from 5m ago."),
    ] = None,
    json: Json = False,
    format: FormatOption = NetFormat.TEXT,
) -> None:
    """Show what a sandbox's network has decided: the time, what was asked for, the verdict and the rule.

    Also after it has stopped. The last 4 MiB of records are kept, and up to 4 MiB before them.

    Example: msb net audit dev -f --denied
    """
    from microsandbox_cli.net import audit

    audit(
        name, follow=follow, denied=denied, tail=tail, since=since, as_json=json or format is NetFormat.JSON
    )  # fmt: skip


@net_app.command("update")
def net_update(
    name: Name,
    network_policy: net.NetworkPolicyOption = None,
    net_rule: net.NetRule = None,
    net_names: net.NetNamesOption = None,
    allow_domain: net.AllowDomain = None,
    deny_domain: net.DenyDomain = None,
    deny_domain_suffix: net.DenyDomainSuffix = None,
    allow_cidr: net.AllowCidr = None,
) -> None:
    """Give a sandbox another network policy, in place of the one it has.

    One that runs is held to it at once: connections that it does not allow are reset.

    Example: msb net update dev --network-policy none --allow-domain example.com
    """
    from microsandbox_cli.net import update

    update(
        name,
        net.given(
            network_policy=network_policy, net_rule=net_rule, net_names=net_names, allow_domain=allow_domain,
            deny_domain=deny_domain, deny_domain_suffix=deny_domain_suffix, allow_cidr=allow_cidr,
        ),
    )  # fmt: skip
