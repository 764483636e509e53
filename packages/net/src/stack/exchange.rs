//! One question to one name server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// The bit of the flags' first byte that says that the answer did not fit.
const TRUNCATED: u8 = 2;

/// A number that nobody can guess who does not see the question (RFC 5452 4.3).
pub fn id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

/// Ask from a port of its own, which the kernel chooses at random; again over TCP if the answer does not fit.
/// What `fits` does not take is somebody's guess: the right answer may still come.
pub async fn ask(
    server: SocketAddr,
    question: &[u8],
    fits: impl Fn(&[u8]) -> bool,
) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: only this server is heard, and its refusal ends the wait.
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; 4096];
    let count = loop {
        let count = socket.recv(&mut answer).await?;
        if fits(&answer[..count]) {
            break count;
        }
    };
    answer.truncate(count);
    if answer.get(2).is_some_and(|flags| flags & TRUNCATED == 0) {
        return Ok(answer);
    }
    let mut stream = TcpStream::connect(server).await?;
    let framed = [&(question.len() as u16).to_be_bytes()[..], question].concat();
    stream.write_all(&framed).await?;
    let length = stream.read_u16().await?;
    answer.resize(usize::from(length), 0);
    stream.read_exact(&mut answer).await?;
    match fits(&answer) && answer.get(2).is_some_and(|flags| flags & TRUNCATED == 0) {
        true => Ok(answer),
        false => Err(io::ErrorKind::InvalidData.into()),
    }
}
