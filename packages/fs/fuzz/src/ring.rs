//! A queue of virtio-fs in a guest's memory, which is as the bytes say: each chain is taken once, what is copied out
//! has its bounds, and nothing is written to but the places of answers and the used ring.
//!
//! The first byte is about features and the size of the queue; then come the available ring, the table of
//! descriptors, and what lies behind: messages and indirect tables.

use microsandbox_fs_native::device::ring::{Memory, Ring, Taken};
use microsandbox_fs_native::wire::MAX_MESSAGE;
use rustix::event::{eventfd, EventfdFlags};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

/// Pages; the memory ends behind the last one.
const AVAILABLE: u64 = 0;
const TABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const REST: u64 = 0x3000;
const END: u64 = 0x10000;
/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;
const ANSWER: [u8; 24] = [0xA5; 24];

pub fn ring(bytes: &[u8]) {
    let Some((&how, rest)) = bytes.split_first() else {
        return;
    };
    let size = 1usize << (how & 3);
    let (available, rest) = rest.split_at(rest.len().min(4 + 2 * size));
    let (table, rest) = rest.split_at(rest.len().min(DESCRIPTOR * size));
    let rest = &rest[..rest.len().min((END - REST) as usize)];
    let memory = Memory::from_ranges(&[(GuestAddress(0), END as usize)]).expect("there is memory");
    for (at, content) in [(AVAILABLE, available), (TABLE, table), (REST, rest)] {
        let written = memory.write_slice(content, GuestAddress(at));
        written.expect("it lies within");
    }
    let memory = Arc::new(memory);
    let ring = Ring::new().expect("there are descriptors");
    ring.set_memory(memory.clone());
    ring.set_event_index(how & 4 != 0);
    ring.set_size(size as u16).expect("a power of two");
    ring.set_addresses(TABLE, AVAILABLE, USED)
        .expect("they are aligned");
    let kick = eventfd(0, EventfdFlags::CLOEXEC).expect("there are descriptors");
    ring.start(kick).expect("it lies within");
    ring.set_enabled(true);
    let mut taken = Taken::default();
    let mut count = 0;
    // What is wrong with a queue or a chain is an error, and the last thing that is taken from it.
    while let Ok(Some(request)) = ring.look() {
        count += 1;
        assert!(count <= size, "more requests than places");
        let heard = request.hear(&mut taken);
        assert!(taken.message().len() <= MAX_MESSAGE && taken.room <= MAX_MESSAGE);
        let before = content(&memory);
        let said = request.say(&taken, &ANSWER);
        let after = content(&memory);
        let changed = before.iter().zip(&after).filter(|(old, new)| old != new);
        assert!(said == 0 || said as usize == ANSWER.len());
        assert!(changed.count() <= ANSWER.len());
        if ring.finish(request, said).is_err() || heard.is_err() {
            break;
        }
        let written = content(&memory);
        let used = USED as usize..REST as usize;
        assert!(written[..used.start] == after[..used.start], "beside it");
        assert!(written[used.end..] == after[used.end..], "beside it");
    }
    assert_eq!(ring.stop(|| false) as usize & 0xFFFF, count & 0xFFFF);
}

fn content(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; END as usize];
    let read = memory.read_slice(&mut bytes, GuestAddress(0));
    read.expect("it lies within");
    bytes
}
