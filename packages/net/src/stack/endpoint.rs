//! The guest's end of a TCP flow: smoltcp's socket, and the memory of its two buffers.
//!
//! That memory is mapped for each flow, so that of a window only those pages are there that were written to. A vector
//! of zeros is as lazy only while the heap is new: what was in use before is cleared, and with that there, whole.

use rustix::mm::{madvise, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};
use smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use std::cell::RefCell;
use std::io;
use std::ptr::{self, NonNull};
use std::rc::Rc;

/// Bytes of each of the two buffers of a flow beside `flows` others: the more there are, the smaller the windows of new
/// ones, so that all that the limit allows stay below 700 MiB. A few have what Linux's TCP grows to.
fn buffer_size(flows: usize) -> usize {
    match flows {
        0..=3 => 2 << 20,
        4..=63 => 512 << 10,
        64..=511 => 128 << 10,
        _ => 32 << 10,
    }
}

/// Mappings that are kept for new flows when others end.
const SPARE: usize = 8;
/// Bytes at the beginning of each buffer that a kept mapping keeps.
const KEPT: usize = 16 << 10;

/// The mappings of flows that ended: a new flow of a few bytes then needs no new pages, and no processor that another
/// thread runs on has to be told that old ones are gone.
#[derive(Default)]
pub struct Spares(RefCell<Vec<Pages>>);

impl Spares {
    fn take(&self, length: usize) -> io::Result<Pages> {
        let mut spares = self.0.borrow_mut();
        match spares.iter().position(|pages| pages.length == length) {
            Some(place) => Ok(spares.swap_remove(place)),
            None => Pages::new(length),
        }
    }

    /// What `pages` hold stays of this sandbox, and no socket reads what it did not write.
    fn give(&self, pages: Pages) {
        let mut spares = self.0.borrow_mut();
        if spares.len() < SPARE && pages.shrink().is_ok() {
            spares.push(pages);
        }
    }
}

/// Pages that come back.
struct Lease {
    pages: Option<Pages>,
    spares: Rc<Spares>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pages) = self.pages.take() {
            self.spares.give(pages);
        }
    }
}

pub struct Endpoint {
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    /// Below the set, whose socket has it for its buffers: it goes after that.
    _lease: Lease,
}

impl Endpoint {
    /// An end without a state yet, beside `flows` others. An error if there is no memory.
    pub fn new(flows: usize, spares: &Rc<Spares>) -> io::Result<Endpoint> {
        let size = buffer_size(flows);
        let pages = spares.take(2 * size)?;
        // SAFETY: the mapping is of that length, readable, writable and initialized. It is borrowed this once, by a
        // socket that stays in the set beside it and is dropped before it comes back.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pages.start.as_ptr(), pages.length) };
        let (receive, send) = bytes.split_at_mut(size);
        let mut socket = Socket::new(SocketBuffer::new(receive), SocketBuffer::new(send));
        // Acknowledgements leave once per batch of packets; a delay would only stop fast senders.
        socket.set_ack_delay(None);
        socket.set_nagle_enabled(false);
        let mut sockets = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = sockets.add(socket);
        Ok(Endpoint {
            sockets,
            handle,
            _lease: Lease {
                pages: Some(pages),
                spares: Rc::clone(spares),
            },
        })
    }

    /// It is not to be taken out: its buffers are of this end.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut::<Socket>(self.handle)
    }

    /// The set with nothing but the socket, for an interface to work on.
    pub fn sockets(&mut self) -> &mut SocketSet<'static> {
        &mut self.sockets
    }
}

/// Memory for two buffers, of which only those pages are there that were written to.
struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Pages {
    fn new(length: usize) -> io::Result<Pages> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice, is nobody else's.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), length, access, MapFlags::PRIVATE) }?;
        // SAFETY: the advice is for the mapping just made, and changes nothing of what it holds.
        // A huge page would be 2 MB for a flow of one byte; a kernel that has none refuses.
        let _ = unsafe { madvise(start, length, Advice::LinuxNoHugepage) };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Pages { start, length })
    }

    /// Let go of all but the beginning of both buffers.
    fn shrink(&self) -> io::Result<()> {
        let half = self.length / 2;
        for buffer in [0, half] {
            // SAFETY: inside of the mapping, whose buffers are longer than what is kept and which nobody borrows
            // any more.
            unsafe {
                let rest = self.start.as_ptr().add(buffer + KEPT);
                madvise(rest.cast(), half - KEPT, Advice::LinuxDontNeed)?;
            }
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: made in `new` with this length; who borrowed it is gone.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// How many of its pages are there (the highest bit in /proc/pid/pagemap, proc_pid_pagemap(5)).
    fn there(pages: &Pages) -> usize {
        let size = rustix::param::page_size();
        let map = std::fs::File::open("/proc/self/pagemap").unwrap();
        let mut entries = vec![0; pages.length / size * 8];
        let place = pages.start.as_ptr() as usize / size * 8;
        map.read_exact_at(&mut entries, place as u64).unwrap();
        let entries = entries.chunks(8);
        entries.filter(|entry| entry[7] & 0x80 != 0).count()
    }

    #[test]
    fn a_flow_costs_the_pages_that_it_used() {
        let endpoint = Endpoint::new(0, &Rc::default()).unwrap();
        let pages = endpoint._lease.pages.as_ref().unwrap();
        assert_eq!((pages.length, there(pages)), (4 << 20, 0));
        // SAFETY: inside of the mapping, and the socket does nothing meanwhile.
        unsafe { pages.start.as_ptr().add(1 << 20).write(1) };
        assert_eq!(there(pages), 1);
    }

    #[test]
    fn the_pages_of_flows_that_ended_are_used_again_and_few_are_kept() {
        let spares = Rc::<Spares>::default();
        let whole = |spares: &Rc<Spares>| Endpoint::new(0, spares).unwrap();
        let ended: Vec<_> = (0..SPARE + 3).map(|_| whole(&spares)).collect();
        for endpoint in &ended {
            let pages = endpoint._lease.pages.as_ref().unwrap();
            // SAFETY: the whole mapping, of a socket that does nothing meanwhile.
            unsafe { pages.start.as_ptr().write_bytes(1, pages.length) };
        }
        drop(ended);
        assert_eq!(spares.0.borrow().len(), SPARE);
        let kept = 2 * KEPT / rustix::param::page_size();
        assert!(spares.0.borrow().iter().all(|pages| there(pages) == kept));
        let again = whole(&spares);
        assert_eq!(spares.0.borrow().len(), SPARE - 1);
        // Another length.
        let other = Endpoint::new(600, &spares).unwrap();
        assert_eq!(spares.0.borrow().len(), SPARE - 1);
        drop((again, other));
    }

    #[test]
    fn all_flows_together_stay_below_a_bound() {
        let limit = crate::stack::Limits::default().connections;
        let all: usize = (0..limit).map(|flows| 2 * buffer_size(flows)).sum();
        assert!(all < 700 << 20, "{all}");
    }
}
