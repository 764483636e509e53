//! The broker: one shared directory, served to one guest's kernel, message by message.
//!
//! The kernel of the guest is taken for hostile. Whatever it sends, `answer` returns an answer of the protocol, or
//! says that what came is no message and the mount has to end. It may be called by several threads at once.

mod attributes;
mod directories;
mod entries;
mod files;
mod limits;
mod raced;
mod told;

use crate::handles::{Handle, Handles};
use crate::nodes::Nodes;
use crate::owners::{Owners, Ownership};
use crate::quota::Quota;
use crate::share::{self, Identity, Share, Status};
use crate::watch::Watch;
use crate::wire::reply::{self, Attributes};
use crate::wire::request::{self, Header, Malformed, Operation};
use crate::wire::{init, FLUSHES_ITSELF, MAJOR, MAX_DATA, MAX_PAGES, MINOR, OLDEST_MINOR};
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use rustix::process::{getrlimit, Resource};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What the guest may remember without asking again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Nothing: every change of the host is seen at once.
    None,
    /// Names and attributes for a second, contents as long as size and time of the file are the same.
    #[default]
    Auto,
    /// Everything for a day: for trees that nobody else changes.
    Always,
}

impl Cache {
    fn valid(self) -> Duration {
        Duration::from_secs(match self {
            Self::None => 0,
            Self::Auto => 1,
            Self::Always => 86_400,
        })
    }
}

/// How a directory is shared.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub read_only: bool,
    pub ownership: Ownership,
    pub cache: Cache,
    /// The directory may be named by a symbolic link.
    pub follow_root: bool,
    /// File systems mounted within are part of it.
    pub cross_mounts: bool,
    /// Files with several names cannot be changed: the others may be outside (F21).
    pub link_guard: bool,
    /// Resolve without openat2(2), as on kernels before 5.6.
    pub walk: bool,
    /// Tell the guest what the host changes; of a directory.
    pub watch: bool,
    /// Most nodes that are known at once; of more, those that were not used for long are dropped.
    pub nodes: usize,
    /// Most files that are open at once. Half of what the process may open if that is less.
    pub handles: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            ownership: Ownership::Virtual { uid: 0, gid: 0 },
            cache: Cache::Auto,
            follow_root: false,
            cross_mounts: false,
            link_guard: false,
            walk: false,
            watch: false,
            nodes: 1 << 18,
            handles: 1 << 14,
        }
    }
}

pub struct Broker {
    share: Arc<Share>,
    quota: Option<Arc<Quota>>,
    options: Options,
    nodes: Mutex<Nodes>,
    handles: Handles,
    owners: Owners,
    watch: Option<Watch>,
    raced: raced::Raced,
    started: AtomicBool,
    /// The guest keeps what is written, and writes it back when it likes.
    writes_back: AtomicBool,
}

/// A node as it is now, open for naming and looking.
struct Reached {
    fd: OwnedFd,
    status: Status,
}

impl AsFd for Reached {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether all that can be done with it is to append: it is neither read nor mapped.
fn appends_only(handle: &Handle) -> bool {
    let write_only = |flags: OFlags| flags & OFlags::RWMODE == OFlags::WRONLY;
    handle.append && rustix::fs::fcntl_getfl(&handle.file).is_ok_and(write_only)
}

impl Broker {
    /// Errors are those of `Share::open`.
    pub fn open(path: &Path, options: Options) -> Result<Self> {
        let share = Share::open(
            path,
            options.follow_root,
            options.cross_mounts,
            options.walk,
        )?;
        let root = share::status(share.root())?.identity;
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) / 2;
        let watched = options.watch && share.is_directory();
        let watch = watched.then(Watch::new).transpose()?;
        let handles = options.handles.min(files.try_into().unwrap_or(usize::MAX));
        Ok(Self {
            share: Arc::new(share),
            quota: None,
            options,
            nodes: Mutex::new(Nodes::new(root, options.nodes)),
            handles: Handles::new(handles),
            owners: Owners::new(options.ownership),
            watch,
            raced: raced::Raced::default(),
            started: AtomicBool::new(false),
            writes_back: AtomicBool::new(false),
        })
    }

    /// Keeps what is shared within a quota.
    pub fn limit(&mut self, quota: Quota) {
        self.quota = Some(Arc::new(quota));
    }

    /// How many nodes the guest knows, and how many files it has open.
    pub fn usage(&self) -> (usize, usize) {
        (self.nodes().count(), self.handles.count())
    }

    /// Answers one whole message into `out`, whose contents are replaced; empty if nothing is answered to it.
    pub fn answer(&self, message: &[u8], out: &mut Vec<u8>) -> std::result::Result<(), Malformed> {
        out.clear();
        let (header, body) = request::header(message)?;
        let operation = request::operation(&header, body);
        if Operation::silent(header.opcode) {
            self.hear(&header, operation);
            return Ok(());
        }
        let renames = operation.as_ref().is_ok_and(Operation::renames);
        reply::begin(out);
        let done = operation.and_then(|operation| self.serve(&header, operation, out));
        match header.unique {
            0 => out.clear(),
            unique => reply::finish(out, unique, done),
        }
        if header.with_directory && renames && done.is_ok() && self.options.cache != Cache::None {
            self.tell_directory(header.node, out);
        }
        Ok(())
    }

    /// Puts before an answer what a GETATTR of the directory would be answered now. Until it has the answer, the guest's kernel
    /// changes nothing there.
    fn tell_directory(&self, node: u64, out: &mut Vec<u8>) {
        let start = reply::begin_another(out);
        reply::u64(out, node);
        match self.get_attributes(node, None, out) {
            Ok(()) => {
                reply::finish_another(out, start, crate::wire::DIRECTORY);
                out.rotate_left(start);
            }
            Err(_) => out.truncate(start),
        }
    }

    fn hear(&self, header: &Header, operation: Result<Operation<'_>>) {
        match operation {
            Ok(Operation::Forget { lookups }) => self.nodes().forget(header.node, lookups),
            Ok(Operation::BatchForget { pairs }) => {
                let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
                let mut nodes = self.nodes();
                for pair in pairs.chunks_exact(16) {
                    nodes.forget(number(&pair[..8]), number(&pair[8..]));
                }
            }
            // Nothing here waits for long, so that there is nothing to interrupt.
            _ => {}
        }
    }

    fn serve(&self, header: &Header, operation: Operation<'_>, out: &mut Vec<u8>) -> Result<()> {
        if let Some(told) = self.tell(header, &operation, out) {
            return told;
        }
        let begun = self.begun(&operation);
        let mut changed = [header.node, 0];
        let entered = operation.enters();
        if let Operation::Copy { node, .. } = operation {
            changed[1] = node;
        }
        self.act(header, operation, out)?;
        if entered {
            // `struct fuse_entry_out` begins with the node.
            changed[1] = u64::from_le_bytes(out[16..24].try_into().expect("8 bytes"));
        }
        self.ended(begun, &changed);
        Ok(())
    }

    #[rustfmt::skip]
    fn act(&self, header: &Header, operation: Operation<'_>, out: &mut Vec<u8>) -> Result<()> {
        use Operation::*;
        if let Init { major, minor, flags } = operation {
            return self.init(major, minor, flags, out);
        }
        if !self.started.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        if self.options.read_only && operation.writes() {
            // F09: whatever the guest mounted it as.
            return Err(Errno::ROFS);
        }
        let node = header.node;
        match operation {
            // Handled before.
            Init { .. } | Interrupt | Forget { .. } | BatchForget { .. } => Err(Errno::INVAL),
            Destroy => {
                self.reset();
                Ok(())
            }
            Lookup { name } => self.lookup(node, name, out),
            GetAttributes { handle } => self.get_attributes(node, handle, out),
            SetAttributes(set) => self.set_attributes(node, &set, out),
            ReadLink => self.read_link(node, out),
            SymLink { name, target } => self.make_link(header, name, target, out),
            MakeNode { name, mode, device } => self.make_node(header, name, mode, device, out),
            MakeDirectory { name, mode } => self.make_directory(header, name, mode, out),
            Unlink { name } => self.unlink(node, name, false),
            RemoveDirectory { name } => self.unlink(node, name, true),
            Rename { name, to, new, flags } => self.rename(node, name, to, new, flags),
            Link { node: old, name } => self.link(old, node, name, out),
            Open { flags, kill } => self.open_file(node, flags, kill, out),
            Create { name, flags, mode, kill } => self.create(header, name, (flags, mode, kill), out),
            Read { handle, offset, size } => self.read(node, handle, offset, size, out),
            Write { handle, offset, data, flags } => self.write(node, handle, offset, data, flags, out),
            StatFs => self.stat_fs(out),
            Release { handle } => self.handles.close(handle, node, false),
            Sync { handle, data_only } => self.sync(node, handle, false, data_only),
            // What was written is with the host already: the guest need not ask again, whenever a file is closed.
            Flush => Err(Errno::NOSYS),
            SetAttribute { name, value, flags } => self.set_extended(node, name, value, flags),
            GetAttribute { name, size } => self.get_extended(node, name, size, out),
            ListAttributes { size } => self.list_extended(node, size, out),
            RemoveAttribute { name } => self.remove_extended(node, name),
            OpenDirectory => self.open_directory(node, out),
            ReadDirectory { handle, offset, size, plus } => {
                self.read_directory(node, handle, offset, size as usize, plus, out)
            }
            ReleaseDirectory { handle } => self.handles.close(handle, node, true),
            SyncDirectory { handle } => self.sync(node, handle, true, false),
            Access { mask } => self.access(header, mask),
            Allocate { handle, offset, length, mode } => self.allocate(node, handle, offset, length, mode),
            Seek { handle, offset, whence } => self.seek(node, handle, offset, whence, out),
            Copy { handle, offset, node: other, to, at, length } => {
                self.copy((node, handle, offset), (other, to, at), length, out)
            }
        }
    }

    fn init(&self, major: u32, minor: u32, flags: u32, out: &mut Vec<u8>) -> Result<()> {
        if major < MAJOR || major == MAJOR && minor < OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        let mut wanted = init::ASYNC_READ
            | init::ATOMIC_O_TRUNC
            | init::BIG_WRITES
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::MAX_PAGES
            | init::HANDLE_KILLPRIV_V2;
        if self.options.cache == Cache::Auto {
            wanted |= init::AUTO_INVAL_DATA;
        }
        if self.options.cache == Cache::Always {
            wanted |= init::CACHE_SYMLINKS;
        }
        // Sizes and times are the guest's word then, so nobody else may change them; and what does not fit (ENOSPC, EDQUOT)
        // is known only when it is written back, so that close(2) has to tell.
        if self.options.cache == Cache::Always
            && !self.options.read_only
            && self.watch.is_none()
            && minor >= FLUSHES_ITSELF
        {
            wanted |= init::WRITEBACK_CACHE;
        }
        let back = flags & wanted & init::WRITEBACK_CACHE != 0;
        self.writes_back.store(back, Ordering::Release);
        reply::u32(out, MAJOR);
        reply::u32(out, MINOR);
        // What it reads ahead by itself is no bound: whoever has mounted it may have told it to read more.
        reply::u32(out, MAX_DATA);
        reply::u32(out, flags & wanted);
        // Requests in the background, and where the guest slows down.
        reply::u16(out, 64);
        reply::u16(out, 48);
        reply::u32(out, MAX_DATA);
        // Times are in nanoseconds.
        reply::u32(out, 1);
        reply::u16(out, MAX_PAGES);
        out.resize(crate::wire::OUT_HEADER + 64, 0);
        // A newer major asks again in ours, and only then begins.
        if major == MAJOR {
            self.started.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Closes and forgets everything: the next request has to be INIT.
    pub fn reset(&self) {
        self.started.store(false, Ordering::Release);
        self.handles.clear();
        self.raced.clear();
        self.nodes().clear();
    }

    /// What is shared, open for naming (O_PATH).
    pub fn root(&self) -> BorrowedFd<'_> {
        self.share.root()
    }

    pub fn read_only(&self) -> bool {
        self.options.read_only
    }

    /// Does something while the directory that is open as `handle` is being read.
    #[cfg(test)]
    pub fn while_read(&self, handle: u64, act: impl FnOnce()) {
        let handle = self.handles.get(handle, crate::wire::ROOT, true);
        let handle = handle.expect("it is open");
        let _reading = handle.reading.lock();
        act();
    }

    /// How what is named is kept beneath the root.
    pub fn resolution(&self) -> share::Resolution {
        self.share.resolution()
    }

    /// Whether what is shared is a directory; else it is one regular file.
    pub fn is_directory(&self) -> bool {
        self.share.is_directory()
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn valid(&self) -> Duration {
        self.options.cache.valid()
    }

    /// The node as it is beneath the root at this moment. ESTALE if it is not what it was told to be (F07).
    fn reach(&self, node: u64) -> Result<Reached> {
        let trace = self.nodes().trace(node)?;
        for path in &trace.paths {
            match self.share.reach(path) {
                Ok(fd) => {
                    let status = share::status(&fd)?;
                    if status.identity == trace.identity {
                        return Ok(Reached { fd, status });
                    }
                }
                Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => return Err(error),
                Err(_) => {}
            }
        }
        // A file that has lost its name goes on for those who have it open, and so does a removed directory.
        if let Some(handle) = trace.open {
            let status = share::status(&handle.file)?;
            if status.identity == trace.identity && (!handle.directory || status.links == 0) {
                let fd = rustix::io::fcntl_dupfd_cloexec(&handle.file, 0)?;
                return Ok(Reached { fd, status });
            }
        }
        self.replaced(node, trace.identity)
    }

    /// What the host replaced while the guest's kernel, which looks a name up twice at most, was about to use it: if it
    /// has no name any more, as what was moved out of the share has. An account knows nothing of what is held.
    fn replaced(&self, node: u64, identity: Identity) -> Result<Reached> {
        if self.quota.is_some() || identity.is_directory() {
            return Err(Errno::STALE);
        }
        if let Some(fd) = self.raced.held(node)? {
            let status = share::status(&fd)?;
            if status.identity == identity && status.links == 0 {
                return Ok(Reached { fd, status });
            }
        }
        if let Some((parent, name)) = self.nodes().place_of(node) {
            self.raced.stale(parent, &name);
        }
        Err(Errno::STALE)
    }

    fn reach_directory(&self, node: u64) -> Result<Reached> {
        let reached = self.reach(node)?;
        match reached.status.identity.is_directory() {
            true => Ok(reached),
            false => Err(Errno::NOTDIR),
        }
    }

    /// F21: EPERM where the guard forbids changing a file because of its other names.
    fn guard(&self, status: &Status) -> Result<()> {
        match self.options.link_guard && status.kind() == share::REGULAR && status.links > 1 {
            true => Err(Errno::PERM),
            false => Ok(()),
        }
    }

    fn shown(&self, of: impl AsFd, status: &Status) -> Attributes {
        self.owners.shown(of, status)
    }

    /// Makes a node of what is reached and appends its entry.
    fn enter(&self, parent: u64, name: &[u8], reached: &Reached, out: &mut Vec<u8>) -> Result<u64> {
        let node = self.nodes().adopt(parent, name, reached.status.identity)?;
        if let Some(watch) = &self.watch {
            if reached.status.identity.is_directory() {
                watch.want(node);
            }
        }
        let shown = self.shown(reached, &reached.status);
        reply::entry(out, node, &shown, self.valid());
        Ok(node)
    }

    fn writes_back(&self) -> bool {
        self.writes_back.load(Ordering::Acquire)
    }

    fn add(&self, handle: Handle, out: &mut Vec<u8>) -> Result<()> {
        let (node, directory) = (handle.node, handle.directory);
        let flags = match self.options.cache {
            Cache::None if !directory => crate::wire::FOPEN_DIRECT_IO,
            // A part of a page cannot wait for the rest of it to be read.
            Cache::Always if !directory && self.writes_back() && write_only(&handle.file)? => {
                crate::wire::FOPEN_DIRECT_IO
            }
            Cache::Always if directory => {
                crate::wire::FOPEN_KEEP_CACHE | crate::wire::FOPEN_CACHE_DIR
            }
            Cache::Always => crate::wire::FOPEN_KEEP_CACHE,
            // Through its cache the guest may send one write in two, at the end of a page, and others append between them.
            Cache::Auto if appends_only(&handle) => crate::wire::FOPEN_DIRECT_IO,
            // With AUTO_INVAL_DATA the guest drops what has changed.
            Cache::Auto if !directory => crate::wire::FOPEN_KEEP_CACHE,
            _ => 0,
        };
        let (number, handle) = self.handles.add(handle)?;
        self.nodes().opened(node, &handle);
        reply::opened(out, number, flags);
        Ok(())
    }

    fn file(&self, number: u64, node: u64) -> Result<Arc<Handle>> {
        self.handles.get(number, node, false)
    }
}

fn write_only(file: impl AsFd) -> Result<bool> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(flags & OFlags::RWMODE == OFlags::WRONLY)
}
