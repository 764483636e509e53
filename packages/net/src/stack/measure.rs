//! What a byte costs the thread of the stack, beside what it costs to be copied from one socket to another.
//!
//! `cargo test --release --no-default-features --lib measure -- --ignored --nocapture`

use super::testing::{allow_all, config, Guest};
use socket2::SockRef;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

const BYTES: usize = 256 << 20;

/// Seconds of processor time that the threads called `name` have had.
fn spent(name: &str) -> f64 {
    let mut ticks = 0.0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        if let Some((_, rest)) = stat.split_once(&format!("({name}) ")) {
            // The letter for the state is no number: utime and stime are the 11th and 12th behind it.
            let numbers = rest
                .split(' ')
                .filter_map(|field| field.parse::<f64>().ok());
            ticks += numbers.skip(10).take(2).sum::<f64>();
        }
    }
    ticks / 100.0
}

/// A guest on a link with as much room as the system gives without privileges.
fn jumbo(mtu: usize) -> Guest {
    let ends = UnixStream::pair().unwrap();
    for end in [&ends.0, &ends.1] {
        SockRef::from(end).set_send_buffer_size(2 << 20).unwrap();
    }
    let mut config = config();
    config.mtu = mtu;
    Guest::over(ends, config, allow_all(), Box::new(super::dns::Refuser))
}

fn sink() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Read all that the only client of `listener` sends.
fn drain(listener: TcpListener) -> thread::JoinHandle<usize> {
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 20];
        let mut client = listener.accept().unwrap().0;
        let mut all = 0;
        while let Ok(count @ 1..) = client.read(&mut buffer) {
            all += count;
        }
        all
    })
}

/// Processor seconds of a copy of `BYTES` from a stream socket to a TCP socket.
fn plain_copy() -> f64 {
    let listener = sink();
    let mut target = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let drained = drain(listener);
    let (mut near, mut far) = UnixStream::pair().unwrap();
    let copy = thread::Builder::new().name("copy".to_owned());
    let copy = copy.spawn(move || {
        let mut buffer = vec![0; 256 << 10];
        while let Ok(count @ 1..) = far.read(&mut buffer) {
            target.write_all(&buffer[..count]).unwrap();
        }
        spent("copy")
    });
    let chunk = vec![1; 64 << 10];
    for _ in 0..BYTES / chunk.len() {
        near.write_all(&chunk).unwrap();
    }
    drop(near);
    let spent = copy.unwrap().join().unwrap();
    assert_eq!(drained.join().unwrap(), BYTES);
    spent
}

/// Processor seconds of the stack for `BYTES` from the guest.
fn from_guest(mtu: usize) -> f64 {
    let listener = sink();
    let port = listener.local_addr().unwrap().port();
    let drained = drain(listener);
    let mut guest = jumbo(mtu);
    let handle = guest.connect_with("127.0.0.1", port, 4 << 20);
    guest.until("connected", |guest| guest.socket(handle).may_send());
    // Binary, for the readers of names.
    let chunk = vec![0; 1 << 20];
    let mut sent = 0;
    guest.until("sent", |guest| {
        let most = chunk.len().min(BYTES - sent);
        sent += guest.socket(handle).send_slice(&chunk[..most]).unwrap();
        sent == BYTES
    });
    guest.socket(handle).close();
    guest.read_to_end(handle);
    assert_eq!(drained.join().unwrap(), BYTES);
    spent("msb-net")
}

/// Processor seconds of the stack for `BYTES` to the guest.
fn to_guest(mtu: usize) -> f64 {
    let listener = sink();
    let port = listener.local_addr().unwrap().port();
    let source = thread::spawn(move || {
        let mut client = listener.accept().unwrap().0;
        let chunk = vec![1; 1 << 20];
        (0..BYTES / chunk.len())
            .try_for_each(|_| client.write_all(&chunk))
            .unwrap();
    });
    let mut guest = jumbo(mtu);
    let handle = guest.connect_with("127.0.0.1", port, 4 << 20);
    guest.until("connected", |guest| guest.socket(handle).may_send());
    let mut all = 0;
    guest.until("received", |guest| {
        let socket = guest.socket(handle);
        while socket.can_recv() {
            all += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap();
        }
        all == BYTES
    });
    source.join().unwrap();
    spent("msb-net")
}

#[test]
#[ignore = "a measurement"]
fn what_a_byte_costs() {
    let gigabyte = BYTES as f64 / 1e9;
    let plain = plain_copy();
    println!("copied: {:.2} s/GB", plain / gigabyte);
    for mtu in [1500, 65_520] {
        for (what, seconds) in [("from", from_guest(mtu)), ("to", to_guest(mtu))] {
            let ratio = seconds / plain;
            println!(
                "MTU {mtu}, {what} the guest: {:.2} s/GB, {ratio:.1} copies",
                seconds / gigabyte
            );
        }
    }
}
