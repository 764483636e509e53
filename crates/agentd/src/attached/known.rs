//! What the guest's kernel asks again and again of a share and is answered here, where the host need not be asked.
//!
//! It asks for `security.capability` before it first writes to a file: a share has no attributes but those in `user.`.
//! And it asks for the attributes of a directory after each name that it made or took away there: the host is asked to
//! tell them before its answer, and they are good for as long as the host says, once, and until something may
//! have changed them.

use std::time::{Duration, Instant};

use super::relay::{answer_to, bytes, opcode, IN_HEADER, OUT_HEADER};

/// The error of a message that is no answer, with the number 0: a node and its `struct fuse_attr_out`.
const DIRECTORY: i32 = 0x4d53_4244;
/// Where a request's header ends with two bytes that the kernel leaves 0, and what asks for the directory there.
const WISH: usize = 38;
const WITH_DIRECTORY: u8 = 1;
/// `struct fuse_attr_out`.
const ATTRIBUTES: usize = 104;

const SETATTR: u32 = 4;
const GETATTR: u32 = 3;
const GETXATTR: u32 = 22;
/// What changes names: SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, CREATE, RENAME2.
const RENAMING: [u32; 9] = [6, 8, 9, 10, 11, 12, 13, 35, 45];
/// What leaves the attributes of directories as they are: LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, WRITE, STATFS, RELEASE,
/// FSYNC, GETXATTR, LISTXATTR, FLUSH, OPENDIR, RELEASEDIR, FSYNCDIR, ACCESS, INTERRUPT, BATCH_FORGET, FALLOCATE, LSEEK,
/// COPY_FILE_RANGE. What changes them is never asked beside what changes names there: the kernel locks the directory.
const HARMLESS: [u32; 22] = [
    1, 2, 3, 5, 14, 15, 16, 17, 18, 20, 22, 23, 25, 27, 29, 30, 34, 36, 42, 43, 46, 47,
];

pub struct Known {
    directory: Option<Directory>,
    answer: [u8; OUT_HEADER + ATTRIBUTES],
}

struct Directory {
    node: [u8; 8],
    attributes: [u8; ATTRIBUTES],
    told: Instant,
}

impl Known {
    pub fn nothing() -> Self {
        Self {
            directory: None,
            answer: [0; OUT_HEADER + ATTRIBUTES],
        }
    }

    /// The answer to a request of the kernel's, if it is known. What no longer holds after the request is known no more.
    pub fn answer(&mut self, request: &[u8]) -> Option<&[u8]> {
        let unique = u64::from_le_bytes(bytes(request, 8));
        match opcode(request) {
            GETXATTR if !of_users(request) => self.say(answer_to(unique, -libc::ENODATA), &[]),
            GETATTR => {
                let asked = self.directory.as_ref()?.node == bytes(request, 16);
                // By its node, and not as a file that is open.
                if !asked || bytes(request, IN_HEADER) != [0; 4] {
                    return None;
                }
                let mut directory = self.directory.take()?;
                let left = lifetime(&directory.attributes).checked_sub(directory.told.elapsed())?;
                directory.attributes[..8].copy_from_slice(&left.as_secs().to_le_bytes());
                directory.attributes[8..12].copy_from_slice(&left.subsec_nanos().to_le_bytes());
                self.say(answer_to(unique, 0), &directory.attributes)
            }
            other => {
                if !self.outlasts(other, request) {
                    self.directory = None;
                }
                None
            }
        }
    }

    /// Takes note of what the host tells besides its answers; whether the message is that.
    pub fn learn(&mut self, message: &[u8]) -> bool {
        let is_one = bytes(message, 4) == DIRECTORY.to_le_bytes() && bytes(message, 8) == [0; 8];
        if is_one && message.len() == OUT_HEADER + 8 + ATTRIBUTES {
            self.directory = Some(Directory {
                node: bytes(message, OUT_HEADER),
                attributes: bytes(message, OUT_HEADER + 8),
                told: Instant::now(),
            });
        }
        is_one
    }

    fn outlasts(&self, opcode: u32, request: &[u8]) -> bool {
        let known = self.directory.as_ref().map(|directory| directory.node);
        HARMLESS.contains(&opcode) || opcode == SETATTR && known != Some(bytes(request, 16))
    }

    fn say(&mut self, header: [u8; OUT_HEADER], body: &[u8]) -> Option<&[u8]> {
        let answer = &mut self.answer[..OUT_HEADER + body.len()];
        let length = answer.len() as u32;
        answer[..OUT_HEADER].copy_from_slice(&header);
        answer[..4].copy_from_slice(&length.to_le_bytes());
        answer[OUT_HEADER..].copy_from_slice(body);
        Some(answer)
    }
}

/// Asks for the attributes of the directory, where a request is going to change them.
pub fn ask(request: &mut [u8]) {
    if RENAMING.contains(&opcode(request)) {
        request[WISH] = WITH_DIRECTORY;
    }
}

/// Whether GETXATTR, whose name comes after two numbers, is of an attribute that shares have.
fn of_users(request: &[u8]) -> bool {
    let name = request.get(IN_HEADER + 8..).unwrap_or(&[]);
    name.starts_with(b"user.")
}

/// How long attributes hold from when they were told.
fn lifetime(attributes: &[u8; ATTRIBUTES]) -> Duration {
    let seconds = u64::from_le_bytes(bytes(attributes, 0));
    let nanoseconds = u32::from_le_bytes(bytes(attributes, 8));
    Duration::from_secs(seconds.min(u64::from(u32::MAX))) + Duration::from_nanos(nanoseconds.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    const NODE: u64 = 5;

    fn request(opcode: u32, node: u64) -> Vec<u8> {
        let mut request = vec![0; IN_HEADER + 16];
        request[4..8].copy_from_slice(&opcode.to_le_bytes());
        request[8] = 9;
        request[16..24].copy_from_slice(&node.to_le_bytes());
        request
    }

    /// What the host tells of a directory, to be believed for so long.
    fn told(node: u64, seconds: u64) -> Vec<u8> {
        let length = (OUT_HEADER + 8 + ATTRIBUTES) as u32;
        let mut message = vec![0; length as usize];
        message[..4].copy_from_slice(&length.to_le_bytes());
        message[4..8].copy_from_slice(&DIRECTORY.to_le_bytes());
        message[16..24].copy_from_slice(&node.to_le_bytes());
        message[24..32].copy_from_slice(&seconds.to_le_bytes());
        message[100] = 7;
        message
    }

    #[test]
    fn a_directory_is_known_once_and_for_as_long_as_the_host_says() {
        let mut known = Known::nothing();
        assert!(known.answer(&request(GETATTR, NODE)).is_none());
        assert!(known.learn(&told(NODE, 100)));
        assert!(known.answer(&request(GETATTR, 6)).is_none(), "another one");
        let answer = known.answer(&request(GETATTR, NODE)).unwrap().to_vec();
        assert_eq!(answer.len(), OUT_HEADER + ATTRIBUTES);
        assert_eq!(bytes(&answer, 0), (answer.len() as u32).to_le_bytes());
        assert_eq!(
            (answer[8], answer[OUT_HEADER]),
            (9, 99),
            "what is left of 100 s"
        );
        assert_eq!(answer[OUT_HEADER + 76], 7);
        assert!(known.answer(&request(GETATTR, NODE)).is_none(), "once");
        known.learn(&told(NODE, 0));
        assert!(known.answer(&request(GETATTR, NODE)).is_none(), "too old");
        known.learn(&told(NODE, 100));
        let mut of_file = request(GETATTR, NODE);
        of_file[IN_HEADER] = 1;
        assert!(known.answer(&of_file).is_none(), "by its handle");
    }

    #[test]
    fn what_may_change_a_directory_is_the_end_of_what_is_known() {
        let mut known = Known::nothing();
        for opcode in 1..64 {
            for node in [NODE, 6] {
                known.learn(&told(NODE, 100));
                if opcode != GETATTR {
                    assert!(opcode == GETXATTR || known.answer(&request(opcode, node)).is_none());
                }
                let left = known.answer(&request(GETATTR, NODE)).is_some();
                let outlasts = HARMLESS.contains(&opcode) || (opcode, node) == (SETATTR, 6);
                assert_eq!(left, outlasts, "{opcode} {node}");
            }
        }
    }

    #[test]
    fn what_changes_names_asks_for_the_directory() {
        for opcode in 1..64 {
            let mut asked = request(opcode, NODE);
            ask(&mut asked);
            assert_eq!(asked != request(opcode, NODE), RENAMING.contains(&opcode));
            assert!(!(RENAMING.contains(&opcode) && HARMLESS.contains(&opcode)));
        }
    }

    #[test]
    fn other_messages_are_not_learned() {
        let mut known = Known::nothing();
        let mut answer = told(NODE, 100);
        answer[8] = 1;
        assert!(!known.learn(&answer), "an answer");
        let mut batch = told(NODE, 100);
        batch[4] += 1;
        assert!(!known.learn(&batch));
        assert!(
            known.learn(&told(NODE, 100)[..100]),
            "cut off, and so nothing"
        );
        assert!(known.answer(&request(GETATTR, NODE)).is_none());
    }
}
