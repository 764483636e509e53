//! What carries the frames of a link: a stream socket, or a TAP of Linux
//! (Documentation/networking/tuntap.rst of the kernel).

use super::link::{Queue, Reader, LARGEST};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{opcode, Setter, Updater};
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketType};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

const IFF_TAP: u16 = 0x0002;
const IFF_VNET_HDR: u16 = 0x4000;

/// The kernel's `struct ifreq`, of which the flags are at 16.
const IFREQ: usize = 40;
const TUNGETIFF: rustix::ioctl::Opcode = opcode::read::<u32>(b'T', 210);
const TUNSETCARRIER: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 226);

/// Frames of a TAP that are read before the flows have their turn: as much as a socket gives at once.
const BATCH: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cable {
    /// Frames after their lengths, as many at once as there are.
    Stream,
    /// A device: each read and each write is one frame.
    Tap,
}

/// What came from a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// Something; `more` if there may be more at once.
    Frames { more: bool },
    /// Nothing yet.
    Nothing,
    /// The other end is gone.
    End,
}

impl Cable {
    /// What `link` is. A TAP does not block from then on, for whoever has it.
    pub fn of(link: BorrowedFd<'_>) -> io::Result<Cable> {
        match rustix::net::sockopt::socket_type(link) {
            Ok(SocketType::STREAM) => Ok(Cable::Stream),
            Ok(_) | Err(Errno::NOTSOCK) => {
                let flags = tap_flags(link).unwrap_or_default();
                let wrong = match flags {
                    _ if flags & IFF_TAP == 0 => "the link is neither a stream socket nor a TAP",
                    // Of packet information (no IFF_NO_PI) the kernel does not tell: it gives that bit another meaning here.
                    _ if flags & IFF_VNET_HDR != 0 => {
                        "the link is a TAP that has headers before its frames: make it without IFF_VNET_HDR"
                    }
                    _ => {
                        let flags = rustix::fs::fcntl_getfl(link)?;
                        rustix::fs::fcntl_setfl(link, flags | OFlags::NONBLOCK)?;
                        return Ok(Cable::Tap);
                    }
                };
                Err(io::Error::new(io::ErrorKind::InvalidInput, wrong))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Read what is there, up to a batch.
    pub fn receive(self, link: impl AsFd, reader: &mut Reader) -> io::Result<Arrival> {
        match self {
            Cable::Stream => {
                let space = reader.space();
                let most = space.len();
                match rustix::net::recv(link, space, RecvFlags::DONTWAIT) {
                    Ok((0, _)) => Ok(Arrival::End),
                    Ok((count, _)) => {
                        reader.filled(count);
                        // Less than there was room for: the kernel has no more, and tells when it has
                        // (epoll(7), edge-triggered). Asking again would say so.
                        let more = count == most;
                        Ok(Arrival::Frames { more })
                    }
                    Err(Errno::INTR) => Ok(Arrival::Frames { more: true }),
                    Err(Errno::AGAIN) => Ok(Arrival::Nothing),
                    Err(Errno::CONNRESET) => Ok(Arrival::End),
                    Err(error) => Err(error.into()),
                }
            }
            Cable::Tap => {
                for taken in 0..BATCH {
                    let Some((head, body)) = reader.space().split_first_chunk_mut::<4>() else {
                        break;
                    };
                    // What does not fit into the room for a frame would be cut off.
                    let Some(room) = body.get_mut(..LARGEST) else {
                        break;
                    };
                    match rustix::io::read(&link, room) {
                        Err(Errno::INTR) => {}
                        Err(Errno::AGAIN) if taken == 0 => return Ok(Arrival::Nothing),
                        Err(Errno::AGAIN) => return Ok(Arrival::Frames { more: false }),
                        // The interface was removed.
                        Ok(0) | Err(Errno::BADFD) => return Ok(Arrival::End),
                        Ok(count) => {
                            *head = (count as u32).to_be_bytes();
                            reader.filled(4 + count);
                        }
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(Arrival::Frames { more: true })
            }
        }
    }

    /// Write what the link takes now.
    pub fn send(self, link: impl AsFd, queue: &mut Queue) -> io::Result<()> {
        while !queue.pending().is_empty() {
            let written = match self {
                Cable::Stream => {
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    rustix::net::send(&link, queue.pending(), flags)
                }
                Cable::Tap => {
                    let (whole, frame) = queue.first();
                    match rustix::io::write(&link, frame) {
                        // An interface that is down, or a kernel without memory for it, loses the frame like any wire.
                        Ok(_) | Err(Errno::IO | Errno::NOMEM | Errno::NOBUFS) => Ok(whole),
                        Err(error) => Err(error),
                    }
                }
            };
            match written {
                Ok(count) => queue.advance(count),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Take the link down, whoever else holds it.
    pub fn cut(self, link: impl AsFd) {
        // One that is gone is down.
        let _ = match self {
            Cable::Stream => rustix::net::shutdown(link, Shutdown::Both),
            // SAFETY: the request takes a pointer to an int, which `Setter` passes.
            Cable::Tap => unsafe {
                rustix::ioctl::ioctl(link, Setter::<TUNSETCARRIER, i32>::new(0))
            },
        };
    }
}

/// The flags with which a TAP or TUN was made; None for anything else.
fn tap_flags(link: BorrowedFd<'_>) -> Option<u16> {
    let mut request = [0; IFREQ];
    // SAFETY: the request writes one `struct ifreq`, which has `IFREQ` bytes on 64-bit machines, and has no other
    // effect on what it does not know.
    unsafe { rustix::ioctl::ioctl(link, Updater::<TUNGETIFF, _>::new(&mut request)) }.ok()?;
    Some(u16::from_ne_bytes([request[16], request[17]]))
}
