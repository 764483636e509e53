//! smoltcp's side of the link.

use super::limit::Said;
use super::link::Queue;
use super::packet::{self, TCP};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};

/// smoltcp's view of the link: at most one packet of the guest, and the queue. Only TCP goes through it, and what
/// comes has been checked.
pub struct Port<'a> {
    mtu: usize,
    frame: Option<&'a [u8]>,
    queue: &'a mut Queue,
    said: Option<Said>,
}

impl<'a> Port<'a> {
    pub fn new(mtu: usize, frame: Option<&'a [u8]>, queue: &'a mut Queue) -> Port<'a> {
        Port {
            mtu,
            frame,
            queue,
            said: None,
        }
    }

    /// What the last segment said that has left since this was asked.
    pub fn said(&mut self) -> Option<Said> {
        self.said.take()
    }

    /// Whether flows have to wait for the link.
    pub fn full(&self) -> bool {
        self.queue.full()
    }
}

pub struct Arrived<'a>(&'a [u8]);

impl phy::RxToken for Arrived<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, work: F) -> R {
        work(self.0)
    }
}

pub struct Leaving<'a>(&'a mut Queue, &'a mut Option<Said>);

impl phy::TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let Leaving(queue, said) = self;
        queue.push_ip(length, |packet| {
            let result = fill(packet);
            sum_up(packet);
            *said = Said::read(packet);
            result
        })
    }
}

/// Write the checksum that smoltcp leaves to us into a TCP packet: it adds two bytes at a time, which was an eighth
/// of a download.
fn sum_up(packet: &mut [u8]) {
    let Some((source, target, at)) = packet::outline(packet) else {
        return;
    };
    let segment = &mut packet[at..];
    let value = packet::checksum(source, target, TCP, segment);
    if let Some(place) = segment.get_mut(16..18) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

impl phy::Device for Port<'_> {
    type RxToken<'t>
        = Arrived<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Leaving<'t>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Arrived<'_>, Leaving<'_>)> {
        // Without room for an answer the segment counts as lost; the guest repeats it.
        if self.queue.overfull() {
            return None;
        }
        Some((
            Arrived(self.frame.take()?),
            Leaving(self.queue, &mut self.said),
        ))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        (!self.queue.full()).then_some(Leaving(self.queue, &mut self.said))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}
