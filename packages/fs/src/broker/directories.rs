//! Directories, read: as many entries as fit, from where the guest left off. Nothing is kept between.

use super::{Broker, Reached};
use crate::share::{self, reopen};
use crate::wire::reply::{self, Attributes};
use crate::wire::ROOT;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

/// Bytes of entries that are fetched at once.
const FETCHED: usize = 32 << 10;
/// An entry with attributes is so many times the host's.
const PLUS: usize = 4;

impl Broker {
    pub(super) fn open_directory(&self, node: u64, out: &mut Vec<u8>) -> Result<()> {
        self.handles.room()?;
        let directory = self.reach_directory(node)?;
        let file = reopen(&directory, &directory.status, OFlags::RDONLY)?;
        let handle = self.handle(node, file, true, false)?;
        self.add(handle, out)
    }

    pub(super) fn read_directory(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        size: usize,
        plus: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let handle = self.handles.get(handle, node, true)?;
        // Where it is now: one that the host moved out of the share is read no further.
        let directory = self.reach_directory(node)?;
        let _reading = handle
            .reading
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
        let end = out.len() + size;
        let wanted = if plus { size / PLUS } else { size };
        let mut buffer = [MaybeUninit::uninit(); FETCHED];
        // At least one entry of the longest name, or the host refuses.
        let buffer = &mut buffer[..wanted.clamp(1024, FETCHED)];
        let mut entries = RawDir::new(&handle.file, buffer);
        let mut any = false;
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // Removed while it is open: there is nothing in it.
                Err(Errno::NOENT) => break,
                Err(error) => return Err(error),
            };
            let name = entry.file_name();
            let extra = if plus { reply::ENTRY } else { 0 };
            if out.len() + extra + reply::dirent_size(name.count_bytes()) > end {
                return if any { Ok(()) } else { Err(Errno::INVAL) };
            }
            any = true;
            let (bytes, next) = (name.to_bytes(), entry.next_entry_cookie());
            let kind = kind(entry.file_type());
            let mut inode = entry.ino();
            if bytes == b".." && node == ROOT {
                // What is above the root is nobody's business.
                inode = directory.status.inode;
            }
            if plus {
                self.enter_listed(node, &directory, name, out);
            }
            reply::dirent(out, inode, next, kind, bytes);
        }
        Ok(())
    }

    /// The entry of one name of a listing, or that of no node: what went wrong shows when it is looked up.
    fn enter_listed(&self, node: u64, directory: &Reached, name: &CStr, out: &mut Vec<u8>) {
        let before = out.len();
        let known = matches!(name.to_bytes(), b"." | b"..");
        if known || self.nodes().crowded() || self.look(node, directory, name, out).is_err() {
            out.truncate(before);
            reply::entry(out, 0, &Attributes::default(), Duration::ZERO);
        }
    }

    /// Appends the entry of what `name` is now; its node, and itself for naming.
    pub(super) fn look(
        &self,
        node: u64,
        directory: &Reached,
        name: &CStr,
        out: &mut Vec<u8>,
    ) -> Result<(u64, OwnedFd)> {
        let fd = self.share.child(directory, name)?;
        let status = share::status(&fd)?;
        let found = Reached { fd, status };
        let entered = self.enter(node, name.to_bytes(), &found, out)?;
        Ok((entered, found.fd))
    }
}

/// The DT_ number of a type: that of the host, for a guest that looks at attributes before it believes it.
fn kind(of: FileType) -> u32 {
    match of {
        FileType::Unknown => 0,
        of => of.as_raw_mode() >> 12,
    }
}
