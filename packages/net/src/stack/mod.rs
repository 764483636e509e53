//! The user-space stack: a guest's network card ends here, and nothing leaves but through a socket that the
//! policy allowed.
//!
//! The way of a frame: [`link`] cuts it out of the stream, [`packet`] says what it is or why it is dropped,
//! [`fragments`] puts datagrams together, [`core`] routes it to [`tcp`], [`datagram`] or [`dns`], and what
//! goes back is made by smoltcp (TCP) or by [`reply`]. A question of [`dns`] goes to [`forward`], which asks
//! [`lookup`] for what servers say, or [`synthetic`] for addresses that stand for names. [`gate`] is where the policy is asked; [`run`] is the
//! thread around it all.

pub mod audit;
pub mod cable;
pub mod cache;
pub mod clock;
pub mod config;
pub mod core;
pub mod datagram;
pub mod diary;
pub mod dns;
pub mod eager;
pub mod endpoint;
pub mod exchange;
pub mod forward;
pub mod fragments;
pub mod gate;
#[cfg(test)]
mod hostile;
pub mod inbound;
#[cfg(test)]
mod inbound_tests;
pub mod limit;
#[cfg(test)]
mod limit_tests;
pub mod line;
pub mod link;
pub mod lookup;
#[cfg(test)]
mod measure;
pub mod metrics;
#[cfg(test)]
mod names;
#[cfg(test)]
mod namespace;
pub mod naming;
pub mod packet;
pub mod path;
pub mod port;
pub mod prompt;
pub mod proxy;
#[cfg(test)]
mod proxy_tests;
pub mod publish;
#[cfg(feature = "python")]
pub mod python;
pub mod rate;
pub mod reach;
pub mod recovery;
pub mod reply;
pub mod rested;
pub mod run;
pub mod servers;
pub mod shaper;
#[cfg(test)]
mod shaping;
#[cfg(test)]
mod soak;
pub mod stand;
#[cfg(test)]
mod sweep;
pub mod synthetic;
pub mod tcp;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_names;
#[cfg(test)]
mod tests_tcp;
pub mod tunnel;
pub mod upstream;
pub mod warden;

pub use config::{Config, Limits};
pub use gate::{Answer, Answered, Gate, Resolver, Transport};
pub use packet::Ends;
pub use publish::{Binding, PortUnavailable};
pub use run::{End, Stack};
