//! The name in a TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3), however it is cut into records.

use super::{Bytes, Host, Progress};
use crate::policy::Name;

/// The longest handshake message that is read. Real ones, post-quantum shares included, are
/// shorter than 4 KiB.
pub const LONGEST: usize = 16 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    Name(Name),
    Absent,
    /// An address, which RFC 6066 forbids.
    Address,
    /// More than one name in the list.
    Several,
    /// Bytes that are no host name.
    Invalid,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    pub server_name: ServerName,
    /// An encrypted ClientHello is inside (RFC 9849, extension 0xfe0d), or something that cannot
    /// be told from one.
    pub encrypted: bool,
    /// The protocols of ALPN (RFC 7301) in the client's order.
    pub protocols: Vec<Vec<u8>>,
}

impl ClientHello {
    /// The name that the client states. None, too, where an encrypted ClientHello may name
    /// another one, or where there are several.
    pub fn name(&self) -> Option<&Name> {
        match &self.server_name {
            ServerName::Name(name) if !self.encrypted => Some(name),
            _ => None,
        }
    }
}

/// Fed with what a TCP client sends first.
#[derive(Debug, Default)]
pub struct Reader {
    /// The header of the record that is being read.
    header: Vec<u8>,
    /// Bytes of that record's content that are still to come.
    left: usize,
    message: Vec<u8>,
}

impl Reader {
    /// Bytes after the record in which the message ends are left alone.
    pub fn feed(&mut self, bytes: &[u8]) -> Progress<ClientHello> {
        self.read(bytes).1
    }

    /// The number of bytes that were read comes first.
    pub fn read(&mut self, all: &[u8]) -> (usize, Progress<ClientHello>) {
        let mut bytes = all;
        let progress = self.advance(&mut bytes);
        (all.len() - bytes.len(), progress)
    }

    fn advance(&mut self, bytes: &mut &[u8]) -> Progress<ClientHello> {
        loop {
            if self.left == 0 {
                let (taken, rest) = bytes.split_at(bytes.len().min(5 - self.header.len()));
                self.header.extend_from_slice(taken);
                *bytes = rest;
                // ContentType handshake, ProtocolVersion 3.x.
                let fits = self
                    .header
                    .iter()
                    .zip([22, 3])
                    .all(|(seen, wanted)| *seen == wanted);
                if !fits && self.message.is_empty() {
                    return Progress::NotThis;
                } else if !fits {
                    return Progress::Malformed("another record inside the ClientHello");
                }
                if self.header.len() < 5 {
                    return Progress::NeedMore;
                }
                self.left = usize::from(u16::from_be_bytes([self.header[3], self.header[4]]));
                self.header.clear();
                if self.left == 0 || self.left > 16 * 1024 {
                    return Progress::Malformed("a TLS record of a length that none has");
                }
            }
            let (taken, rest) = bytes.split_at(bytes.len().min(self.left));
            self.message.extend_from_slice(taken);
            self.left -= taken.len();
            *bytes = rest;
            if let Some(done) = self.whole() {
                return done;
            }
            if bytes.is_empty() {
                return Progress::NeedMore;
            }
        }
    }

    fn whole(&self) -> Option<Progress<ClientHello>> {
        if *self.message.first()? != 1 {
            return Some(Progress::Malformed("the first message is no ClientHello"));
        }
        let length = self.message.get(1..4)?;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if length > LONGEST {
            return Some(Progress::Malformed("a ClientHello that is too long"));
        }
        let body = self.message.get(4..4 + length)?;
        // Messages share no record with a ClientHello (RFC 8446 5.1: keys may change behind it).
        if self.message.len() + self.left > 4 + length {
            return Some(Progress::Malformed("more in a record than a ClientHello"));
        }
        Some(match parse(Bytes(body)) {
            Some(hello) => Progress::Found(hello),
            None => Progress::Malformed("a ClientHello whose lengths do not fit"),
        })
    }
}

fn parse(mut body: Bytes<'_>) -> Option<ClientHello> {
    let mut hello = ClientHello {
        server_name: ServerName::Absent,
        encrypted: false,
        protocols: Vec::new(),
    };
    body.take(2 + 32)?; // version, random
    body.short()?; // session id
    body.long()?; // cipher suites
    body.short()?; // compression methods
    if body.is_empty() {
        return Some(hello); // no extensions
    }
    let mut extensions = body.long()?;
    if !body.is_empty() {
        return None;
    }
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let mut data = extensions.long()?;
        // RFC 8446 4.2: no two of a kind, lest each reader takes another one.
        if seen.contains(&kind) {
            return None;
        }
        seen.push(kind);
        match kind {
            0 => hello.server_name = server_name(&mut data)?,
            16 => hello.protocols = protocols(&mut data)?,
            0xfe0d => hello.encrypted = true,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(data: &mut Bytes<'_>) -> Option<ServerName> {
    let mut list = data.long()?;
    if !data.is_empty() || list.is_empty() {
        return None;
    }
    let mut found = None;
    while !list.is_empty() {
        let kind = list.u8()?;
        let Bytes(name) = list.long()?;
        if found.is_some() || kind != 0 {
            found = Some(ServerName::Several);
            continue;
        }
        let text = std::str::from_utf8(name).unwrap_or_default();
        found = Some(match Host::parse(text) {
            Some(Host::Name(name)) => ServerName::Name(name),
            Some(Host::Address(_)) => ServerName::Address,
            None if text.parse::<std::net::IpAddr>().is_ok() => ServerName::Address,
            None if crate::policy::name::is_number(text) => ServerName::Address,
            None => ServerName::Invalid,
        });
    }
    found
}

fn protocols(data: &mut Bytes<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = data.long()?;
    let mut protocols = Vec::new();
    while !list.is_empty() {
        protocols.push(list.short()?.0.to_vec());
    }
    data.is_empty().then_some(protocols)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{in_pieces, whole_and_in_pieces};
    use super::*;
    use proptest::prelude::*;

    fn prefixed(width: usize, bytes: &[u8]) -> Vec<u8> {
        let length = (bytes.len() as u32).to_be_bytes();
        [&length[4 - width..], bytes].concat()
    }

    fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &prefixed(2, data)].concat()
    }

    fn names(names: &[&str]) -> Vec<u8> {
        let list: Vec<u8> = names
            .iter()
            .flat_map(|name| [&[0][..], &prefixed(2, name.as_bytes())].concat())
            .collect();
        extension(0, &prefixed(2, &list))
    }

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend(prefixed(1, &[9; 32]));
        body.extend(prefixed(2, &[0x13, 1, 0x13, 2]));
        body.extend(prefixed(1, &[0]));
        body.extend(prefixed(2, extensions));
        [&[1][..], &prefixed(3, &body)].concat()
    }

    /// `message` in records of at most `size` bytes.
    fn records(message: &[u8], size: usize) -> Vec<u8> {
        message
            .chunks(size)
            .flat_map(|chunk| [&[22, 3, 1][..], &prefixed(2, chunk)].concat())
            .collect()
    }

    fn read(bytes: &[u8]) -> Progress<ClientHello> {
        whole_and_in_pieces(bytes, Reader::default, Reader::feed)
    }

    fn found(extensions: &[u8]) -> ClientHello {
        match read(&records(&message(extensions), 16384)) {
            Progress::Found(hello) => hello,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_name_is_found() {
        let alpn = extension(16, &prefixed(2, &[2, b'h', b'2']));
        let hello = found(&[extension(10, &[0, 2, 0, 29]), names(&["Example.com"]), alpn].concat());
        assert_eq!(hello.name().unwrap().as_str(), "example.com");
        assert_eq!(hello.protocols, [b"h2"]);
    }

    #[test]
    fn n06_what_states_no_name() {
        for (list, expected) in [
            (&["192.0.2.1"][..], ServerName::Address),
            (&["2001:db8::1"], ServerName::Address),
            (&["2130706433"], ServerName::Address),
            (&["example.com", "evil.example"], ServerName::Several),
            (&["example.com", "example.com"], ServerName::Several),
            (&[""], ServerName::Invalid),
            (&["exa\0mple.com"], ServerName::Invalid),
            (&["*.example.com"], ServerName::Invalid),
            (&["example.com:443"], ServerName::Invalid),
        ] {
            let hello = found(&names(list));
            assert_eq!(hello.server_name, expected, "{list:?}");
            assert_eq!(hello.name(), None);
        }
        assert_eq!(found(&[]).server_name, ServerName::Absent);
        let hidden = found(&[names(&["example.com"]), extension(0xfe0d, &[1])].concat());
        assert!(hidden.encrypted);
        assert_eq!(hidden.name(), None);
    }

    #[test]
    fn n06_a_hello_may_come_in_many_records_and_segments_but_not_without_end() {
        let hello = message(&[names(&["example.com"]), extension(21, &[0; 15_000])].concat());
        for size in [1, 3, 100, 16384] {
            let bytes = records(&hello, size);
            let mut reader = Reader::default();
            let seen = in_pieces(&bytes, &[bytes.len() / 5], |piece| reader.feed(piece));
            assert!(matches!(seen, Progress::Found(_)), "{size}: {seen:?}");
        }
        let long = message(&extension(21, &[0; 17_000]));
        assert!(matches!(
            read(&records(&long, 16384)),
            Progress::Malformed(_)
        ));
    }

    #[test]
    fn another_protocol_is_told_by_its_first_bytes() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-x\r\n",
            b"\x80\x2e\x01",
            b"\x16\x02",
        ] {
            assert_eq!(read(bytes), Progress::NotThis);
        }
        assert_eq!(read(b"\x16"), Progress::NeedMore);
        assert_eq!(read(b""), Progress::NeedMore);
    }

    #[test]
    fn what_can_be_understood_in_two_ways_is_malformed() {
        let name = names(&["example.com"]);
        let whole = message(&name);
        let mut between = records(&whole[..20], 20);
        between.extend([20, 3, 3, 0, 1, 1]);
        between.extend(records(&whole[20..], 20));
        let empty = [&[22, 3, 1, 0, 0][..], &records(&whole, 16384)].concat();
        let twice = records(
            &message(&[name.clone(), names(&["evil.example"])].concat()),
            16384,
        );
        let cut = records(&message(&extension(0, &[0, 50, 0])), 16384);
        let none = records(&message(&extension(0, &[])), 16384);
        let server = records(&[2, 0, 0, 1, 0], 16384);
        for bytes in [
            between,
            empty,
            twice,
            cut,
            none,
            server,
            vec![22, 3, 1, 0xff, 0xff],
        ] {
            let seen = read(&bytes);
            assert!(matches!(seen, Progress::Malformed(_)), "{seen:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(
            change in prop::collection::vec((0..200usize, any::<u8>()), 0..6),
            size in 1..200usize,
        ) {
            let mut bytes = records(&message(&names(&["a.example", "b"])), size);
            for (at, value) in change {
                let length = bytes.len();
                bytes[at % length] = value;
            }
            read(&bytes);
        }
    }
}
