//! PID 1 of every microsandbox guest: the agent channel and everything that it drives.

pub mod channel;

mod boot;
mod cgroup;
mod configure;
mod context;
mod early;
mod exec;
mod files;
mod log;
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
    server::Server::new(boot::open_port()?, signals, cgroups)
}
