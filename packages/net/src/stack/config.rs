//! What a stack is told when it starts.

use super::packet::Ends;
use super::proxy::Proxy;
use super::publish::Binding;
use super::rate::Bounds;
use std::time::Duration;

/// The link and its bounds.
#[derive(Clone, Debug)]
pub struct Config {
    pub ends: Ends,
    /// The largest IP packet on the link, in bytes: 1,280 to 65,520.
    pub mtu: usize,
    pub limits: Limits,
    /// Ports of the host that lead into the guest.
    pub ports: Vec<Binding>,
    /// What TCP goes through. None: straight to its target.
    pub proxy: Option<Proxy>,
}

/// How much a guest may have of anything.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP flows at a time, with the ones that are only being opened.
    pub connections: usize,
    /// TCP flows that are being opened: the oldest gives way to a new one. A thousand at once are no flood.
    pub half_open: usize,
    /// UDP and ICMP flows at a time: the one that rested longest gives way.
    pub datagrams: usize,
    /// DNS questions under way at a time.
    pub questions: usize,
    /// Audit records kept until they are fetched.
    pub audit: usize,
    /// How long an upstream host may take to answer.
    pub connect: Duration,
    /// How long the guest may take to finish a handshake.
    pub handshake: Duration,
    /// How long a TCP flow may rest. RFC 5382 asks for at least 2 hours and 4 minutes.
    pub tcp_idle: Duration,
    /// How long an end that the guest repeats is answered once both sides ended (time-wait).
    pub time_wait: Duration,
    /// How long a UDP flow may rest. RFC 4787 asks for at least 2 minutes.
    pub udp_idle: Duration,
    /// How long a client may take over the first bytes that tell its name.
    pub naming: Duration,
    /// How long a TCP flow rests before the guest is asked whether it is still there: one that restarted says no.
    pub keepalive: Duration,
    /// For how long at most the thread asks for the next frame before it rests; zero: not at all.
    pub stay_awake: Duration,
    /// How fast bytes and packets go.
    pub rates: Bounds,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 8192,
            half_open: 2048,
            datagrams: 1024,
            questions: 256,
            audit: 4096,
            connect: Duration::from_secs(30),
            handshake: Duration::from_secs(10),
            tcp_idle: Duration::from_secs(7440),
            time_wait: Duration::from_secs(60),
            udp_idle: Duration::from_secs(120),
            naming: Duration::from_secs(5),
            keepalive: Duration::from_secs(75),
            stay_awake: Duration::from_micros(100),
            rates: Bounds::default(),
        }
    }
}
