//! Packets that begin a flow to an address that stands for a name: they wait until it is known where that leads.

use super::core::Core;
use super::dns;
use super::gate::Standing;
use super::metrics::add;
use super::packet::{Packet, Reject, TCP, UDP};
use super::reply::Unreachable;
use crate::policy::{Flow, Protocol};
use std::rc::Rc;
use tokio::time::timeout;

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Whether `packet` may begin a flow that is not the resolver's.
pub fn begins(packet: &Packet<'_>) -> bool {
    match packet.protocol {
        TCP => {
            let flags = packet.payload.get(13).copied().unwrap_or_default();
            port(packet) != Some(dns::PORT) && flags & (SYN | ACK) == SYN
        }
        UDP => port(packet) != Some(dns::PORT),
        _ => true,
    }
}

/// The target's.
fn port(packet: &Packet<'_>) -> Option<u16> {
    let bytes = packet.payload.get(2..4)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Let `packet` go on once `standing` is over. Those who wait count as questions under way.
pub fn wait(core: &Rc<Core>, packet: &Packet<'_>, standing: Standing) -> Result<(), Reject> {
    if *core.questions.borrow() >= core.config.limits.questions {
        return Err(Reject::Full);
    }
    let (_, gateway) = core.ends(packet.target).ok_or(Reject::Target)?;
    let flow = match packet.protocol {
        TCP => core.egress(Protocol::Tcp, packet.target, port(packet)),
        UDP => core.egress(Protocol::Udp, packet.target, port(packet)),
        _ => core.egress(Protocol::Icmp, packet.target, None),
    };
    let (payload, bytes) = (packet.payload.to_vec(), packet.bytes.to_vec());
    let (source, target, protocol, hops) =
        (packet.source, packet.target, packet.protocol, packet.hops);
    let splits = packet.splits;
    let waiting = Waiting::new(core);
    let core = Rc::clone(core);
    Rc::clone(&core).spawn(async move {
        let _waiting = waiting;
        match timeout(core.config.limits.connect, standing).await {
            Ok(Ok(())) => {
                let packet = Packet {
                    source,
                    target,
                    protocol,
                    hops,
                    splits,
                    payload: &payload,
                    bytes: &bytes,
                    fragment: None,
                };
                if let Err(why) = core.hand_on(&packet, gateway) {
                    core.metrics.dropped(why);
                }
            }
            Ok(Err(Some((name, verdict)))) => {
                let name = Some(name);
                core.record(&Flow { name, ..flow }, &verdict);
                core.unreachable(target, Unreachable::Prohibited, &bytes);
            }
            Ok(Err(None)) | Err(_) => {
                add(&core.metrics.failed, 1);
                core.unreachable(target, Unreachable::Host, &bytes);
            }
        }
        core.kick();
    });
    Ok(())
}

struct Waiting(Rc<Core>);

impl Waiting {
    fn new(core: &Rc<Core>) -> Waiting {
        *core.questions.borrow_mut() += 1;
        Waiting(Rc::clone(core))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        *self.0.questions.borrow_mut() -= 1;
    }
}
