//! Who waits for a turn to send or to be sent to, and what it then does.

use super::core::Core;
use super::datagram::Datagrams;
use super::inbound::{self, Peer, Port};
use super::rate::{Bounds, Pacer};
use super::tcp::Tcp;
use std::rc::Rc;
use tokio::sync::Notify;

#[derive(Clone)]
pub enum Waiter {
    Tcp(Rc<Tcp>),
    Datagrams(Rc<Datagrams>),
    /// What the guest sends to whoever came through a published port of UDP, and what comes there.
    Peer(Rc<Peer>),
    Port(Rc<Port>),
    /// A TCP flow that may not yet be made.
    Opening(Rc<Notify>),
}

impl Waiter {
    /// The same for the same flow as long as it waits.
    fn id(&self) -> usize {
        match self {
            Waiter::Tcp(tcp) => Rc::as_ptr(tcp) as usize,
            Waiter::Datagrams(flow) => Rc::as_ptr(flow) as usize,
            Waiter::Peer(peer) => Rc::as_ptr(peer) as usize,
            Waiter::Port(port) => Rc::as_ptr(port) as usize,
            Waiter::Opening(notify) => Rc::as_ptr(notify) as usize,
        }
    }
}

pub struct Shaper {
    /// What the guest sends.
    pub egress: Pacer<Waiter>,
    /// What it is sent.
    pub ingress: Pacer<Waiter>,
}

impl Shaper {
    pub fn new(bounds: Bounds, mtu: usize) -> Shaper {
        Shaper {
            egress: Pacer::new(bounds.egress, mtu),
            ingress: Pacer::new(bounds.ingress, mtu),
        }
    }

    pub fn forget(&self) {
        self.egress.forget();
        self.ingress.forget();
    }

    /// Wait until a TCP flow may be made: it costs one packet.
    pub async fn opening(&self) {
        if !self.egress.counts_packets() {
            return;
        }
        if self.egress.allowance(1) > 0 {
            return self.egress.spend(0);
        }
        let turn = Rc::new(Notify::new());
        queue(&self.egress, Waiter::Opening(Rc::clone(&turn)));
        turn.notified().await;
    }
}

pub fn queue(pacer: &Pacer<Waiter>, waiter: Waiter) {
    pacer.wait(waiter.id(), waiter);
}

/// Give turns where there are bounds.
pub fn start(core: &Rc<Core>) {
    if core.shaper.egress.bounds() {
        let own = Rc::clone(core);
        core.spawn(async move { own.shaper.egress.run(|who| egress(&own, &who)).await });
    }
    if core.shaper.ingress.bounds() {
        let own = Rc::clone(core);
        core.spawn(async move { own.shaper.ingress.run(|who| ingress(&own, &who)).await });
    }
}

fn egress(core: &Rc<Core>, who: &Waiter) {
    match who {
        Waiter::Tcp(tcp) => tcp.turn(core),
        Waiter::Datagrams(flow) => flow.release(core),
        Waiter::Peer(peer) => inbound::release(core, peer),
        // One that was given up costs nothing.
        Waiter::Opening(turn) if Rc::strong_count(turn) > 1 => {
            core.shaper.egress.spend(0);
            turn.notify_one();
        }
        Waiter::Opening(_) | Waiter::Port(_) => {}
    }
}

fn ingress(core: &Rc<Core>, who: &Waiter) {
    match who {
        Waiter::Tcp(tcp) => tcp.turn(core),
        Waiter::Datagrams(flow) => flow.resume(core),
        Waiter::Port(port) => inbound::resume(core, port),
        Waiter::Opening(_) | Waiter::Peer(_) => {}
    }
}
