//! Header fields of HTTP/2 (HPACK, RFC 7541): a decoder, as far as it takes to read what a client asks for.

use super::Bytes;
use std::collections::VecDeque;

/// The size of a dynamic table before anybody changes it (RFC 9113 6.5.2).
const TABLE: usize = 4096;
/// The largest that a client may ask for.
const LARGEST_TABLE: usize = 64 << 10;
/// What a field costs in the table besides its bytes.
const OVERHEAD: usize = 32;
/// The most fields of one block, and bytes of them once decoded: a few bytes can stand for many.
const MOST_FIELDS: usize = 256;
const LARGEST_LIST: usize = 64 << 10;

pub type Field = (Vec<u8>, Vec<u8>);

/// RFC 7541 Appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"),
    (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"), (":status", "200"),
    (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"),
    (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""),
    ("accept", ""), ("access-control-allow-origin", ""), ("age", ""), ("allow", ""),
    ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""),
    ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""),
    ("if-match", ""), ("if-modified-since", ""), ("if-none-match", ""), ("if-range", ""),
    ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""),
    ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""),
    ("via", ""), ("www-authenticate", ""),
];

/// The number of bits of each byte's code (RFC 7541 Appendix B). The code is canonical: codes of one
/// length follow each other in the order of the bytes, shorter ones come first.
#[rustfmt::skip]
const BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
/// The symbol that ends a string, which never appears in one.
const END: usize = 256;
const LONGEST_CODE: usize = 30;

/// The symbols in the order of their codes, and per length: the first code, how many, and where they are.
struct Huffman {
    symbols: [u16; 257],
    first: [u32; LONGEST_CODE + 1],
    count: [u32; LONGEST_CODE + 1],
    place: [usize; LONGEST_CODE + 1],
}

const HUFFMAN: Huffman = {
    let mut table = Huffman {
        symbols: [0; 257],
        first: [0; LONGEST_CODE + 1],
        count: [0; LONGEST_CODE + 1],
        place: [0; LONGEST_CODE + 1],
    };
    let (mut length, mut code, mut place) = (1, 0u32, 0);
    while length <= LONGEST_CODE {
        code <<= 1;
        table.first[length] = code;
        table.place[length] = place;
        let mut symbol = 0;
        while symbol < 257 {
            if BITS[symbol] as usize == length {
                table.symbols[place] = symbol as u16;
                place += 1;
                code += 1;
                table.count[length] += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    table
};

/// The text behind a Huffman code; None if it is none, or padded with other than the end's first bits.
fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::with_capacity(packed.len() * 8 / 5);
    let (mut code, mut length, mut ones) = (0u32, 0, true);
    for byte in packed {
        for shift in (0..8).rev() {
            let bit = u32::from(byte >> shift & 1);
            code = code << 1 | bit;
            ones &= bit == 1;
            length += 1;
            let index = code.wrapping_sub(HUFFMAN.first[length]);
            if index < HUFFMAN.count[length] {
                let symbol = usize::from(HUFFMAN.symbols[HUFFMAN.place[length] + index as usize]);
                if symbol == END {
                    return None;
                }
                text.push(symbol as u8);
                (code, length, ones) = (0, 0, true);
            } else if length == LONGEST_CODE {
                return None;
            }
        }
    }
    (length < 8 && ones).then_some(text)
}

/// The fields of one direction of a connection: each block depends on those before it.
#[derive(Debug)]
pub struct Decoder {
    /// The newest first.
    table: VecDeque<Field>,
    size: usize,
    most: usize,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder {
            table: VecDeque::new(),
            size: 0,
            most: TABLE,
        }
    }
}

impl Decoder {
    /// The fields of a whole block; None if it cannot be one, or is too large. The decoder is of no more use
    /// then.
    pub fn block(&mut self, block: &[u8]) -> Option<Vec<Field>> {
        let mut rest = Bytes(block);
        let mut fields: Vec<Field> = Vec::new();
        let mut decoded = 0;
        while let Some(first) = rest.u8() {
            let field = if first & 0x80 != 0 {
                self.at(integer(first, 7, &mut rest)?)?
            } else if first & 0x40 != 0 {
                let field = self.literal(first, 6, &mut rest)?;
                self.insert(field.clone());
                field
            } else if first & 0x20 != 0 {
                // Before the first field only (4.2).
                let most = integer(first, 5, &mut rest)?;
                if !fields.is_empty() || most > LARGEST_TABLE {
                    return None;
                }
                self.most = most;
                self.shrink(0);
                continue;
            } else {
                self.literal(first, 4, &mut rest)?
            };
            decoded += field.0.len() + field.1.len() + OVERHEAD;
            if fields.len() == MOST_FIELDS || decoded > LARGEST_LIST {
                return None;
            }
            fields.push(field);
        }
        Some(fields)
    }

    fn at(&self, index: usize) -> Option<Field> {
        match STATIC.get(index.checked_sub(1)?) {
            Some((name, value)) => Some((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
            None => self.table.get(index - 1 - STATIC.len()).cloned(),
        }
    }

    fn literal(&self, first: u8, bits: u32, rest: &mut Bytes<'_>) -> Option<Field> {
        let name = match integer(first, bits, rest)? {
            0 => string(rest)?,
            index => self.at(index)?.0,
        };
        Some((name, string(rest)?))
    }

    /// A field that is larger than the table empties it.
    fn insert(&mut self, field: Field) {
        let size = field.0.len() + field.1.len() + OVERHEAD;
        self.shrink(size);
        if size <= self.most {
            self.size += size;
            self.table.push_front(field);
        }
    }

    /// Forget the oldest until there is room for `more` bytes.
    fn shrink(&mut self, more: usize) {
        while self.size + more > self.most {
            let Some((name, value)) = self.table.pop_back() else {
                return;
            };
            self.size -= name.len() + value.len() + OVERHEAD;
        }
    }
}

/// A number that begins in the low `bits` bits of `first` (5.1). None beyond 2 MiB, which nothing here needs.
fn integer(first: u8, bits: u32, rest: &mut Bytes<'_>) -> Option<usize> {
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(first) & mask;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14] {
        let byte = rest.u8()?;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn string(rest: &mut Bytes<'_>) -> Option<Vec<u8>> {
    let first = rest.u8()?;
    let length = integer(first, 7, rest)?;
    let bytes = rest.take(length)?;
    match first & 0x80 {
        0 => Some(bytes.to_vec()),
        _ => unpack(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(hexadecimal: &str) -> Vec<u8> {
        let digits: Vec<u8> = hexadecimal
            .bytes()
            .filter(u8::is_ascii_hexdigit)
            .map(|digit| (digit as char).to_digit(16).unwrap() as u8)
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    fn fields(list: &[(&str, &str)]) -> Option<Vec<Field>> {
        let owned =
            |(name, value): &(&str, &str)| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        Some(list.iter().map(owned).collect())
    }

    #[test]
    fn the_examples_of_rfc_7541_c_3_and_c_4() {
        for blocks in [
            [
                "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
                "8286 84be 5808 6e6f 2d63 6163 6865",
                "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
            ],
            [
                "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
                "8286 84be 5886 a8eb 1064 9cbf",
                "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
            ],
        ] {
            let mut decoder = Decoder::default();
            let host = (":authority", "www.example.com");
            let common = [
                (":method", "GET"),
                (":scheme", "http"),
                (":path", "/"),
                host,
            ];
            assert_eq!(decoder.block(&bytes(blocks[0])), fields(&common));
            let second = [&common[..], &[("cache-control", "no-cache")]].concat();
            assert_eq!(decoder.block(&bytes(blocks[1])), fields(&second));
            let third = [
                (":method", "GET"),
                (":scheme", "https"),
                (":path", "/index.html"),
                host,
                ("custom-key", "custom-value"),
            ];
            assert_eq!(decoder.block(&bytes(blocks[2])), fields(&third));
            assert_eq!((decoder.table.len(), decoder.size), (3, 164));
        }
    }

    #[test]
    fn a_small_table_forgets_as_in_rfc_7541_c_6() {
        let mut decoder = Decoder::default();
        let set = decoder.block(&bytes("3fe1 01"));
        assert_eq!((set, decoder.most), (Some(Vec::new()), 256));
        let first =
            "4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 \
                     2d1b ff6e 919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3";
        let seen = decoder.block(&bytes(first)).unwrap();
        assert_eq!(seen[0], (b":status".to_vec(), b"302".to_vec()));
        assert_eq!(seen[3].1, b"https://www.example.com");
        assert_eq!(decoder.size, 222);
        let second = decoder.block(&bytes("4883 640e ffc1 c0bf")).unwrap();
        assert_eq!(second[0].1, b"307");
        // The oldest, `:status: 302`, made room.
        assert_eq!((decoder.table.len(), decoder.size), (4, 222));
    }

    #[test]
    fn every_byte_has_a_code_and_no_code_begins_another() {
        let space: u64 = BITS.iter().map(|bits| 1u64 << (30 - bits)).sum();
        assert_eq!(space, 1 << 30);
    }

    #[test]
    fn what_is_no_block() {
        for block in [
            "80",          // index 0
            "be",          // an entry that is not there
            "41 8c f1 e3", // a string without its end
            "82 3f e1 01", // a size behind a field
            "3f e1 ff 7f", // a table without measure
            "ff ff ff ff ff 01",
            "41 81 00",          // padding of zeros
            "41 84 ff ff ff ff", // the end of a string inside it
            "41 82 07 ff",       // more padding than seven bits
        ] {
            assert_eq!(Decoder::default().block(&bytes(block)), None, "{block}");
        }
        // A few bytes that stand for very many.
        let mut bomb = bytes("40 01 61");
        bomb.extend([0x7f, 0x81, 0x1e]);
        bomb.extend([b'x'; 3968]);
        bomb.extend([0xbe; 200]);
        assert!(Decoder::default().block(&bomb[..3974]).is_some());
        assert!(Decoder::default().block(&bomb).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes(block in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = Decoder::default();
            decoder.block(&block);
            prop_assert!(decoder.size <= decoder.most);
            prop_assert_eq!(
                decoder.size,
                decoder.table.iter().map(|(name, value)| name.len() + value.len() + 32).sum::<usize>()
            );
        }
    }
}
