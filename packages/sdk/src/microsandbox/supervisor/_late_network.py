"""A network for a sandbox that was started without one, and whose policy now lets something pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from microsandbox_core.channel import ChannelError, Ended
from microsandbox_core.errors import CoreError
from microsandbox_core.relay import Answer, Relay
from microsandbox_core.vmm import Vm

from microsandbox.supervisor.network import SandboxNetwork


def join(
    vm: Vm, relay: Relay, network: SandboxNetwork, answer: Answer, give_up: Callable[[], None], hint: str
) -> None:
    """Bring the card's link up and have agentd give the card its addresses, then answer. If that fails,
    `give_up` undoes what was done before, and the error has the `hint`."""

    def refuse(why: str) -> None:
        give_up()
        answer({"error": {"kind": "network", "message": why, "hint": hint}})

    def ended(event: Any) -> None:
        if not isinstance(event, Ended):
            return  # when the connection is over the loop ends with the reason
        error = event.body.get("error")
        if error is None:
            answer({})
        else:
            said = str(error.get("message")) if isinstance(error, dict) else "it does not say why"
            refuse(f"agentd could not set up the card: {said}")

    try:
        vm.join_network()
        relay.open("network", {"network": network.parameters()}, ended)
    except (CoreError, ChannelError) as error:
        refuse(f"the card could not be told: {error}")
