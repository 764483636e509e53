//! Names: looked up, made, moved and taken away. Each acts in a directory that was reached just before.

use super::{Broker, Cache, Reached};
use crate::owners::{special, Maker};
use crate::quota::BLOCK;
use crate::share::{self, path_of, DIRECTORY, KIND, LINK, REGULAR};
use crate::wire::name::Name;
use crate::wire::reply::{self, Attributes};
use crate::wire::request::Header;
use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, CWD};
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::os::fd::OwnedFd;

const SET_GID: u32 = 0o2000;

impl Broker {
    pub(super) fn lookup(&self, parent: u64, name: Name<'_>, out: &mut Vec<u8>) -> Result<()> {
        let directory = self.reach_directory(parent)?;
        match self.look(parent, &directory, name.as_c_str(), out) {
            Err(Errno::NOENT) if self.options.cache != Cache::None => {
                reply::entry(out, 0, &Attributes::default(), self.valid());
                Ok(())
            }
            Ok((node, file)) => {
                if self.raced.any() {
                    self.raced.found(parent, name.bytes(), node, file);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn make_directory(
        &self,
        header: &Header,
        name: Name<'_>,
        mode: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let directory = self.reach_directory(header.node)?;
        let maker = self.maker(header, &directory, DIRECTORY | mode & 0o7777);
        let mode = Mode::from_raw_mode(self.owners.host_mode(maker.mode, true));
        self.making(&directory, name.as_c_str(), 0, || {
            rustix::fs::mkdirat(&directory, name.as_c_str(), mode)
        })?;
        self.made(header.node, &directory, name, maker, out)
    }

    /// A regular file, or one that stands for a device, a fifo or a socket: on the host there is never one (F12).
    pub(super) fn make_node(
        &self,
        header: &Header,
        name: Name<'_>,
        mode: u32,
        device: u32,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let kind = match mode & KIND {
            0 => REGULAR,
            kind => kind,
        };
        let virtual_ones = matches!(self.owners.ownership, super::Ownership::Virtual { .. });
        match kind {
            REGULAR => {}
            kind if special(kind) && virtual_ones => {}
            kind if special(kind) => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        }
        let directory = self.reach_directory(header.node)?;
        let mut maker = self.maker(header, &directory, kind | mode & 0o7777);
        maker.device = device;
        let mode = self.owners.host_mode(mode, false);
        let flags = OFlags::WRONLY;
        let made = self.making(&directory, name.as_c_str(), 0, || {
            self.share.create(&directory, name.as_c_str(), flags, mode)
        })?;
        self.name(header.node, &directory, name, maker, made, out)
            .map(drop)
    }

    pub(super) fn make_link(
        &self,
        header: &Header,
        name: Name<'_>,
        target: &CStr,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let directory = self.reach_directory(header.node)?;
        let maker = self.maker(header, &directory, LINK | 0o777);
        self.making(&directory, name.as_c_str(), BLOCK, || {
            rustix::fs::symlinkat(target, &directory, name.as_c_str())
        })?;
        self.made(header.node, &directory, name, maker, out)
    }

    /// `flags`, `mode` and whether the set-id bits go.
    pub(super) fn create(
        &self,
        header: &Header,
        name: Name<'_>,
        (flags, mode, kill): (u32, u32, bool),
        out: &mut Vec<u8>,
    ) -> Result<()> {
        self.handles.room()?;
        let directory = self.reach_directory(header.node)?;
        let host = self.host_flags(flags)?;
        let maker = self.maker(header, &directory, REGULAR | mode & 0o7777);
        let host_mode = self.owners.host_mode(mode, false);
        let created = self.making(&directory, name.as_c_str(), 0, || {
            self.share
                .create(&directory, name.as_c_str(), host, host_mode)
        });
        let (node, file) = match created {
            Ok(file) => self.name(header.node, &directory, name, maker, file, out)?,
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                // Gone since: the guest's kernel asks again, as its program asked for one that is made if need be.
                let again = |error| match error {
                    Errno::NOENT => Errno::STALE,
                    error => error,
                };
                let fd = self.share.child(&directory, name.as_c_str());
                let fd = fd.map_err(again)?;
                let status = share::status(&fd)?;
                let found = Reached { fd, status };
                let file = self.use_file(&found, host, flags, kill)?;
                let status = share::status(&file)?;
                let found = Reached { status, ..found };
                (self.enter(header.node, name.bytes(), &found, out)?, file)
            }
            Err(error) => return Err(error),
        };
        let append = host.contains(OFlags::APPEND);
        let added = self.handle(node, file, false, append).and_then(|handle| {
            self.empty(&handle, host)?;
            self.add(handle, out)
        });
        if added.is_err() {
            // The guest is not told of the entry.
            self.nodes().forget(node, 1);
        }
        added
    }

    pub(super) fn unlink(&self, parent: u64, name: Name<'_>, directory: bool) -> Result<()> {
        let at = self.reach_directory(parent)?;
        let name = name.as_c_str();
        let gone = self.last_of(&at, name);
        let flags = match directory {
            true => AtFlags::REMOVEDIR,
            false => AtFlags::empty(),
        };
        if let Some(watch) = &self.watch {
            watch.taking(parent, name.to_bytes());
        }
        let taken = self.taking(&at, name, None, || rustix::fs::unlinkat(&at, name, flags));
        if let (Err(_), Some(watch)) = (&taken, &self.watch) {
            watch.not_taken(parent, name.to_bytes());
        }
        taken?;
        self.retire(gone);
        Ok(())
    }

    pub(super) fn rename(
        &self,
        from: u64,
        old: Name<'_>,
        to: u64,
        new: Name<'_>,
        flags: u32,
    ) -> Result<()> {
        self.renaming((from, old), || self.exchange(from, old, to, new, flags))
    }

    /// Returns what has another name now.
    fn exchange(
        &self,
        from: u64,
        old: Name<'_>,
        to: u64,
        new: Name<'_>,
        flags: u32,
    ) -> Result<Vec<share::Identity>> {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (source, target) = (self.reach_directory(from)?, self.reach_directory(to)?);
        let (old_name, new_name) = (old.as_c_str(), new.as_c_str());
        let replaced = match flags.contains(RenameFlags::EXCHANGE) {
            true => None,
            false => self.last_of(&target, new_name),
        };
        let rename = || rustix::fs::renameat_with(&source, old_name, &target, new_name, flags);
        match (&self.quota, flags.contains(RenameFlags::EXCHANGE)) {
            (Some(_), false) => {
                let moving = share::status(self.share.child(&source, old_name)?)?.identity;
                self.taking(&target, new_name, Some(moving), rename)?;
            }
            _ => rename()?,
        }
        let moved = |at: &Reached, name: &CStr| {
            let status = share::status(self.share.child(at, name).ok()?);
            Some(status.ok()?.identity)
        };
        let here = moved(&target, new_name);
        // Two names of one file: nothing was moved, and nothing replaced.
        if replaced.is_some() && replaced != here {
            self.retire(replaced);
        }
        let there = match flags.contains(RenameFlags::EXCHANGE) {
            true => moved(&source, old_name),
            false => None,
        };
        let mut nodes = self.nodes();
        if let Some(identity) = here {
            nodes.seen(to, new.bytes(), identity);
        }
        if let Some(identity) = there {
            nodes.seen(from, old.bytes(), identity);
        }
        Ok([here, there].into_iter().flatten().collect())
    }

    pub(super) fn link(
        &self,
        old: u64,
        parent: u64,
        name: Name<'_>,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let directory = self.reach_directory(parent)?;
        let file = self.reach(old)?;
        if file.status.identity.is_directory() {
            return Err(Errno::PERM);
        }
        self.guard(&file.status)?;
        // The path leads to exactly the file, and no further if that is a link.
        let follow = AtFlags::SYMLINK_FOLLOW;
        self.making(&directory, name.as_c_str(), 0, || {
            rustix::fs::linkat(CWD, path_of(&file), &directory, name.as_c_str(), follow)
        })?;
        let status = share::status(&file)?;
        let file = Reached { status, ..file };
        self.enter(parent, name.bytes(), &file, out).map(drop)
    }

    /// Who owns what is made in `directory`: its group is inherited where it says so (inode(7)).
    fn maker(&self, header: &Header, directory: &Reached, mode: u32) -> Maker {
        let parent = self.shown(directory, &directory.status);
        let mut maker = Maker {
            uid: header.uid,
            gid: header.gid,
            mode,
            device: 0,
        };
        if parent.mode & SET_GID != 0 {
            maker.gid = parent.gid;
            if mode & KIND == DIRECTORY {
                maker.mode |= SET_GID;
            }
        }
        maker
    }

    /// Notes the owner of what was made under `name` by name alone, and enters it.
    fn made(
        &self,
        parent: u64,
        directory: &Reached,
        name: Name<'_>,
        maker: Maker,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let fd = self.share.child(directory, name.as_c_str())?;
        let status = share::status(&fd)?;
        if status.kind() != maker.mode & KIND {
            // Replaced by the host since; whose it is was never the guest's to say.
            return Err(Errno::STALE);
        }
        self.name(parent, directory, name, maker, fd, out).map(drop)
    }

    /// Notes the owner of `made` and enters it. What cannot be noted is taken away again.
    fn name(
        &self,
        parent: u64,
        directory: &Reached,
        name: Name<'_>,
        maker: Maker,
        made: OwnedFd,
        out: &mut Vec<u8>,
    ) -> Result<(u64, OwnedFd)> {
        let noted = share::status(&made).and_then(|status| self.owners.made(&made, &status, maker));
        if let Err(error) = noted {
            let flags = match maker.mode & KIND {
                DIRECTORY => AtFlags::REMOVEDIR,
                _ => AtFlags::empty(),
            };
            let _ = self.taking(directory, name.as_c_str(), None, || {
                rustix::fs::unlinkat(directory, name.as_c_str(), flags)
            });
            return Err(error);
        }
        let status = share::status(&made)?;
        let made = Reached { fd: made, status };
        let node = self.enter(parent, name.bytes(), &made, out)?;
        Ok((node, made.fd))
    }

    /// What `name` is, if that is its only name.
    fn last_of(&self, directory: &Reached, name: &CStr) -> Option<share::Identity> {
        let status = share::status(self.share.child(directory, name).ok()?).ok()?;
        let only = status.identity.is_directory() || status.links == 1;
        only.then_some(status.identity)
    }

    fn retire(&self, gone: Option<share::Identity>) {
        if let Some(identity) = gone {
            self.nodes().retire(&identity);
            self.owners.gone(&identity);
        }
    }
}
