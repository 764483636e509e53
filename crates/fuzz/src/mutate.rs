//! New inputs from old ones.

/// SplitMix64: small, and the same draws for the same seed everywhere.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`; 0 if that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Mostly small, now and then anything.
    fn length(&mut self, most: usize) -> usize {
        match self.below(4) {
            0 => self.below(most + 1),
            1 => 512.min(most),
            _ => 1 + self.below(16.min(most.max(1))),
        }
    }
}

/// Values at which programs think again.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    1 << 32,
    1 << 63,
    u64::MAX,
];
/// Texts by which a format is told, and that hardly any draw would make.
pub type Texts = &'static [&'static [u8]];

/// One of `corpus`, changed in a few places, of at most `longest` bytes.
pub fn mutated(random: &mut Random, corpus: &[Vec<u8>], texts: Texts, longest: usize) -> Vec<u8> {
    // The latest half as often as all others together: what is new has been tried least.
    let at = match random.below(2) {
        0 => random.below(corpus.len()),
        _ => corpus.len() - 1 - random.below(corpus.len().min(20)),
    };
    let mut data = corpus[at].clone();
    for _ in 0..1 << random.below(5) {
        change(random, corpus, texts, &mut data);
    }
    data.truncate(longest);
    data
}

fn change(random: &mut Random, corpus: &[Vec<u8>], texts: Texts, data: &mut Vec<u8>) {
    let at = random.below(data.len() + 1);
    let room = data.len() - at;
    match random.below(12) {
        0 | 1 if room > 0 => data[at] ^= 1 << random.below(8),
        2 | 3 if room > 0 => data[at] = random.next() as u8,
        4 if room > 0 => {
            // A digit for a digit: most numbers here are texts.
            let digits = data.iter().skip(at).position(u8::is_ascii_digit);
            if let Some(more) = digits {
                data[at + more] = b'0' + random.below(10) as u8;
            }
        }
        5 => {
            let len = random.length(room);
            data.drain(at..at + len.min(room));
        }
        6 => {
            let len = random.length(64);
            let piece: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
            data.splice(at..at, piece);
        }
        7 => {
            // A piece once more, often a block of a tar.
            let len = random.length(room).min(room);
            let piece = data[at..at + len].to_vec();
            let to = match random.below(2) {
                0 => random.below(data.len() + 1),
                _ => random.below(data.len() / 512 + 1) * 512,
            };
            data.splice(to..to, piece);
        }
        8 => {
            let bytes = NUMBERS[random.below(NUMBERS.len())].to_be_bytes();
            let mut bytes = bytes[8 - (1 << random.below(4))..].to_vec();
            if random.below(2) == 0 {
                bytes.reverse();
            }
            overwrite(data, at, &bytes);
        }
        9 if !texts.is_empty() => {
            let text = texts[random.below(texts.len())];
            match random.below(2) {
                0 => overwrite(data, at, text),
                _ => drop(data.splice(at..at, text.iter().copied())),
            }
        }
        _ => {
            // From another input.
            let other = &corpus[random.below(corpus.len())];
            let from = random.below(other.len() + 1);
            let len = random.length(other.len() - from).min(other.len() - from);
            let piece = &other[from..from + len];
            match random.below(2) {
                0 => overwrite(data, at, piece),
                _ => drop(data.splice(at..at, piece.iter().copied())),
            }
        }
    }
}

fn overwrite(data: &mut Vec<u8>, at: usize, piece: &[u8]) {
    let end = (at + piece.len()).max(data.len());
    data.resize(end, 0);
    data[at..at + piece.len()].copy_from_slice(piece);
}
