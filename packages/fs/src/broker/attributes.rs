//! Attributes of files, those of stat(2) and extended ones.

use super::{Broker, Reached};
use crate::owners::{Change, PRIVATE};
use crate::share::{self, path_of};
use crate::wire::request::{Header, SetAttributes, Time};
use crate::wire::{reply, MAX_ATTRIBUTE, OUT_HEADER};
use rustix::fs::{AtFlags, Timespec, Timestamps, XattrFlags, UTIME_NOW, UTIME_OMIT};
use rustix::io::{Errno, Result};
use std::ffi::CStr;

const READ: u32 = 4;
const WRITE: u32 = 2;
const EXECUTE: u32 = 1;

impl Broker {
    pub(super) fn get_attributes(
        &self,
        node: u64,
        handle: Option<u64>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match handle {
            Some(handle) => {
                let handle = self.file(handle, node)?;
                let status = share::status(&handle.file)?;
                let shown = self.shown(&handle.file, &status);
                reply::attributes_for(out, &shown, self.valid());
            }
            None => {
                let reached = self.reach(node)?;
                let shown = self.shown(&reached, &reached.status);
                reply::attributes_for(out, &shown, self.valid());
            }
        }
        Ok(())
    }

    pub(super) fn set_attributes(
        &self,
        node: u64,
        set: &SetAttributes,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let file = match set.handle {
            Some(handle) => {
                let handle = self.file(handle, node)?;
                let status = share::status(&handle.file)?;
                let fd = rustix::io::fcntl_dupfd_cloexec(&handle.file, 0)?;
                Reached { fd, status }
            }
            None => self.reach(node)?,
        };
        self.guard(&file.status)?;
        let owned = set.uid.is_some() || set.gid.is_some();
        if set.mode.is_some() || owned || set.kill {
            let change = Change {
                uid: set.uid,
                gid: set.gid,
                mode: set.mode,
                kill: set.kill,
            };
            self.owners.change(&file, &file.status, change)?;
        }
        if let Some(size) = set.size {
            self.resize(node, &file, set.handle, size)?;
        }
        if set.accessed.is_some() || set.modified.is_some() {
            let times = Timestamps {
                last_access: timespec(set.accessed),
                last_modification: timespec(set.modified),
            };
            match rustix::fs::utimensat(&file, c"", &times, AtFlags::EMPTY_PATH) {
                // Only its owner on the host may set them; that it was written has set them already.
                Err(Errno::PERM) if set.written_back && self.writes_back() => {}
                set => set?,
            }
        }
        let status = share::status(&file)?;
        let shown = self.shown(&file, &status);
        reply::attributes_for(out, &shown, self.valid());
        Ok(())
    }

    /// The text of a link; what it leads to is the guest's to look up.
    pub(super) fn read_link(&self, node: u64, out: &mut Vec<u8>) -> Result<()> {
        let link = self.reach(node)?;
        if link.status.kind() != share::LINK {
            return Err(Errno::INVAL);
        }
        let text = rustix::fs::readlinkat(&link, c"", Vec::new())?;
        out.extend_from_slice(text.to_bytes());
        Ok(())
    }

    pub(super) fn stat_fs(&self, out: &mut Vec<u8>) -> Result<()> {
        let mut seen = rustix::fs::fstatvfs(self.share.root())?;
        if let Some(quota) = &self.quota {
            let account = quota.account(&self.share)?;
            let block = seen.f_frsize.max(1);
            let free = account.room() / block;
            seen.f_blocks = seen.f_blocks.min(quota.limits.bytes / block);
            seen.f_bfree = seen.f_bfree.min(free);
            seen.f_bavail = seen.f_bavail.min(free);
            let names = quota.limits.names.saturating_sub(account.names());
            seen.f_files = seen.f_files.min(quota.limits.names);
            seen.f_ffree = seen.f_ffree.min(names);
        }
        for value in [
            seen.f_blocks,
            seen.f_bfree,
            seen.f_bavail,
            seen.f_files,
            seen.f_ffree,
        ] {
            reply::u64(out, value);
        }
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        reply::u32(out, small(seen.f_bsize));
        reply::u32(out, small(seen.f_namemax.min(255)));
        reply::u32(out, small(seen.f_frsize));
        out.resize(OUT_HEADER + 80, 0);
        Ok(())
    }

    /// Against the owner and mode that are shown: EACCES, and EROFS for writing to a read-only share.
    pub(super) fn access(&self, header: &Header, mask: u32) -> Result<()> {
        if mask & !(READ | WRITE | EXECUTE) != 0 {
            return Err(Errno::INVAL);
        }
        if mask & WRITE != 0 && self.options.read_only {
            return Err(Errno::ROFS);
        }
        let reached = self.reach(header.node)?;
        let shown = self.shown(&reached, &reached.status);
        let allowed = if header.uid == 0 {
            let runs = reached.status.identity.is_directory() || shown.mode & 0o111 != 0;
            READ | WRITE | if runs { EXECUTE } else { 0 }
        } else if header.uid == shown.uid {
            shown.mode >> 6
        } else if header.gid == shown.gid {
            shown.mode >> 3
        } else {
            shown.mode
        };
        match mask & !allowed {
            0 => Ok(()),
            _ => Err(Errno::ACCESS),
        }
    }

    pub(super) fn set_extended(
        &self,
        node: u64,
        name: &CStr,
        value: &[u8],
        flags: u32,
    ) -> Result<()> {
        settable(name)?;
        let flags = XattrFlags::from_bits(flags)
            .filter(|flags| (XattrFlags::CREATE | XattrFlags::REPLACE).contains(*flags))
            .ok_or(Errno::INVAL)?;
        let file = self.plain(node, Errno::PERM)?;
        self.guard(&file.status)?;
        self.room_for_attribute(&path_of(&file), name, value)?;
        rustix::fs::setxattr(path_of(&file), name, value, flags)
    }

    pub(super) fn remove_extended(&self, node: u64, name: &CStr) -> Result<()> {
        settable(name)?;
        let file = self.plain(node, Errno::PERM)?;
        self.guard(&file.status)?;
        rustix::fs::removexattr(path_of(&file), name)
    }

    pub(super) fn get_extended(
        &self,
        node: u64,
        name: &CStr,
        size: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if !visible(name.to_bytes()) {
            return Err(Errno::NODATA);
        }
        let file = self.plain(node, Errno::NODATA)?;
        let mut value = vec![0; MAX_ATTRIBUTE];
        let length = rustix::fs::getxattr(path_of(&file), name, &mut value[..])?;
        sized(&value[..length], size, out)
    }

    pub(super) fn list_extended(&self, node: u64, size: u32, out: &mut Vec<u8>) -> Result<()> {
        let Ok(file) = self.plain(node, Errno::NODATA) else {
            // Links have none, but a node that is stale says so.
            self.reach(node)?;
            return sized(&[], size, out);
        };
        let mut names = vec![0; MAX_ATTRIBUTE];
        let length = rustix::fs::listxattr(path_of(&file), &mut names[..])?;
        let mut shown = Vec::new();
        for name in names[..length].split_inclusive(|byte| *byte == 0) {
            if visible(&name[..name.len() - 1]) {
                shown.extend_from_slice(name);
            }
        }
        sized(&shown, size, out)
    }

    /// A regular file or directory, which alone have extended attributes of users; `error` for others.
    fn plain(&self, node: u64, error: Errno) -> Result<Reached> {
        let reached = self.reach(node)?;
        match reached.status.kind() {
            share::REGULAR | share::DIRECTORY => Ok(reached),
            _ => Err(error),
        }
    }
}

/// Extended attributes of users are shared; those of the host's security, and ours, are not there (F22).
fn visible(name: &[u8]) -> bool {
    name.starts_with(b"user.") && !name.starts_with(PRIVATE)
}

fn settable(name: &CStr) -> Result<()> {
    match name.to_bytes() {
        name if visible(name) => Ok(()),
        // Not kept, and programs that copy files go on without.
        name if name.starts_with(b"system.") => Err(Errno::OPNOTSUPP),
        _ => Err(Errno::PERM),
    }
}

/// The bytes, or how many they are if the guest asks with 0. ERANGE if it has less room.
fn sized(bytes: &[u8], size: u32, out: &mut Vec<u8>) -> Result<()> {
    match size as usize {
        0 => {
            reply::u32(out, bytes.len() as u32);
            reply::u32(out, 0);
            Ok(())
        }
        room if room < bytes.len() => Err(Errno::RANGE),
        _ => {
            out.extend_from_slice(bytes);
            Ok(())
        }
    }
}

fn timespec(time: Option<Time>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(None) => (0, UTIME_NOW),
        Some(Some((seconds, nanoseconds))) => (seconds, nanoseconds.into()),
    };
    Timespec { tv_sec, tv_nsec }
}
