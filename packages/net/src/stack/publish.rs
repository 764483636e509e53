//! Ports of the host that lead into the guest: bound before the guest runs, all of them or none.

use crate::policy::Protocol;
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// Connections that wait for the stack to take them.
const BACKLOG: i32 = 1024;

/// A port of the host and the one of the guest that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Port 0: one that is free.
    pub host: SocketAddr,
    pub guest: u16,
}

/// A binding whose port of the host is taken.
pub struct Published {
    pub binding: Binding,
    pub socket: Listening,
}

pub enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Published {
    /// The address that is bound, with the port that the host chose if it was asked to.
    pub fn address(&self) -> io::Result<SocketAddr> {
        match &self.socket {
            Listening::Tcp(listener) => listener.local_addr(),
            Listening::Udp(socket) => socket.local_addr(),
        }
    }
}

/// A port of the host that cannot be had.
#[derive(Debug)]
pub struct PortUnavailable {
    pub binding: Binding,
    pub error: io::Error,
}

impl PortUnavailable {
    /// What is in the way, in words.
    pub fn reason(&self) -> String {
        match Errno::from_io_error(&self.error) {
            Some(Errno::ADDRINUSE) => "another program, or another sandbox, has it".to_owned(),
            Some(Errno::ADDRNOTAVAIL) => "this machine does not have that address".to_owned(),
            Some(Errno::ACCESS) => {
                "this user may not bind it (net.ipv4.ip_unprivileged_port_start)".to_owned()
            }
            _ => self.error.to_string(),
        }
    }
}

impl fmt::Display for PortUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Binding { protocol, host, .. } = self.binding;
        let protocol = protocol.as_str();
        write!(
            f,
            "{protocol} port {host} is not available: {}",
            self.reason()
        )
    }
}

impl std::error::Error for PortUnavailable {}

/// Bind every port. What was bound before one that cannot be is let go again.
pub fn bind(bindings: &[Binding]) -> Result<Vec<Published>, PortUnavailable> {
    let published = bindings.iter().map(|binding| match open(binding) {
        Ok(socket) => Ok(Published {
            binding: *binding,
            socket,
        }),
        Err(error) => Err(PortUnavailable {
            binding: *binding,
            error,
        }),
    });
    published.collect()
}

fn open(binding: &Binding) -> io::Result<Listening> {
    let domain = Domain::for_address(binding.host);
    let tcp = binding.protocol == Protocol::Tcp;
    let kind = if tcp { Type::STREAM } else { Type::DGRAM };
    let socket = Socket::new(domain, kind.nonblocking(), None)?;
    if binding.host.is_ipv6() {
        // `::` is all of IPv6; peers of IPv4 would come as mapped addresses.
        socket.set_only_v6(true)?;
    }
    if tcp {
        // Connections of a sandbox that ended may still linger. With UDP it would let two have one port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&binding.host.into())?;
    if !tcp {
        return Ok(Listening::Udp(socket.into()));
    }
    socket.listen(BACKLOG)?;
    Ok(Listening::Tcp(socket.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(protocol: Protocol, host: &str) -> Binding {
        Binding {
            protocol,
            host: host.parse().unwrap(),
            guest: 80,
        }
    }

    #[test]
    fn n32_the_second_of_one_port_fails_and_leaves_nothing_bound() {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let free = binding(protocol, "127.0.0.1:0");
            let first = bind(&[free]).unwrap();
            let taken = Binding {
                host: first[0].address().unwrap(),
                ..free
            };
            let other = bind(&[free]).unwrap()[0].address().unwrap();
            let other = Binding {
                host: other,
                ..free
            };
            let error = bind(&[other, taken]).err().unwrap();
            assert_eq!(error.binding, taken);
            let told = format!(
                "{} port {} is not available: another program, or another sandbox, has it",
                protocol.as_str(),
                taken.host
            );
            assert_eq!(error.to_string(), told);
            // The one before it can be had again.
            bind(&[other]).unwrap();
        }
    }

    #[test]
    fn an_address_of_another_machine_is_named() {
        let error = bind(&[binding(Protocol::Tcp, "192.0.2.1:8080")])
            .err()
            .unwrap();
        let told =
            "tcp port 192.0.2.1:8080 is not available: this machine does not have that address";
        assert_eq!(error.to_string(), told);
    }

    #[test]
    fn both_families_have_a_port_of_the_same_number() {
        let v6 = bind(&[binding(Protocol::Tcp, "[::]:0")]).unwrap();
        let port = v6[0].address().unwrap().port();
        bind(&[binding(Protocol::Tcp, &format!("0.0.0.0:{port}"))]).unwrap();
    }
}
