//! One message: what is taken for a request has names of one entry, and ranges that end.

use microsandbox_fs_native::wire::name::Name;
use microsandbox_fs_native::wire::request::{self, Operation};
use microsandbox_fs_native::wire::{MAX_ATTRIBUTE, MAX_DATA};

pub fn request(bytes: &[u8]) {
    let mut message = bytes.to_vec();
    let Some(length) = message.get_mut(..4) else {
        assert!(request::header(bytes).is_err());
        return;
    };
    // Else hardly any would come past the first check.
    length.copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    let Ok((header, body)) = request::header(&message) else {
        return;
    };
    let without = Operation::silent(header.opcode) || Operation::unnumbered(header.opcode);
    assert!(header.unique != 0 || without);
    match request::operation(&header, body) {
        Ok(Operation::Lookup { name } | Operation::Unlink { name }) => one(name),
        Ok(Operation::SymLink { name, .. } | Operation::Create { name, .. }) => one(name),
        Ok(Operation::Rename { name, new, .. }) => [name, new].map(one).into_iter().collect(),
        Ok(Operation::Read { offset, size, .. }) => {
            fits(offset, u64::from(size), MAX_DATA as usize)
        }
        Ok(Operation::Write { offset, data, .. }) => {
            fits(offset, data.len() as u64, MAX_DATA as usize);
        }
        Ok(Operation::Allocate { offset, length, .. }) => fits(offset, length, usize::MAX),
        Ok(Operation::Copy {
            offset, at, length, ..
        }) => {
            fits(offset, length, usize::MAX);
            fits(at, length, usize::MAX);
        }
        Ok(Operation::SetAttribute { value, .. }) => assert!(value.len() <= MAX_ATTRIBUTE),
        Ok(Operation::BatchForget { pairs }) => assert_eq!(pairs.len() % 16, 0),
        _ => {}
    }
}

fn one(name: Name<'_>) {
    let name = name.bytes();
    assert!(!name.is_empty() && name.len() <= 255 && name != b"." && name != b"..");
    assert!(!name.contains(&b'/') && !name.contains(&0));
}

fn fits(offset: u64, length: u64, most: usize) {
    assert!(length <= most as u64);
    assert!(i64::try_from(offset + length).is_ok());
}
