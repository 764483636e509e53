//! A process from its clone to its END: report, output, signals, deadline, drain.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::explain;
use super::request::Request;
use super::spawn::{Report, Spawned, REPORT};
use super::stdin::Stdin;
use super::terminal::{self, Size};
use crate::cgroup::Cgroup;
use crate::channel::{Invalid, Map, DATA_MAX};
use crate::context::{Context, Handler};
use crate::sys::epoll::Ready;
use crate::sys::fd::{self, Moved};
use crate::sys::process::{self, Status};

/// Descriptors of an exec, by their role in the event loop. 1 and 2 are the channels.
const STDIN: u8 = 0;
const REPORT_PIPE: u8 = 3;

/// Output that has been silent this long after the exit has ended, whoever still holds it.
const QUIET: Duration = Duration::from_millis(100);
/// A descendant that is never silent is listened to this long.
const DRAIN: Duration = Duration::from_secs(5);

/// More than the kernel keeps of what a terminal shows: it does not say how much of that there is.
const TERMINAL_BUFFER: usize = 64 << 10;

/// How often killed processes are looked at, and how long they are waited for.
const DYING: Duration = Duration::from_millis(5);
const KILL: Duration = Duration::from_secs(5);

/// The capacity of a busy output's pipe.
const LARGE_PIPE: i32 = 256 << 10;

enum Phase {
    /// Cloned; the report pipe will tell whether the program runs.
    Starting {
        report: OwnedFd,
        signals: Vec<i32>,
    },
    Running,
    Exited {
        status: Status,
        at: Instant,
        /// When the last byte came after the exit.
        heard: Instant,
    },
    Done,
}

struct Output {
    pipe: Option<OwnedFd>,
    /// Not known to be empty.
    readable: bool,
    /// Of the bytes that were in the pipe at the exit, those not read yet: the program's own.
    owed: usize,
    /// Whether the pipe was enlarged.
    grown: bool,
}

pub struct Exec {
    stream: u32,
    pid: libc::pid_t,
    phase: Phase,
    stdin: Stdin,
    outputs: [Output; 2],
    /// Whether input and output are a terminal, which is the first output's descriptor.
    terminal: bool,
    /// The program's side of it, until its exit.
    slave: Option<OwnedFd>,
    cgroup: Option<Cgroup>,
    deadline: Option<Instant>,
    timed_out: bool,
    /// The program itself was killed for memory, and with it all that it had started.
    out_of_memory: bool,
    /// Nobody waits for the rest of the output.
    cancelled: bool,
    /// Whether the stream waits in the queue of turns.
    in_turn: bool,
    /// Which output is read first next time.
    second_first: bool,
    program: String,
    cwd: String,
}

impl Exec {
    pub fn new(stream: u32, spawned: Spawned, cgroup: Option<Cgroup>, request: &Request) -> Exec {
        let lossy = |text: &std::ffi::CString| {
            // Only for messages, whose frames are capped.
            String::from_utf8_lossy(text.as_bytes())
                .chars()
                .take(256)
                .collect()
        };
        let after = |milliseconds| Instant::now().checked_add(Duration::from_millis(milliseconds));
        Exec {
            stream,
            pid: spawned.pid,
            phase: Phase::Starting {
                report: spawned.report,
                signals: Vec::new(),
            },
            stdin: Stdin::new(stream, spawned.stdin, spawned.terminal.is_some()),
            outputs: spawned.outputs.map(|pipe| Output {
                pipe,
                readable: false,
                owed: 0,
                grown: false,
            }),
            terminal: spawned.terminal.is_some(),
            slave: spawned.terminal,
            cgroup,
            // What no clock can count to is no limit.
            deadline: request.timeout_ms.and_then(after),
            timed_out: false,
            out_of_memory: false,
            cancelled: false,
            in_turn: false,
            second_first: false,
            program: request.argv.first().map(lossy).unwrap_or_default(),
            cwd: lossy(&request.cwd),
        }
    }

    /// Watches the pipes.
    pub fn watch(&self, context: &mut Context) -> io::Result<()> {
        if let Phase::Starting { report, .. } = &self.phase {
            context.watch(report, self.stream, REPORT_PIPE, true)?;
        }
        for (channel, output) in (1u8..).zip(&self.outputs) {
            if let Some(pipe) = &output.pipe {
                context.watch(pipe, self.stream, channel, true)?;
            }
        }
        if let Some(pipe) = self.stdin.pipe() {
            context.watch(pipe, self.stream, STDIN, false)?;
        }
        context.timers.set(self.stream, self.deadline);
        Ok(())
    }

    /// Lets go of an exec that could not be watched.
    pub fn abandon(mut self, context: &mut Context) {
        context.timers.set(self.stream, None);
        self.retire(context);
    }

    fn retire(&mut self, context: &mut Context) {
        if let (Some(cgroups), Some(cgroup)) = (&mut context.cgroups, self.cgroup.take()) {
            cgroups.retire(cgroup);
        }
    }

    /// SIGKILL for all that the exec started, in its process group or not.
    fn kill(&self) {
        if !matches!(self.phase, Phase::Exited { .. } | Phase::Done) {
            process::signal(self.pid, libc::SIGKILL);
            process::signal_group(self.pid, libc::SIGKILL);
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill();
        }
    }

    /// The report pipe has something: the program runs, or it never will.
    fn hear_report(&mut self, context: &mut Context) {
        let Phase::Starting { report, signals } = &mut self.phase else {
            return;
        };
        let mut bytes = [0; REPORT];
        match fd::read(&*report, &mut bytes) {
            Moved::Later => {}
            Moved::Bytes(REPORT) => {
                let refusal = explain(Report::from_bytes(bytes), &self.program, &self.cwd);
                self.finish(context, refusal.end());
            }
            Moved::Bytes(_) | Moved::Gone => {
                // The kernel closed the pipe after it had given the child memory of its own.
                context.launches.remove(&self.pid);
                let signals = std::mem::take(signals);
                self.phase = Phase::Running;
                let pid = context.pid_inside(self.pid);
                let opened = Map::new().with("pid", i64::from(pid));
                // Refused only if the host has ended the connection.
                let _ = context.guest.opened(self.stream, &opened);
                for signal in signals {
                    process::signal_group(self.pid, signal);
                }
                self.take_turn(context);
            }
        }
    }

    fn take_turn(&mut self, context: &mut Context) {
        if !self.in_turn {
            self.in_turn = true;
            context.turns.push_back(self.stream);
        }
    }

    /// Reads one chunk of one output; whether there may be more to send now.
    fn read_output(&mut self, context: &mut Context) -> bool {
        let mut more = false;
        let mut read = false;
        let order = if self.second_first { [1, 0] } else { [0, 1] };
        for index in order {
            let channel = index as u8 + 1;
            let output = &mut self.outputs[index];
            let Some(pipe) = output.pipe.as_ref().filter(|_| output.readable) else {
                continue;
            };
            let room = context.guest.room(self.stream, channel);
            if room == 0 {
                continue;
            }
            if read {
                more = true;
                continue;
            }
            match context.read(pipe, room) {
                Ok(bytes) => {
                    // A program that fills the pipe gains a fifth of throughput by a larger one;
                    // for the others the call would cost more than it brings.
                    if bytes.len() == DATA_MAX && !output.grown {
                        output.grown = true;
                        fd::grow_pipe(pipe, LARGE_PIPE);
                    }
                    output.owed = output.owed.saturating_sub(bytes.len());
                    // Within the room asked for above.
                    let _ = context.guest.data(self.stream, channel, bytes);
                    (read, more) = (true, true);
                    self.second_first = index == 0;
                    if let Phase::Exited { heard, .. } = &mut self.phase {
                        *heard = Instant::now();
                    }
                }
                Err(Moved::Later) => (output.readable, output.owed) = (false, 0),
                Err(_) => self.close_output(context, channel),
            }
        }
        more
    }

    fn close_output(&mut self, context: &mut Context, channel: u8) {
        let output = &mut self.outputs[usize::from(channel - 1)];
        if output.pipe.take().is_some() {
            (output.readable, output.owed) = (false, 0);
            // Refused only if the stream has just ended.
            let _ = context.guest.eof(self.stream, channel);
        }
    }

    /// After the exit: ends the stream if the output has ended, or sets the time to look again.
    fn settle(&mut self, context: &mut Context) {
        let Phase::Exited { status, at, heard } = self.phase else {
            return;
        };
        let mut open = self.outputs.iter().filter(|output| output.pipe.is_some());
        let (mut quiet, mut owed, mut any) = (true, 0, false);
        for output in &mut open {
            any = true;
            quiet &= !output.readable;
            owed += output.owed;
        }
        let now = Instant::now();
        // With output in the pipes and no credit, the host's next frame goes on.
        let limit = (owed == 0).then_some(at + DRAIN);
        let silence = quiet.then_some(heard + QUIET);
        let deadline = match (silence, limit) {
            (Some(silence), Some(limit)) => Some(silence.min(limit)),
            (silence, limit) => silence.or(limit),
        };
        if any && !self.cancelled && deadline.is_none_or(|deadline| deadline > now) {
            context.timers.set(self.stream, deadline);
            return;
        }
        // What was killed has to be gone when that is told.
        let killed = self.timed_out || self.cancelled || self.out_of_memory;
        if killed && now < at + KILL && self.cgroup.as_ref().is_some_and(Cgroup::populated) {
            context.timers.set(self.stream, Some(now + DYING));
            return;
        }
        let (key, number) = match status {
            Status::Code(code) => ("code", code),
            Status::Signal(signal) => ("signal", signal),
        };
        let oom_killed = self.cgroup.as_ref().is_some_and(Cgroup::oom_killed);
        let end = Map::new()
            .with(key, i64::from(number))
            .with("timed_out", self.timed_out)
            .with("oom_killed", oom_killed);
        self.finish(context, end);
    }

    fn finish(&mut self, context: &mut Context, end: Map) {
        // Refused only if the host has ended the connection.
        let _ = context.guest.end(self.stream, &end);
        let exited = matches!(self.phase, Phase::Exited { .. }) && !self.cancelled;
        self.phase = Phase::Done;
        self.stdin.close();
        // What a terminal controls was hung up on with the exit: nobody can write to it.
        let wanted = exited && !self.terminal;
        for output in &mut self.outputs {
            if let Some(pipe) = output.pipe.take().filter(|_| wanted) {
                context.sink(pipe);
            }
        }
        context.timers.set(self.stream, None);
        self.retire(context);
    }

    /// Lets go of the terminal: what it controls gets SIGHUP.
    fn hang_up(&mut self, context: &mut Context) {
        self.stdin.close();
        self.slave = None;
        self.close_output(context, 1);
    }

    /// Carries out a message; one that is not known is ignored.
    fn obey(&mut self, context: &mut Context, message: &Map) -> Result<(), Invalid> {
        match message.field("m")? {
            "signal" => {
                let signal = match i32::try_from(message.field::<u64>("signal")?) {
                    Ok(signal @ 1..=64) => signal,
                    _ => return Err(Invalid::new("no such signal")),
                };
                match &mut self.phase {
                    // The process group is not there yet. Repetitions would add nothing.
                    Phase::Starting { signals, .. } if signals.contains(&signal) => {}
                    Phase::Starting { signals, .. } => signals.push(signal),
                    Phase::Running => process::signal_group(self.pid, signal),
                    Phase::Exited { .. } | Phase::Done => {}
                }
            }
            "close" => match message.field::<u64>("channel")? {
                1 if self.terminal => self.hang_up(context),
                1 => self.close_output(context, 1),
                2 => self.close_output(context, 2),
                _ => return Err(Invalid::new("no such channel to close")),
            },
            "resize" if !self.terminal => return Err(Invalid::new("`resize` without a terminal")),
            "resize" => {
                let size = Size::read(message)?;
                if let Some(master) = &self.outputs[0].pipe {
                    // Refused only while it hangs up.
                    let _ = terminal::resize(master, size);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Handler for Exec {
    fn data(&mut self, context: &mut Context, bytes: Vec<u8>) {
        self.stdin.data(&mut context.guest, bytes);
    }

    fn eof(&mut self, context: &mut Context) {
        self.stdin.eof(&mut context.guest);
    }

    fn message(&mut self, context: &mut Context, message: &Map) {
        if let Err(what) = self.obey(context, message) {
            self.kill();
            let end = super::Refusal::new("invalid_request", what.0).end();
            self.finish(context, end);
        }
        self.settle(context);
    }

    fn cancel(&mut self, context: &mut Context) {
        self.cancelled = true;
        self.kill();
        if self.terminal {
            self.hang_up(context);
        }
        self.settle(context);
    }

    fn credit(&mut self, context: &mut Context, _channel: u8) {
        self.take_turn(context);
    }

    fn ready(&mut self, context: &mut Context, role: u8, ready: Ready) {
        match role {
            STDIN if ready.broken() => self.stdin.broken(&mut context.guest),
            STDIN => self.stdin.flush(&mut context.guest),
            REPORT_PIPE => self.hear_report(context),
            channel => {
                if let Some(output) = self.outputs.get_mut(usize::from(channel) - 1) {
                    output.readable |= ready.readable();
                }
                self.take_turn(context);
            }
        }
    }

    fn pump(&mut self, context: &mut Context) -> bool {
        self.in_turn = false;
        // Before OPENED nothing may be sent.
        if matches!(self.phase, Phase::Starting { .. } | Phase::Done) {
            return false;
        }
        let more = self.read_output(context);
        self.settle(context);
        self.in_turn = more && !self.done();
        self.in_turn
    }

    fn timer(&mut self, context: &mut Context, now: Instant) {
        if matches!(self.phase, Phase::Starting { .. } | Phase::Running) {
            match self.deadline {
                Some(deadline) if deadline > now => context.timers.set(self.stream, Some(deadline)),
                Some(_) => {
                    self.timed_out = true;
                    self.kill();
                }
                None => {}
            }
        }
        self.settle(context);
    }

    fn child_ended(&mut self, context: &mut Context, status: Status) {
        // It may have ended between its report and our hearing of it; the pipe has both.
        self.hear_report(context);
        if !matches!(self.phase, Phase::Running) {
            return;
        }
        if let (Status::Signal(libc::SIGKILL), Some(cgroup)) = (status, &self.cgroup) {
            // What it has left behind would go on filling the memory, with nobody to wait for it.
            self.out_of_memory = cgroup.oom_killed();
            if self.out_of_memory {
                cgroup.kill();
            }
        }
        let exited = match status {
            Status::Code(code) => Map::new().with("e", "exited").with("code", i64::from(code)),
            Status::Signal(signal) => Map::new()
                .with("e", "exited")
                .with("signal", i64::from(signal)),
        };
        // Refused only if the host has ended the connection.
        let _ = context.guest.event(self.stream, &exited);
        self.stdin.close();
        self.slave = None;
        for output in &mut self.outputs {
            if let Some(pipe) = &output.pipe {
                output.readable = true;
                output.owed = match self.terminal {
                    true => TERMINAL_BUFFER,
                    false => fd::waiting(pipe),
                };
            }
        }
        let now = Instant::now();
        self.phase = Phase::Exited {
            status,
            at: now,
            heard: now,
        };
        self.take_turn(context);
        self.settle(context);
    }

    fn disown(&mut self, context: &mut Context) {
        self.phase = Phase::Done;
        self.stdin.close();
        // A terminal too: closing it would hang up on a program that is to go on.
        for output in &mut self.outputs {
            if let Some(pipe) = output.pipe.take() {
                context.sink(pipe);
            }
        }
        self.retire(context);
    }

    fn shutting_down(&mut self) {
        // Interactive shells ignore SIGTERM, and end when their terminal goes.
        if self.terminal && matches!(self.phase, Phase::Running) {
            process::signal_group(self.pid, libc::SIGHUP);
        }
    }

    fn done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}
