//! The host's end of a TCP flow.

use super::shaper::Shaper;
use socket2::SockRef;
use std::cell::{Cell, OnceCell};
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

/// How long an upstream connection rests before the kernel asks whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(75);

pub enum Upstream {
    Tcp(Paced),
    /// Somebody in this process.
    Local(UnixStream),
}

/// Connect to `address`. Never a mapped address: an IPv6 socket stays with IPv6.
pub async fn dial(address: IpAddr, port: u16) -> io::Result<TcpStream> {
    let socket = match address {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.is_ipv6() {
        SockRef::from(&socket).set_only_v6(true)?;
    }
    socket.connect(SocketAddr::new(address, port)).await
}

impl Upstream {
    pub async fn connect(address: IpAddr, port: u16) -> io::Result<Upstream> {
        Upstream::over(dial(address, port).await?)
    }

    /// A connection that exists, with the options that every one has.
    pub fn over(stream: TcpStream) -> io::Result<Upstream> {
        let options = SockRef::from(&stream);
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
        options.set_tcp_keepalive(&keepalive.with_interval(KEEPALIVE))?;
        stream.set_nodelay(true)?;
        Ok(Upstream::Tcp(stream.into()))
    }

    pub fn read(&self, space: &mut [u8]) -> io::Result<usize> {
        match self {
            Upstream::Tcp(stream) => stream.try_read(space),
            Upstream::Local(stream) => {
                let count = stream.try_read(space)?;
                if is_short(count, space) {
                    let _ = stream.try_io(Interest::READABLE, nothing);
                }
                Ok(count)
            }
        }
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Upstream::Tcp(stream) => stream.try_write(bytes),
            Upstream::Local(stream) => stream.try_write(bytes),
        }
    }

    pub async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Upstream::Tcp(stream) => stream.ready(interest).await,
            Upstream::Local(stream) => stream.ready(interest).await,
        }
    }

    /// Move no more than `shaper` allows from now on. What is in this process is not counted.
    pub fn pace(&self, shaper: &Rc<Shaper>) {
        if let Upstream::Tcp(stream) = self {
            let _ = stream.shaper.set(Rc::clone(shaper));
        }
    }

    /// Forget what `held` would say.
    pub fn release(&self) {
        if let Upstream::Tcp(stream) = self {
            stream.held_read.set(false);
            stream.held_write.set(false);
        }
    }

    /// Whether reading and writing would have gone on but for the rate.
    pub fn held(&self) -> (bool, bool) {
        match self {
            Upstream::Tcp(stream) => (stream.held_read.get(), stream.held_write.get()),
            Upstream::Local(_) => (false, false),
        }
    }

    /// Nothing more will be written.
    pub fn finish(&self) {
        let _ = match self {
            Upstream::Tcp(stream) => SockRef::from(&**stream).shutdown(Shutdown::Write),
            Upstream::Local(stream) => SockRef::from(stream).shutdown(Shutdown::Write),
        };
    }

    /// Closing will reset the connection instead of ending it.
    pub fn reset(&self) {
        if let Upstream::Tcp(stream) = self {
            let _ = SockRef::from(&**stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// A connection that moves no more than a rate allows. Where that is nothing, it would block.
pub struct Paced {
    stream: TcpStream,
    shaper: OnceCell<Rc<Shaper>>,
    held_read: Cell<bool>,
    held_write: Cell<bool>,
}

impl From<TcpStream> for Paced {
    fn from(stream: TcpStream) -> Paced {
        Paced {
            stream,
            shaper: OnceCell::new(),
            held_read: Cell::new(false),
            held_write: Cell::new(false),
        }
    }
}

impl Deref for Paced {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

/// Whether a read of `count` bytes into `space` took all that there was. What comes later, the end too, is told by
/// the kernel (epoll(7), edge-triggered): to ask for it would say that there is nothing.
fn is_short(count: usize, space: &[u8]) -> bool {
    0 < count && count < space.len()
}

/// For tokio, to forget that there was something.
fn nothing() -> io::Result<()> {
    Err(io::ErrorKind::WouldBlock.into())
}

impl Paced {
    fn read_some(&self, space: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.try_read(space)?;
        if is_short(count, space) {
            let _ = self.stream.try_io(Interest::READABLE, nothing);
        }
        Ok(count)
    }

    fn try_read(&self, space: &mut [u8]) -> io::Result<usize> {
        let Some(shaper) = self.shaper.get().filter(|all| all.ingress.bounds()) else {
            return self.read_some(space);
        };
        let most = shaper.ingress.allowance(space.len());
        if most == 0 && !space.is_empty() {
            self.held_read.set(true);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.read_some(&mut space[..most])?;
        if count > 0 {
            shaper.ingress.spend(count);
        }
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let Some(shaper) = self.shaper.get().filter(|all| all.egress.bounds()) else {
            return self.stream.try_write(bytes);
        };
        let most = shaper.egress.allowance(bytes.len());
        if most == 0 && !bytes.is_empty() {
            self.held_write.set(true);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self.stream.try_write(&bytes[..most])?;
        shaper.egress.spend(count);
        Ok(count)
    }
}
