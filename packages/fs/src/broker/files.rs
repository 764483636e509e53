//! Contents of files: opened, read, written.

use super::{Broker, Reached};
use crate::owners::Change;
use crate::share::{self, reopen, REGULAR};
use crate::wire::{reply, OUT_HEADER, WRITE_CACHE, WRITE_KILL_SUIDGID};
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::{Errno, Result};
use std::os::fd::OwnedFd;

/// Most bytes that one COPY_FILE_RANGE copies: the guest asks again, and nothing else waits for long.
const MOST_COPIED: u64 = 64 << 20;
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

fn flags(guest: u32) -> Result<OFlags> {
    let guest = OFlags::from_bits_retain(guest);
    if guest.contains(OFlags::TMPFILE) || guest.contains(OFlags::PATH) {
        return Err(Errno::INVAL);
    }
    let access = guest & OFlags::RWMODE;
    if access == OFlags::RWMODE {
        return Err(Errno::INVAL);
    }
    let kept = OFlags::APPEND | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
    Ok(access | guest & kept)
}

fn changes(flags: OFlags) -> bool {
    flags & OFlags::RWMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

impl Broker {
    pub(super) fn open_file(
        &self,
        node: u64,
        guest: u32,
        kill: bool,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let flags = self.host_flags(guest)?;
        if self.options.read_only && changes(flags) {
            return Err(Errno::ROFS);
        }
        self.handles.room()?;
        let file = self.use_file(&self.reach(node)?, flags, guest, kill)?;
        let append = flags.contains(OFlags::APPEND);
        let handle = self.handle(node, file, false, append)?;
        self.empty(&handle, flags)?;
        if self.raced.any() {
            self.raced.opened(node);
        }
        self.add(handle, out)
    }

    /// What of a guest's flags of open(2) is the host's business. EINVAL for what opens no file.
    pub(super) fn host_flags(&self, guest: u32) -> Result<OFlags> {
        let mut flags = flags(guest)?;
        if self.writes_back() && flags & OFlags::RWMODE != OFlags::RDONLY {
            // Where the end is the guest knows, and the rest of a page that is written in part it reads.
            flags.remove(OFlags::APPEND | OFlags::RWMODE);
            flags.insert(OFlags::RDWR);
        }
        Ok(flags)
    }

    /// Opens a regular file that was reached: nothing else is ever opened for reading or writing.
    /// With `flags`, or at least as the guest has asked.
    pub(super) fn use_file(
        &self,
        file: &Reached,
        flags: OFlags,
        guest: u32,
        kill: bool,
    ) -> Result<OwnedFd> {
        if file.status.identity.is_directory() {
            return Err(Errno::ISDIR);
        }
        if changes(flags) {
            self.guard(&file.status)?;
        }
        let mut host = flags;
        if self.quota.is_some() {
            // Emptied when it is known to be in the account.
            host.remove(OFlags::TRUNC);
        }
        let opened = match reopen(file, &file.status, host) {
            // Nobody may read it on the host, and the guest did not ask to.
            Err(Errno::ACCESS) if self.writes_back() => {
                let asked = OFlags::from_bits_retain(guest) & OFlags::RWMODE;
                reopen(file, &file.status, host.difference(OFlags::RWMODE) | asked)?
            }
            opened => opened?,
        };
        if kill && flags.contains(OFlags::TRUNC) {
            self.kill(&opened)?;
        }
        Ok(opened)
    }

    fn kill(&self, file: &OwnedFd) -> Result<()> {
        let change = Change {
            kill: true,
            ..Change::default()
        };
        self.owners.change(file, &share::status(file)?, change)
    }

    pub(super) fn read(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        size: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let handle = self.file(handle, node)?;
        out.resize(OUT_HEADER + size as usize, 0);
        let read = rustix::io::pread(&handle.file, &mut out[OUT_HEADER..], offset)?;
        out.truncate(OUT_HEADER + read);
        Ok(())
    }

    pub(super) fn write(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let handle = self.file(handle, node)?;
        if flags & WRITE_KILL_SUIDGID != 0 {
            self.kill(&handle.file)?;
        }
        // A page of a mapping is not for the end, though the file was opened to append.
        let mapped = flags & WRITE_CACHE != 0;
        let start = (mapped || !handle.append).then_some(offset);
        let length = data.len() as u64;
        let written = self.growing(&handle.file, start, length, false, |allowed| {
            let data = &data[..allowed as usize];
            if handle.append && mapped {
                let status = share::status(&handle.file)?;
                let file = reopen(&handle.file, &status, OFlags::WRONLY)?;
                return write_all(&file, data, offset);
            }
            match mapped {
                true => write_all(&handle.file, data, offset),
                false => rustix::io::pwrite(&handle.file, data, offset),
            }
        });
        let written = match written {
            // A guest does not look how much of its pages was written, only whether: and knows no EDQUOT of them at close(2).
            Ok(written) if mapped && written < data.len() => Err(Errno::NOSPC),
            Err(Errno::DQUOT) if mapped => Err(Errno::NOSPC),
            written => written,
        }?;
        reply::u32(out, written as u32);
        reply::u32(out, 0);
        Ok(())
    }

    pub(super) fn sync(
        &self,
        node: u64,
        handle: u64,
        directory: bool,
        data_only: bool,
    ) -> Result<()> {
        let handle = self.handles.get(handle, node, directory)?;
        match data_only {
            true => rustix::fs::fdatasync(&handle.file),
            false => rustix::fs::fsync(&handle.file),
        }
    }

    pub(super) fn allocate(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
    ) -> Result<()> {
        let handle = self.file(handle, node)?;
        let keep = FallocateFlags::KEEP_SIZE;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        let known = [
            FallocateFlags::empty(),
            keep,
            keep | FallocateFlags::PUNCH_HOLE,
            FallocateFlags::ZERO_RANGE,
            keep | FallocateFlags::ZERO_RANGE,
        ];
        if !known.contains(&mode) {
            return Err(Errno::OPNOTSUPP);
        }
        if !mode.contains(FallocateFlags::PUNCH_HOLE) {
            let space = rustix::fs::fstatvfs(&handle.file)?;
            // The host would find out by filling its disk.
            if length > space.f_bavail.saturating_mul(space.f_frsize) {
                return Err(Errno::NOSPC);
            }
        }
        if mode.contains(keep) {
            let punches = mode.contains(FallocateFlags::PUNCH_HOLE);
            if !punches && self.hidden_space(&handle.file, offset + length)? {
                return Err(Errno::OPNOTSUPP);
            }
            return rustix::fs::fallocate(&handle.file, mode, offset, length);
        }
        self.growing(&handle.file, Some(offset), length, true, |_| {
            rustix::fs::fallocate(&handle.file, mode, offset, length)
        })
    }

    pub(super) fn seek(
        &self,
        node: u64,
        handle: u64,
        offset: u64,
        whence: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        if self.writes_back() {
            // What the guest has yet to write back is data too: it takes the whole file for that.
            return Err(Errno::NOSYS);
        }
        let handle = self.file(handle, node)?;
        let from = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        reply::u64(out, rustix::fs::seek(&handle.file, from)?);
        Ok(())
    }

    /// `from` and `to` are a node, its handle and an offset.
    pub(super) fn copy(
        &self,
        from: (u64, u64, u64),
        to: (u64, u64, u64),
        length: u64,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let (source, target) = (self.file(from.1, from.0)?, self.file(to.1, to.0)?);
        let (mut read_at, mut write_at) = (from.2, to.2);
        let length = length.min(MOST_COPIED);
        let copied = self.growing(&target.file, Some(to.2), length, false, |allowed| {
            rustix::fs::copy_file_range(
                &source.file,
                Some(&mut read_at),
                &target.file,
                Some(&mut write_at),
                allowed as usize,
            )
        })?;
        reply::u32(out, copied as u32);
        reply::u32(out, 0);
        Ok(())
    }

    /// Sets the size of a file, of `handle` if it is given.
    pub(super) fn resize(
        &self,
        node: u64,
        file: &Reached,
        handle: Option<u64>,
        size: u64,
    ) -> Result<()> {
        match handle {
            Some(handle) => {
                let handle = self.file(handle, node)?;
                self.growing(&handle.file, Some(0), size, true, |_| {
                    rustix::fs::ftruncate(&handle.file, size)
                })
            }
            None if file.status.kind() != REGULAR => {
                Err(match file.status.identity.is_directory() {
                    true => Errno::ISDIR,
                    false => Errno::INVAL,
                })
            }
            None => {
                self.guard(&file.status)?;
                let file = reopen(file, &file.status, OFlags::WRONLY)?;
                self.growing(&file, Some(0), size, true, |_| {
                    rustix::fs::ftruncate(&file, size)
                })
            }
        }
    }
}

/// Writes all of it, or fails.
fn write_all(file: &OwnedFd, data: &[u8], offset: u64) -> Result<usize> {
    let mut written = 0;
    while written < data.len() {
        match rustix::io::pwrite(file, &data[written..], offset + written as u64) {
            Ok(0) => return Err(Errno::IO),
            Ok(more) => written += more,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}
