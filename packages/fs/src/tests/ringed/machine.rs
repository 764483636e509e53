//! A machine with a device of virtio-fs: memory, two queues in it, and what QEMU says of them.

use crate::broker::Broker;
use crate::device::Device;
use crate::serve::Failure;
use crate::wire::MAX_MESSAGE;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{MemfdFlags, SealFlags};
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap, MmapRegion};
use vm_memory::{GuestMemoryBackend, GuestRegionMmap};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};

/// Descriptors of a queue.
pub const SIZE: u16 = 512;
/// Where the second piece of memory begins: a guest's has holes.
pub const HIGH: u64 = 16 << 20;
pub const HIGH_END: u64 = HIGH + (4 << 20);
const LOW_END: u64 = 8 << 20;
/// Requests, answers and indirect tables.
pub const ASKED: u64 = 1 << 20;
pub const SAID: u64 = HIGH;
const TABLE: u64 = 4 << 20;
pub const ROOM: u32 = 2 << 20;
const PAGE: usize = 4096;
/// Of a ring's features: VIRTIO_F_VERSION_1, that of vhost-user, and events.
const BASIC: u64 = 1 << 32 | 1 << 30;
pub const EVENTS: u64 = 1 << 29;
const INDIRECT_TABLES: u64 = 1 << 28;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const HIGH_PRIORITY: usize = 0;
pub const REQUESTS: usize = 1;

/// Address, length, flags and the number of the next.
pub type Descriptor = (u64, u32, u16, u16);

pub struct Machine {
    pub memory: GuestMemoryMmap<()>,
    pub frontend: Frontend,
    device: Arc<Device>,
    rings: [Mutex<Ring>; 2],
    ended: Mutex<Receiver<Result<(), Failure>>>,
    thread: Option<JoinHandle<()>>,
}

struct Ring {
    kick: EventFd,
    call: EventFd,
    asked: u16,
    answered: u16,
}

fn table(ring: usize) -> u64 {
    ring as u64 * 0x10000
}

fn available(ring: usize) -> u64 {
    table(ring) + 0x4000
}

fn used(ring: usize) -> u64 {
    table(ring) + 0x8000
}

/// Memory of a guest in one file, sealed as said.
pub fn memory(seals: SealFlags) -> GuestMemoryMmap<()> {
    let file = rustix::fs::memfd_create("guest", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, LOW_END + HIGH_END - HIGH).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    let file = File::from(file);
    let region = |from: u64, size: u64, offset: u64| {
        let file = FileOffset::new(file.try_clone().unwrap(), offset);
        let mapped = MmapRegion::from_file(file, size as usize).unwrap();
        GuestRegionMmap::new(mapped, GuestAddress(from)).unwrap()
    };
    let regions = vec![
        region(0, LOW_END, 0),
        region(HIGH, HIGH_END - HIGH, LOW_END),
    ];
    GuestMemoryMmap::from_regions(regions).unwrap()
}

pub fn regions(memory: &GuestMemoryMmap<()>) -> Vec<VhostUserMemoryRegionInfo> {
    let info = VhostUserMemoryRegionInfo::from_guest_region;
    memory.iter().map(|region| info(region).unwrap()).collect()
}

impl Machine {
    pub fn new(broker: Arc<Broker>) -> Self {
        Self::with(broker, 0)
    }

    /// A machine whose rings have these features too.
    pub fn with(broker: Arc<Broker>, features: u64) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let device = Arc::new(Device::open(theirs.into()).unwrap());
        let (served, (told, ended)) = (device.clone(), channel());
        let thread = std::thread::spawn(move || {
            let _ = told.send(served.serve(&broker, 2));
            served.refuse().unwrap();
        });
        let memory = memory(SealFlags::SHRINK | SealFlags::GROW);
        let mut frontend = Frontend::from_stream(ours, 2);
        frontend.set_owner().unwrap();
        let wanted = BASIC | INDIRECT_TABLES | features;
        assert_eq!(frontend.get_features().unwrap() & wanted, wanted);
        let parts = frontend.get_protocol_features().unwrap();
        assert!(parts.contains(VhostUserProtocolFeatures::MQ));
        let parts = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK;
        frontend.set_protocol_features(parts).unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(frontend.get_queue_num().unwrap(), 2);
        frontend.set_features(wanted).unwrap();
        frontend.set_mem_table(&regions(&memory)).unwrap();
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let ring = || {
            Mutex::new(Ring {
                kick: event(),
                call: event(),
                asked: 0,
                answered: 0,
            })
        };
        let mut machine = Self {
            memory,
            frontend,
            device,
            rings: [ring(), ring()],
            ended: Mutex::new(ended),
            thread: Some(thread),
        };
        machine.start(HIGH_PRIORITY, 0);
        machine.start(REQUESTS, 0);
        machine
    }

    /// As when it goes on after it was stopped.
    pub fn start(&mut self, ring: usize, next: u16) {
        let host = |address| self.memory.get_host_address(GuestAddress(address)).unwrap() as u64;
        let places = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host(table(ring)),
            used_ring_addr: host(used(ring)),
            avail_ring_addr: host(available(ring)),
            log_addr: None,
        };
        let (frontend, events) = (&mut self.frontend, self.rings[ring].get_mut().unwrap());
        frontend.set_vring_num(ring, SIZE).unwrap();
        frontend.set_vring_base(ring, next).unwrap();
        frontend.set_vring_addr(ring, &places).unwrap();
        frontend.set_vring_call(ring, &events.call).unwrap();
        frontend.set_vring_kick(ring, &events.kick).unwrap();
        frontend.set_vring_enable(ring, true).unwrap();
    }

    pub fn stop(&mut self, ring: usize) -> u32 {
        self.frontend.get_vring_base(ring).unwrap()
    }

    /// Writes descriptors from the `first` of a table on.
    pub fn describe(&self, table: u64, first: u16, descriptors: &[Descriptor]) {
        for (number, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let at = table + 16 * (u64::from(first) + number as u64);
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
            let _ = self.memory.write_slice(&bytes, GuestAddress(at));
        }
    }

    /// Makes a request of the chain that begins with descriptor `head`, without waiting.
    pub fn offer(&self, ring: usize, head: u16) {
        let mut state = self.rings[ring].lock().unwrap();
        let place = available(ring) + 4 + 2 * u64::from(state.asked % SIZE);
        let write = |value: u16, at| self.memory.write_obj(value.to_le(), GuestAddress(at));
        write(head, place).unwrap();
        state.asked = state.asked.wrapping_add(1);
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        write(state.asked, available(ring) + 2).unwrap();
        state.kick.write(1).unwrap();
    }

    /// What the ring says without a request: as many more than there are.
    pub fn lie(&self, ring: usize, more: u16) {
        let state = self.rings[ring].lock().unwrap();
        let lie = state.asked.wrapping_add(more).to_le();
        let place = GuestAddress(available(ring) + 2);
        self.memory.write_obj(lie, place).unwrap();
        state.kick.write(1).unwrap();
    }

    /// The head and the number of bytes of the next answer; `None` if there is none for so long.
    pub fn answer_within(&self, ring: usize, milliseconds: i64) -> Option<(u32, u32)> {
        let mut state = self.rings[ring].lock().unwrap();
        loop {
            let index: u16 = self.memory.read_obj(GuestAddress(used(ring) + 2)).unwrap();
            if u16::from_le(index) != state.answered {
                let place = used(ring) + 4 + 8 * u64::from(state.answered % SIZE);
                state.answered = state.answered.wrapping_add(1);
                let read = |at| self.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
                return Some((read(place), read(place + 4)));
            }
            if self.await_event(ring, state.answered) {
                continue;
            }
            // SAFETY: it is open as long as the ring.
            let call = unsafe { BorrowedFd::borrow_raw(state.call.as_raw_fd()) };
            let limit = Timespec {
                tv_sec: milliseconds / 1000,
                tv_nsec: milliseconds % 1000 * 1_000_000,
            };
            if poll(&mut [PollFd::new(&call, PollFlags::IN)], Some(&limit)).unwrap() == 0 {
                return None;
            }
            let _ = state.call.read();
        }
    }

    /// Says from which answer on it wants to hear of them (`used_event`); whether that one is there already.
    fn await_event(&self, ring: usize, answered: u16) -> bool {
        let place = GuestAddress(available(ring) + 4 + 2 * u64::from(SIZE));
        self.memory.write_obj(answered.to_le(), place).unwrap();
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let index: u16 = self.memory.read_obj(GuestAddress(used(ring) + 2)).unwrap();
        u16::from_le(index) != answered
    }

    pub fn answer(&self, ring: usize) -> (u32, u32) {
        self.answer_within(ring, 20_000).expect("an answer")
    }

    /// Puts a message there, in descriptors of a page each, and the place for its answer behind it.
    pub fn lay(&self, message: &[u8], room: u32) -> Vec<Descriptor> {
        let sent = &message[..message.len().min(MAX_MESSAGE + PAGE)];
        let place = GuestAddress(ASKED);
        self.memory.write_slice(sent, place).unwrap();
        let (header, rest) = sent.split_at(sent.len().min(40));
        let mut pieces = vec![(ASKED, header.len() as u32, 0)];
        let mut at = ASKED + 40;
        for piece in rest.chunks(PAGE) {
            pieces.push((at, piece.len() as u32, 0));
            at += piece.len() as u64;
        }
        if room > 0 {
            pieces.push((SAID, room.min(16), WRITE));
            pieces.push((SAID + 16, room.saturating_sub(16), WRITE));
        }
        let last = pieces.len() - 1;
        let chained = pieces.iter().enumerate().map(|(number, piece)| {
            let next = if number == last { 0 } else { NEXT };
            (piece.0, piece.1, piece.2 | next, number as u16 + 1)
        });
        chained.collect()
    }

    /// Sends a message and waits; what is answered.
    pub fn ask(&self, ring: usize, message: &[u8], room: u32) -> Vec<u8> {
        // Every other time by a table of its own.
        let indirect = self.rings[ring].lock().unwrap().asked % 2 == 1;
        let descriptors = self.lay(message, room);
        if indirect {
            self.describe(TABLE, 0, &descriptors);
            let size = 16 * descriptors.len() as u32;
            self.describe(table(ring), 0, &[(TABLE, size, INDIRECT, 0)]);
        } else {
            self.describe(table(ring), 0, &descriptors);
        }
        self.offer(ring, 0);
        let (head, length) = self.answer(ring);
        assert_eq!(head, 0);
        self.said(length)
    }

    pub fn said(&self, length: u32) -> Vec<u8> {
        let mut said = vec![0; length as usize];
        let place = GuestAddress(SAID);
        self.memory.read_slice(&mut said, place).unwrap();
        said
    }

    /// The table of descriptors of a ring.
    pub fn table(ring: usize) -> u64 {
        table(ring)
    }

    /// It is to be served no more.
    pub fn halt(&self) {
        self.device.halt();
    }

    /// Switches it off; why it was served no more.
    pub fn off(self) -> Result<(), Failure> {
        self.device.stop();
        self.end()
    }

    /// Why it is served no more, once it is not.
    pub fn end(&self) -> Result<(), Failure> {
        let long = std::time::Duration::from_secs(20);
        self.ended.lock().unwrap().recv_timeout(long).unwrap()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.device.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
