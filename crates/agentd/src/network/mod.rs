//! The network card: brought up at boot, so that a saved machine has it up, and given its addresses by
//! `configure`, by rtnetlink(7).

mod interface;
mod netlink;
mod request;
mod reset;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::log;
use interface::Interface;
use netlink::{Message, Talk};
pub use request::{Address, Network};

/// As the kernel calls it; the workload may give it another name later.
const NAME: &str = "eth0";

/// What the kernel would do by itself with IPv6: nothing is asked of routers, which only the host could be, nor
/// of others on the link, of whom there are none. Without an address of its own the card is silent.
const SETTINGS: [(&str, &str); 4] = [
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    ("addr_gen_mode", "1"),
];

/// The machine's network card.
pub struct Card {
    index: u32,
    /// Kept, so that a saved machine has it: making sockets and closing them was a fifth of what a restored one
    /// had to do for its addresses.
    talk: Talk,
    /// What it was given last: a copy of the machine gets others.
    addresses: Vec<Address>,
}

impl Card {
    /// Brings it up, without an address; None in a machine that has none.
    pub fn prepare() -> io::Result<Option<Card>> {
        // SAFETY: the name is a valid C string.
        let index = unsafe { libc::if_nametoindex(c"eth0".as_ptr()) };
        if index == 0 {
            return Ok(None);
        }
        for (name, value) in SETTINGS {
            // A kernel may have been built without IPv6.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{NAME}/{name}"), value);
        }
        up(NAME)?;
        let card = Card {
            index,
            talk: Talk::open()?,
            addresses: Vec::new(),
        };
        // What every card with IPv6 has (RFC 4291, section 2.5.6). Each link is one of its own, so it may be the
        // same on all.
        let link_local = Address {
            ip: std::net::Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into(),
            prefix: 64,
        };
        let message = Message::address(libc::RTM_NEWADDR, index, &link_local);
        if let Err(error) = card.talk.ask(&[message]) {
            log::error(&format!("no IPv6: {error}"));
        }
        Ok(Some(card))
    }

    /// Gives it these addresses in place of those it had. The Ethernet address comes first: nothing is sent
    /// without an address of the network. What is as it should be is left alone: each change is told to all of
    /// the kernel, which takes milliseconds in a machine that was restored just now.
    pub fn configure(&mut self, network: &Network) -> io::Result<()> {
        self.forget()?;
        let interface = Interface::new(self.talk.as_fd(), self.index)?;
        interface.set_mac(&network.mac)?;
        if interface.mtu()? != network.mtu {
            interface.set_mtu(network.mtu)?;
        }
        let mut messages = Vec::new();
        for address in &network.addresses {
            messages.push(Message::address(libc::RTM_NEWADDR, self.index, address));
        }
        for gateway in &network.gateways {
            messages.push(Message::default_route(self.index, gateway));
        }
        self.talk.ask(&messages)?;
        self.addresses = network.addresses.clone();
        Ok(())
    }

    /// Takes back what it was given.
    fn forget(&mut self) -> io::Result<()> {
        for address in self.addresses.drain(..) {
            let message = Message::address(libc::RTM_DELADDR, self.index, &address);
            match self.talk.ask(&[message]) {
                // The workload may have removed it itself.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Does what `configure` says with the card. In a copy the workload may have put the card elsewhere, where it
/// is not to be reached: then the copy has no network. Its connections, which are its source's, are reset; `proc` is /proc.
pub fn configure(
    card: Option<&mut Card>,
    network: Option<&Network>,
    is_copy: bool,
    proc: &OwnedFd,
) -> io::Result<()> {
    let former: Vec<_> = card
        .iter()
        .flat_map(|card| card.addresses.iter().map(|address| address.ip))
        .collect();
    let result = match (card, network) {
        (Some(card), Some(network)) => card.configure(network),
        (Some(card), None) => card.forget(),
        (None, Some(_)) => Err(io::Error::other("the machine has no network card")),
        (None, None) => Ok(()),
    };
    if is_copy {
        reset::reset(proc, &former);
    }
    match result {
        Err(error) if is_copy => {
            log::error(&format!("the copy has no network: {error}"));
            Ok(())
        }
        other => other,
    }
}

/// Brings an interface up. The kernel gives the loopback interface 127.0.0.1 and ::1 by that.
pub fn up(name: &str) -> io::Result<()> {
    // SAFETY: the name is a valid C string.
    let index = unsafe { libc::if_nametoindex(CString::new(name)?.as_ptr()) };
    Interface::new(Talk::open()?.as_fd(), index)?.up()
}
