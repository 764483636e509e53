//! A program's standard input: what the host sent and the pipe, or the terminal, has not taken yet.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use super::terminal;
use crate::channel::{Guest, Map};
use crate::sys::fd::{self, Moved};

/// Credit goes back in pieces of a quarter of the window: few frames, and the host never waits
/// while the pipe has room.
const RETURN: u32 = 32_768;

/// What has been typed at a terminal.
#[derive(Default)]
struct Typed {
    /// Whether the last line is not complete.
    line_begun: bool,
    /// What ends the input, once it has ended.
    end: Option<VecDeque<u8>>,
}

pub struct Stdin {
    stream: u32,
    pipe: Option<OwnedFd>,
    /// Of a terminal, which does not end with its input.
    terminal: Option<Typed>,
    /// At most the credit of the channel.
    waiting: VecDeque<u8>,
    eof: bool,
    unreturned: u32,
    told: bool,
}

impl Stdin {
    pub fn new(stream: u32, pipe: Option<OwnedFd>, terminal: bool) -> Stdin {
        Stdin {
            stream,
            pipe,
            terminal: terminal.then(Typed::default),
            waiting: VecDeque::new(),
            eof: false,
            unreturned: 0,
            told: false,
        }
    }

    pub fn pipe(&self) -> Option<&OwnedFd> {
        self.pipe.as_ref()
    }

    pub fn data(&mut self, guest: &mut Guest, bytes: Vec<u8>) {
        if self.pipe.is_none() {
            self.tell(guest);
            self.taken(guest, bytes.len());
            return;
        }
        self.waiting.extend(bytes);
        self.flush(guest);
    }

    pub fn eof(&mut self, guest: &mut Guest) {
        self.eof = true;
        self.flush(guest);
    }

    /// Nobody reads any more.
    pub fn broken(&mut self, guest: &mut Guest) {
        if self.pipe.take().is_some() {
            self.tell(guest);
            let count = std::mem::take(&mut self.waiting).len();
            self.taken(guest, count);
        }
    }

    /// Writes what fits.
    pub fn flush(&mut self, guest: &mut Guest) {
        while let (Some(pipe), (head, _)) = (&self.pipe, self.waiting.as_slices()) {
            if head.is_empty() {
                break;
            }
            match fd::write(pipe, head) {
                Moved::Bytes(count) => {
                    if let Some(typed) = &mut self.terminal {
                        typed.line_begun = head[count - 1] != b'\n';
                    }
                    self.waiting.drain(..count);
                    self.taken(guest, count);
                }
                Moved::Later => return,
                Moved::Gone => return self.broken(guest),
            }
        }
        if self.eof {
            match self.terminal {
                Some(_) => self.type_end(guest),
                None => self.pipe = None,
            }
        }
    }

    /// Ends the input of a terminal, which stays open: its program may go on without any.
    fn type_end(&mut self, guest: &mut Guest) {
        let (Some(pipe), Some(typed)) = (&self.pipe, &mut self.terminal) else {
            return;
        };
        let begun = typed.line_begun;
        let end = typed
            .end
            .get_or_insert_with(|| terminal::end_of_file(pipe, begun).into());
        while !end.is_empty() {
            match fd::write(pipe, end.make_contiguous()) {
                Moved::Bytes(count) => {
                    end.drain(..count);
                }
                Moved::Later => return,
                Moved::Gone => return self.broken(guest),
            }
        }
    }

    pub fn close(&mut self) {
        self.pipe = None;
        self.waiting = VecDeque::new();
    }

    fn taken(&mut self, guest: &mut Guest, count: usize) {
        // At most the credit that was out, so it fits.
        self.unreturned += count as u32;
        if self.unreturned >= RETURN {
            // Refused only when the stream has just ended.
            let _ = guest.consumed(self.stream, self.unreturned);
            self.unreturned = 0;
        }
    }

    fn tell(&mut self, guest: &mut Guest) {
        if !self.told && !self.eof {
            // Refused before OPENED: then it is the error or the exit that the host hears of.
            let event = Map::new().with("e", "stdin_closed");
            self.told = guest.event(self.stream, &event).is_ok();
        }
    }
}
