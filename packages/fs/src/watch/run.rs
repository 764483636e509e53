//! The thread that watches: events in, batches out.

use super::pending::{Pending, Seen, Told};
use super::{Message, Watch};
use crate::broker::Broker;
use crate::share::DIRECTORY;
use crate::wire::ROOT;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{ReadFlags, Reader};
use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// After the first change: what belongs together is told together.
const GATHER: Duration = Duration::from_millis(20);
/// From one batch to the next, so that no name is told more than ten times a second.
const PAUSE: Duration = Duration::from_millis(100);
/// Names in a batch.
const BATCH: usize = 256;
/// How often what cannot be watched is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Entries that are looked at in one go.
const LOOKS: usize = 2000;
/// Directories that begin to be watched, and times that events are read, before anything else is done.
const AT_ONCE: usize = 256;

/// Watches until the session ends. `send` writes one message, and says whether there is somebody to read it.
pub fn run(broker: &Broker, watch: &Watch, send: impl Fn(&[u8]) -> bool) {
    let now = Instant::now();
    let mut watcher = Watcher {
        broker,
        watch,
        pending: Pending::default(),
        due: None,
        earliest: now,
        look: now + LOOK,
        drained: nanoseconds(),
        looked: HashMap::new(),
        again: VecDeque::new(),
        announced: false,
    };
    watch.want(ROOT);
    while let Some(wait) = watcher.turn(&send) {
        watcher.wait(wait);
    }
}

struct Watcher<'a> {
    broker: &'a Broker,
    watch: &'a Watch,
    pending: Pending,
    /// When what is pending is told.
    due: Option<Instant>,
    earliest: Instant,
    look: Instant,
    /// When all events had been read, in nanoseconds since 1970.
    drained: i64,
    /// Since when directories that are not watched have been looked at.
    looked: HashMap<u64, i64>,
    /// Directories of which events were lost, and since when.
    again: VecDeque<(u64, i64)>,
    announced: bool,
}

impl Watcher<'_> {
    /// Does what is to be done, and returns how long there is nothing to do (`Some(None)`: until something
    /// happens); `None` at the end.
    #[allow(clippy::option_option)]
    fn turn(&mut self, send: &impl Fn(&[u8]) -> bool) -> Option<Option<Duration>> {
        let _ = rustix::io::read(&self.watch.wake, &mut [0; 8]);
        let busy = self.begin()? | self.read();
        let now = Instant::now();
        if now >= self.look {
            self.look = now + LOOK;
            self.look_at_unwatched();
        }
        if self.pending.is_empty() {
            self.look_again();
        }
        if self.pending.is_empty() {
            self.due = None;
        } else if self.due.is_none() {
            self.due = Some(self.earliest.max(now + GATHER));
        }
        // However long that takes: while a guest stands still nothing of a batch is done, and what it would be
        // told beside it would take the place of names that it has not heard of yet.
        let acknowledged = self.watch.state().acknowledged;
        if acknowledged && self.due.is_some_and(|due| now >= due) {
            let message = self.batch();
            self.due = None;
            if !message.is_empty() {
                self.earliest = now + PAUSE;
                self.watch.state().acknowledged = false;
                if !send(&message.finish()) {
                    return None;
                }
            }
            return Some(Some(Duration::ZERO));
        }
        if busy || !self.again.is_empty() && self.pending.is_empty() {
            return Some(Some(Duration::ZERO));
        }
        let mut wake = self.due.filter(|_| acknowledged);
        if !self.watch.state().unwatched.is_empty() {
            wake = Some(wake.map_or(self.look, |wake| wake.min(self.look)));
        }
        Some(wake.map(|wake| wake.saturating_duration_since(now)))
    }

    fn wait(&self, limit: Option<Duration>) {
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut fds = vec![PollFd::new(&self.watch.wake, PollFlags::IN)];
        if let Some(inotify) = &self.watch.inotify {
            fds.push(PollFd::new(inotify, PollFlags::IN));
        }
        let _ = poll(&mut fds, limit.as_ref());
    }

    /// Watches directories that the guest was told of; whether there are more. `None` at the end.
    fn begin(&mut self) -> Option<bool> {
        let (wanted, more, full): (Vec<u64>, bool, bool) = {
            let mut state = self.watch.state();
            if state.ended {
                return None;
            }
            let count = state.wanted.len().min(AT_ONCE);
            let wanted = state.wanted.drain(..count).collect();
            (wanted, !state.wanted.is_empty(), state.full)
        };
        for node in wanted {
            if let Ok((_, directory)) = self.broker.place_of(node) {
                self.watch.add(node, directory);
            }
        }
        if full && !self.announced {
            self.announced = true;
            let root = std::fs::read_link(crate::share::path_of(self.broker.root()));
            let root = root.unwrap_or_default();
            eprintln!(
                "{}: more directories than can be watched, the rest is looked at every {} s; raise \
                 fs.inotify.max_user_watches and fs.inotify.max_user_instances, or share fewer",
                root.display(),
                LOOK.as_secs()
            );
        }
        Some(more)
    }

    /// Reads events; whether there may be more.
    fn read(&mut self) -> bool {
        let Some(inotify) = &self.watch.inotify else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 32 << 10];
        let mut reader = Reader::new(inotify, &mut buffer);
        for _ in 0..AT_ONCE * 16 {
            let Ok(event) = reader.next() else {
                self.drained = nanoseconds();
                return false;
            };
            let what = event.events();
            if what.contains(ReadFlags::QUEUE_OVERFLOW) {
                let mut state = self.watch.state();
                state.taken.clear();
                let lost = state.watches.keys().map(|node| (*node, self.drained));
                self.again = lost.collect();
                continue;
            }
            let mut state = self.watch.state();
            if what.contains(ReadFlags::IGNORED) {
                if let Some(node) = state.nodes.remove(&event.wd()) {
                    state.watches.remove(&node);
                }
                continue;
            }
            let (Some(&node), Some(name)) = (state.nodes.get(&event.wd()), event.file_name())
            else {
                continue;
            };
            let name = name.to_bytes();
            let gone = what.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
            if gone && state.taken.remove(&(node, Box::from(name))) {
                continue;
            }
            drop(state);
            let seen = Seen {
                appeared: what.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO),
                modified: what.contains(ReadFlags::MODIFY),
                gone,
                directory: what.contains(ReadFlags::ISDIR),
                fresh: what.contains(ReadFlags::CREATE),
            };
            self.pending.note(node, name, seen);
        }
        // What the reader still holds of its buffer must not be lost.
        while !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else { break };
            if let Some(&node) = self.watch.state().nodes.get(&event.wd()) {
                self.pending.note_whole(node);
            }
        }
        true
    }

    /// Looks at some of the directories that are not watched, those first that were not for longest.
    fn look_at_unwatched(&mut self) {
        let mut left = LOOKS;
        let count = self.watch.state().unwatched.len();
        for _ in 0..count {
            let Some(node) = self.watch.state().unwatched.pop_front() else {
                break;
            };
            let now = nanoseconds();
            let since = self.looked.insert(node, now).unwrap_or(now);
            match self.scan(node, since, &mut left) {
                true => self.watch.state().unwatched.push_back(node),
                false => drop(self.looked.remove(&node)),
            }
            if left == 0 {
                break;
            }
        }
    }

    /// Looks at directories of which events were lost.
    fn look_again(&mut self) {
        let mut left = LOOKS;
        while left > 0 && self.pending.is_empty() {
            let Some((node, since)) = self.again.pop_front() else {
                return;
            };
            self.scan(node, since, &mut left);
        }
    }

    /// Notes what has changed in a directory since then; whether it still is one that the guest knows.
    fn scan(&mut self, node: u64, since: i64, left: &mut usize) -> bool {
        *left = left.saturating_sub(1);
        let Ok((_, directory)) = self.broker.place_of(node) else {
            return false;
        };
        let written = Seen {
            modified: true,
            ..Seen::default()
        };
        let scanned = self.broker.changed_since(&directory, since, left, |name| {
            self.pending.note(node, name, written);
        });
        if scanned.is_none_or(|itself| itself) {
            self.pending.note_whole(node);
        }
        true
    }

    /// What is told next.
    fn batch(&mut self) -> Message {
        let mut message = Message::default();
        let mut telling = HashMap::new();
        let mut places = HashMap::new();
        for _ in 0..BATCH {
            let Some((place, seen)) = self.pending.take() else {
                break;
            };
            let (node, name) = &place;
            // Where it is now: what the host has moved out of the share is nobody's business.
            let directory = places
                .entry(*node)
                .or_insert_with(|| self.broker.place_of(*node).ok());
            let Some((path, directory)) = directory else {
                self.watch.remove(*node);
                continue;
            };
            let now = self.broker.seen_by_guest(&*directory, name);
            let Some(told) = seen.told(now) else {
                continue;
            };
            let kind = match (now, seen.directory) {
                (Some((kind, _)), _) => kind,
                (None, true) => DIRECTORY,
                (None, false) => crate::share::REGULAR,
            };
            let separator = if path.is_empty() { &b""[..] } else { b"/" };
            let whole = [&path[..], separator, &name[..]].concat();
            if !message.add(told, kind, &whole) {
                self.pending.note(*node, name, seen);
                break;
            }
            telling.insert(place, (told, kind));
        }
        while let Some(node) = self.pending.take_whole() {
            match self.broker.place_of(node) {
                Ok((path, _)) if !message.add(Told::Attributes, DIRECTORY, &path) => {
                    self.pending.note_whole(node);
                    break;
                }
                Ok(_) => {}
                Err(_) => self.watch.remove(node),
            }
        }
        self.watch.state().batch = telling;
        message
    }
}

/// Since 1970.
fn nanoseconds() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_nanos() as i64)
}
