//! What a TCP client sends, on its way to the target: whomever it states is decided on before the bytes that state it
//! are whole on the other side.

use super::clock;
use super::core::Core;
use crate::client::{Asked, Client, Said};
use crate::policy::{Action, Flow, Verdict};
use smoltcp::socket::tcp::Socket;
use std::io;
use std::time::Instant;

/// Destinations that one connection may state.
const MOST_ASKED: usize = 64;
/// What is kept of a buffer that is no longer needed.
const SPARE: usize = 4 << 10;

#[derive(Default)]
pub struct Naming {
    client: Client,
    /// Read from the client; the first `ready` bytes may go upstream, the others wait for a decision.
    held: Vec<u8>,
    ready: usize,
    /// Since when bytes wait whose end has not come. Only under a rule for names: else the first bytes of a statement
    /// may go ahead, because its last ones do not.
    since: Option<Instant>,
    /// Whom the client asked for, each once.
    asked: Vec<Asked>,
    /// The client speaks a protocol without names.
    nameless: bool,
    /// The server has to speak first.
    waiting: bool,
}

/// Writes to the target: how many bytes it took, or None where a rate allows no more for now.
pub type Write<'a> = &'a dyn Fn(&[u8]) -> io::Result<usize>;

/// How far the client's bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// As far as they may for now.
    Done,
    /// The target takes no more for now.
    Blocked,
    /// What the client states, or does not state, is not allowed: on record, and nothing more may pass.
    Denied,
}

impl Naming {
    /// Pass on what `socket` received. `verdict` is that of `flow` without a name. An error is the target's.
    pub fn pass(
        &mut self,
        core: &Core,
        (flow, verdict): (&Flow, &Verdict),
        socket: &mut Socket<'_>,
        write: Write<'_>,
        finished: bool,
    ) -> io::Result<Passed> {
        self.waiting = false;
        if finished {
            self.client.ended();
        }
        loop {
            while self.ready > 0 {
                match write(&self.held[..self.ready]) {
                    Ok(count) => {
                        self.held.drain(..count);
                        self.ready -= count;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Passed::Blocked)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            if self.held.is_empty() && self.held.capacity() > SPARE {
                self.held = Vec::new();
            }
            if !socket.can_recv() {
                break;
            }
            let free = usize::try_from(self.client.free()).unwrap_or(usize::MAX);
            if free > 0 {
                match pass_some(socket, write, free) {
                    Ok(Some(count)) => self.client.skip(count as u64),
                    Ok(None) => return Ok(Passed::Done),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok(Passed::Blocked)
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let said = socket.recv(|bytes| {
                let (read, said) = self.client.feed(bytes);
                self.held.extend_from_slice(&bytes[..read]);
                (read, said)
            });
            let admitted = match said.unwrap_or(Said::More) {
                Said::More if verdict.action != Action::Allow => {
                    self.since.get_or_insert_with(clock::now);
                    continue;
                }
                Said::More | Said::Pass => true,
                Said::Asked(asked) => self.admits(core, flow, asked),
                Said::Nothing => {
                    self.nameless = true;
                    admits_unnamed(core, flow, verdict)
                }
                Said::Wait => {
                    self.waiting = true;
                    break;
                }
                Said::Malformed(why) => {
                    let (action, rule) = (Action::Deny, format!("built-in: {why}"));
                    core.record(flow, &Verdict { action, rule });
                    false
                }
            };
            if !admitted {
                return Ok(Passed::Denied);
            }
            self.release();
        }
        let late = |since: Instant| clock::now().duration_since(since) >= core.config.limits.naming;
        // Bytes that will never be whole, or a client that goes without a word.
        let untold = !self.held.is_empty() || (self.asked.is_empty() && !self.nameless);
        if self.since.is_some_and(late) || (finished && untold && !self.waiting) {
            if !admits_unnamed(core, flow, verdict) {
                return Ok(Passed::Denied);
            }
            self.release();
            if self.ready > 0 {
                // The other policy that allows this now came between.
                return Ok(Passed::Blocked);
            }
        }
        Ok(Passed::Done)
    }

    fn release(&mut self) {
        self.ready = self.held.len();
        self.since = None;
    }

    fn admits(&mut self, core: &Core, flow: &Flow, asked: Asked) -> bool {
        let mut verdict = core.gate.borrow().decide_asked(flow, &asked);
        let known = self.asked.contains(&asked);
        if !known && self.asked.len() == MOST_ASKED {
            let (action, rule) = (
                Action::Deny,
                format!("limit: {MOST_ASKED} destinations stated on one connection"),
            );
            verdict = Verdict { action, rule };
        }
        if verdict.action != Action::Allow || (!known && asked != Asked::Nobody) {
            core.record(&asked.flow(flow), &verdict);
        }
        if !known {
            self.asked.push(asked);
        }
        verdict.action == Action::Allow
    }

    /// Why the policy of now does not allow what the client stated; None if it does.
    pub fn denied(&self, core: &Core, flow: &Flow, verdict: &Verdict) -> Option<Verdict> {
        let gate = core.gate.borrow();
        let stated = self
            .asked
            .iter()
            .map(|asked| gate.decide_asked(flow, asked));
        let unnamed = match (self.nameless, self.asked.is_empty()) {
            (true, _) => Some(verdict.clone().unnamed()),
            (false, true) => Some(verdict.clone()),
            (false, false) => None,
        };
        let mut all = stated.chain(unnamed);
        all.find(|verdict| verdict.action == Action::Deny)
    }

    /// What the target sent.
    pub fn hear(&mut self, bytes: &[u8]) {
        if self.client.listens() {
            self.client.hear(bytes);
        }
    }

    /// Whether the target's word may let more of the client's bytes pass.
    pub fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// Whether bytes of the client are kept here.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Since when bytes wait for a statement to become whole.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }
}

/// Pass on everything that `socket` received, unread.
pub fn pass_all(socket: &mut Socket<'_>, write: Write<'_>) -> io::Result<Passed> {
    while socket.can_recv() {
        match pass_some(socket, write, usize::MAX) {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Passed::Blocked),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Passed::Done)
}

/// Pass on what lies together in the buffer of `socket`, at most `most` bytes.
fn pass_some(socket: &mut Socket<'_>, write: Write<'_>, most: usize) -> io::Result<Option<usize>> {
    let written = socket.recv(|bytes| {
        let written = write(&bytes[..bytes.len().min(most)]);
        let count = *written.as_ref().unwrap_or(&0);
        (count, written)
    });
    written.map_or(Ok(None), |written| written.map(Some))
}

fn admits_unnamed(core: &Core, flow: &Flow, verdict: &Verdict) -> bool {
    let verdict = verdict.clone().unnamed();
    if verdict.action == Action::Deny {
        core.record(flow, &verdict);
    }
    verdict.action != Action::Deny
}
