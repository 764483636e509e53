//! What a guest has open. Numbers are never given twice, so that one of the past opens nothing.

use crate::quota::Quota;
use crate::share::Share;
use rustix::io::{Errno, Result};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct Handle {
    pub node: u64,
    pub file: OwnedFd,
    pub directory: bool,
    /// Writes go to the end, wherever the guest thinks it is.
    pub append: bool,
    /// Held while entries are read: the place in a directory is one for all who read it.
    pub reading: Mutex<()>,
    /// Where it counts as open.
    pub held: Option<(Arc<Quota>, Arc<Share>)>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some((quota, share)) = &self.held {
            quota.closed(share, &self.file);
        }
    }
}

#[derive(Default)]
struct Table {
    open: HashMap<u64, Arc<Handle>>,
    last: u64,
}

pub struct Handles {
    table: Mutex<Table>,
    most: usize,
}

impl Handles {
    pub fn new(most: usize) -> Self {
        Self {
            table: Mutex::default(),
            most,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// EMFILE if the guest has as much open as it may (F17).
    pub fn add(&self, handle: Handle) -> Result<(u64, Arc<Handle>)> {
        let mut table = self.table();
        if table.open.len() >= self.most {
            return Err(Errno::MFILE);
        }
        table.last += 1;
        let (number, handle) = (table.last, Arc::new(handle));
        table.open.insert(number, handle.clone());
        Ok((number, handle))
    }

    /// EMFILE while nothing more may be opened: asked before a file is made for a handle.
    pub fn room(&self) -> Result<()> {
        match self.table().open.len() < self.most {
            true => Ok(()),
            false => Err(Errno::MFILE),
        }
    }

    /// EBADF if it was never given, is closed, or is another node's or kind's (F10).
    pub fn get(&self, number: u64, node: u64, directory: bool) -> Result<Arc<Handle>> {
        let table = self.table();
        let found = table.open.get(&number).ok_or(Errno::BADF)?;
        match found.node == node && found.directory == directory {
            true => Ok(found.clone()),
            false => Err(Errno::BADF),
        }
    }

    pub fn close(&self, number: u64, node: u64, directory: bool) -> Result<()> {
        self.get(number, node, directory)?;
        let closed = self.table().open.remove(&number);
        // After the lock: closing may write.
        drop(closed);
        Ok(())
    }

    pub fn clear(&self) {
        let closed = std::mem::take(&mut self.table().open);
        drop(closed);
    }

    pub fn count(&self) -> usize {
        self.table().open.len()
    }
}
