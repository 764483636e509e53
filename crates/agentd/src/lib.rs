//! PID 1 of every microsandbox guest: the agent channel and everything that it drives.

pub mod channel;

mod attached;
mod boot;
mod cgroup;
mod configure;
mod confine;
mod context;
mod early;
mod exec;
mod files;
mod hold;
mod init;
mod log;
mod metrics;
mod network;
mod patch;
mod port;
mod server;
mod shutdown;
mod sys;

use std::io;

/// Runs the guest; to be called once, as PID 1 of a VM.
pub fn run() -> ! {
    let failed = |error: io::Error| -> ! {
        log::error(&format!("cannot start: {error}"));
        sys::process::reset()
    };
    match start() {
        Ok(server) => server.run(),
        Err(error) => failed(error),
    }
}

fn start() -> io::Result<server::Server> {
    let signals = sys::process::take_signals()?;
    boot::prepare()?;
    let cgroups = early::prepare()?;
    let card = network::Card::prepare()?;
    server::Server::new(boot::open_agent_port()?, signals, cgroups, card)
}
