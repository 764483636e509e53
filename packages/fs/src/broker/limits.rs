//! Changes under a quota: each is made while nobody else changes what the account counts. Without one, just made.

use super::{Broker, Reached};
use crate::handles::Handle;
use crate::quota::{cost, BLOCK};
use crate::share::{self, Identity, REGULAR};
use crate::wire::MAX_ATTRIBUTE;
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// Bytes of names and values of one file's extended attributes under a quota.
const MOST_ATTRIBUTES: usize = 4096;

impl Broker {
    /// Makes what `name` is going to be, which counts for `bytes` at first.
    pub(super) fn making<T>(
        &self,
        directory: &Reached,
        name: &CStr,
        bytes: u64,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(quota) = &self.quota else {
            return make();
        };
        let mut account = quota.account(&self.share)?;
        if let Err(full) = account.fits(bytes) {
            return match self.share.child(directory, name) {
                Ok(_) => Err(Errno::EXIST),
                Err(_) => Err(full),
            };
        }
        let made = make()?;
        account.named(bytes)?;
        Ok(made)
    }

    /// Takes the name from what has it, or gives it to another.
    pub(super) fn taking(
        &self,
        directory: &Reached,
        name: &CStr,
        by: Option<Identity>,
        take: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(quota) = &self.quota else {
            return take();
        };
        let mut account = quota.account(&self.share)?;
        let taken = self.share.child(directory, name).ok();
        take()?;
        match taken {
            Some(taken) => {
                let status = share::status(&taken)?;
                match Some(status.identity) == by {
                    // Two names of one file: a rename leaves both.
                    true => Ok(()),
                    false => account.unnamed(&status),
                }
            }
            None => Ok(()),
        }
    }

    /// Changes a file from `start` on (its end, if none) for `length` bytes, of which as many as fit are allowed;
    /// with `whole`, all of them or EDQUOT. ESTALE for a file that is gone.
    pub(super) fn growing<T>(
        &self,
        file: impl AsFd,
        start: Option<u64>,
        length: u64,
        whole: bool,
        change: impl FnOnce(u64) -> Result<T>,
    ) -> Result<T> {
        let Some(quota) = &self.quota else {
            return change(length);
        };
        let mut account = quota.account(&self.share)?;
        let before = share::status(&file)?;
        if before.links == 0 && !account.held(&before.identity) {
            return Err(Errno::STALE);
        }
        let start = start.unwrap_or(before.size);
        let end = cost(&before).saturating_add(account.room() / BLOCK * BLOCK);
        let allowed = length.min(end.saturating_sub(start));
        // Within what it has already, it may be changed however full the account is.
        let allowed = match start.saturating_add(length) <= before.size {
            true => length,
            false => allowed,
        };
        if allowed < length && (whole || allowed == 0) {
            return Err(Errno::DQUOT);
        }
        let done = change(allowed);
        account.changed(cost(&before), cost(&share::status(&file)?))?;
        done
    }

    /// A handle of a file or directory that was opened; a file counts as open until it is dropped.
    pub(super) fn handle(
        &self,
        node: u64,
        file: OwnedFd,
        directory: bool,
        append: bool,
    ) -> Result<Handle> {
        let mut held = None;
        if let (Some(quota), false) = (&self.quota, directory) {
            let mut account = quota.account(&self.share)?;
            account.hold(&share::status(&file)?)?;
            held = Some((quota.clone(), self.share.clone()));
        }
        Ok(Handle {
            node,
            file,
            directory,
            append,
            reading: Default::default(),
            held,
        })
    }

    /// Empties a file that was opened to be emptied; without a quota the host has done so.
    pub(super) fn empty(&self, handle: &Handle, flags: OFlags) -> Result<()> {
        match self.quota.is_some() && flags.contains(OFlags::TRUNC) {
            true => self.growing(&handle.file, Some(0), 0, true, |_| {
                rustix::fs::ftruncate(&handle.file, 0)
            }),
            false => Ok(()),
        }
    }

    /// ENOSPC if one more extended attribute would be more than is free with every file.
    pub(super) fn room_for_attribute(&self, path: &str, name: &CStr, value: &[u8]) -> Result<()> {
        if self.quota.is_none() {
            return Ok(());
        }
        let mut names = vec![0; MAX_ATTRIBUTE];
        let length = rustix::fs::listxattr(path, &mut names[..])?;
        let mut bytes = name.to_bytes().len() + value.len();
        for other in names[..length].split_inclusive(|byte| *byte == 0) {
            let other = CStr::from_bytes_with_nul(other).map_err(|_| Errno::IO)?;
            if other != name {
                let size = rustix::fs::getxattr(path, other, &mut [0u8; 0][..]).unwrap_or(0);
                bytes += other.to_bytes().len() + size;
            }
        }
        match bytes <= MOST_ATTRIBUTES {
            true => Ok(()),
            false => Err(Errno::NOSPC),
        }
    }

    /// Bytes and names that are there, under a quota.
    pub fn counted(&self) -> Result<Option<(u64, u64)>> {
        let Some(quota) = &self.quota else {
            return Ok(None);
        };
        let account = quota.account(&self.share)?;
        Ok(Some((account.bytes(), account.names())))
    }

    /// Whether a file may not be given space beyond its size: no account would know of it.
    pub(super) fn hidden_space(&self, file: &OwnedFd, end: u64) -> Result<bool> {
        let status = share::status(file)?;
        Ok(self.quota.is_some() && status.kind() == REGULAR && end > cost(&status))
    }
}
