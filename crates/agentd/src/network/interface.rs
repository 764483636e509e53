//! What one interface is told by netdevice(7): less for the kernel to do than a message of rtnetlink(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys;

/// An interface under the name that it has now.
pub struct Interface<'a> {
    socket: BorrowedFd<'a>,
    /// With the name; each request has a value beside it.
    request: libc::ifreq,
}

impl<'a> Interface<'a> {
    /// `socket`: of any family.
    pub fn new(socket: BorrowedFd<'a>, index: u32) -> io::Result<Interface<'a>> {
        let mut interface = Interface {
            socket,
            // SAFETY: all-zero bytes are a valid ifreq.
            request: unsafe { std::mem::zeroed() },
        };
        // An index of the kernel's fits.
        interface.request.ifr_ifru.ifru_ifindex = index as i32;
        interface.request = interface.ask(libc::SIOCGIFNAME, interface.request)?;
        Ok(interface)
    }

    pub fn up(&self) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.ask(libc::SIOCSIFFLAGS, request).map(drop)
    }

    pub fn set_mac(&self, mac: &[u8; 6]) -> io::Result<()> {
        let mut request = self.request;
        let mut data = [0; 14];
        for (to, from) in data.iter_mut().zip(mac) {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_hwaddr = libc::sockaddr {
            sa_family: libc::ARPHRD_ETHER,
            sa_data: data,
        };
        self.ask(libc::SIOCSIFHWADDR, request).map(drop)
    }

    /// Bytes of the largest packet.
    pub fn mtu(&self) -> io::Result<u32> {
        let answer = self.ask(libc::SIOCGIFMTU, self.request)?;
        // SAFETY: SIOCGIFMTU fills this member.
        Ok(unsafe { answer.ifr_ifru.ifru_mtu } as u32)
    }

    pub fn set_mtu(&self, mtu: u32) -> io::Result<()> {
        let mut request = self.request;
        request.ifr_ifru.ifru_mtu = mtu as i32;
        self.ask(libc::SIOCSIFMTU, request).map(drop)
    }

    fn ask(&self, what: libc::c_ulong, mut request: libc::ifreq) -> io::Result<libc::ifreq> {
        // SAFETY: all of these read and write one ifreq, and nothing that it points to.
        sys::check(unsafe { libc::ioctl(self.socket.as_raw_fd(), what as _, &mut request) })?;
        Ok(request)
    }
}
