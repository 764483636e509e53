//! A disk of the host's at a place in the guest's tree: the kind `block` of `mounts`.
//!
//! A machine from a template had a placeholder in the disk's place when its kernel looked at it, so the kernel
//! believes in another size. It is made to look again by taking the driver off the device and giving it back.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::channel::{Invalid, Map};
use crate::configure::disk;
use crate::sys::describe;

const SECTOR: u64 = 512;
/// Where the first bytes of the last of `MAGICS` end.
const PROBED: usize = 65_600;

/// Where the kernel's virtio disks can be let go of and taken again.
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// File systems by what their first blocks hold (file(1), and each one's documentation).
const MAGICS: [(usize, &[u8], &str); 9] = [
    (1080, b"\x53\xef", "ext4"),
    (0, b"XFSB", "xfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    (0, b"hsqs", "squashfs"),
    (65_600 - 8, b"_BHRfS_M", "btrfs"),
    (1024, b"\x10\x20\xf5\xf2", "f2fs"),
    (32_769, b"CD001", "iso9660"),
    (82, b"FAT32", "vfat"),
    (54, b"FAT1", "vfat"),
];

/// A checked request.
#[derive(Debug, PartialEq, Eq)]
pub struct Block {
    /// `vdd`, ...
    name: String,
    /// Bytes that the disk has.
    size: u64,
    /// None: what its first blocks say.
    fstype: Option<String>,
    read_only: bool,
}

impl Block {
    pub fn parse(map: &Map) -> Result<Block, Invalid> {
        let device: &str = map.field("device")?;
        let name = match device.strip_prefix("/dev/").map(str::as_bytes) {
            Some([b'v', b'd', b'a'..=b'z']) => device[5..].to_owned(),
            _ => return Err(Invalid::new("`device` is not a virtio disk")),
        };
        let fstype: Option<&str> = map.field("fstype")?;
        let is_type = |text: &&str| !text.bytes().any(|byte| !byte.is_ascii_alphanumeric());
        if fstype.is_some_and(|text| text.is_empty() || !is_type(&text)) {
            return Err(Invalid::new("`fstype` is not the name of one"));
        }
        Ok(Block {
            name,
            size: map.field("size")?,
            fstype: fstype.map(str::to_owned),
            read_only: map.field("read_only")?,
        })
    }

    /// Mounts it at `target`.
    pub fn mount(&self, target: &str, flags: libc::c_ulong) -> io::Result<()> {
        self.look_again()?;
        let device = format!("/dev/{}", self.name);
        let fstype = match &self.fstype {
            Some(named) => named.clone(),
            None => probe(Path::new(&device))?.to_owned(),
        };
        // As for the upper: an ext4 keeps the holes that it was made with.
        let options = match fstype.as_str() {
            "ext4" => "noinit_itable,no_prefetch_block_bitmaps",
            _ => "",
        };
        disk(&device, target, &fstype, flags, options)
            .map_err(|error| self.explained(&fstype, &error))
    }

    /// Has the kernel know the disk as it is.
    fn look_again(&self) -> io::Result<()> {
        if self.seen_size()? == self.size {
            return Ok(());
        }
        let device = fs::read_link(format!("/sys/block/{}/device", self.name))?;
        let device = device.file_name().unwrap_or_default().as_encoded_bytes();
        // The name goes with the device, and is the first one that is free when it comes back.
        fs::write(format!("{DRIVER}/unbind"), device)?;
        fs::write(format!("{DRIVER}/bind"), device)?;
        match self.seen_size()? {
            size if size == self.size => Ok(()),
            size => Err(io::Error::other(format!(
                "the disk has {size} bytes, and not {}",
                self.size
            ))),
        }
    }

    fn seen_size(&self) -> io::Result<u64> {
        let text = fs::read_to_string(format!("/sys/block/{}/size", self.name))?;
        text.trim()
            .parse::<u64>()
            .ok()
            .and_then(|sectors| sectors.checked_mul(SECTOR))
            .ok_or_else(|| io::Error::other("the disk has no size"))
    }

    /// What the kernel's refusal means, as far as that can be told.
    fn explained(&self, fstype: &str, error: &io::Error) -> io::Error {
        let reason = match error.raw_os_error() {
            Some(libc::ENODEV) => format!("the guest's kernel has no file system {fstype}"),
            Some(libc::EINVAL) => format!("it holds no intact {fstype}"),
            Some(libc::EROFS) if self.read_only => {
                format!("its {fstype} was not unmounted: mount it once to be written to")
            }
            _ => format!("mounting its {fstype}: {}", describe(error)),
        };
        io::Error::other(reason)
    }
}

/// The type of the file system on a disk.
fn probe(device: &Path) -> io::Result<&'static str> {
    let file = fs::File::open(device)?;
    let mut first = vec![0; PROBED];
    let mut length = 0;
    while length < PROBED {
        match file.read_at(&mut first[length..], length as u64)? {
            0 => break,
            count => length += count,
        }
    }
    type_of(&first[..length]).ok_or_else(|| {
        io::Error::other("it has no file system that is known: format it, or name its type")
    })
}

fn type_of(first: &[u8]) -> Option<&'static str> {
    MAGICS
        .iter()
        .find(|(place, magic, _)| first.get(*place..place + magic.len()) == Some(magic))
        .map(|(_, _, fstype)| *fstype)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use crate::channel::Value;

    fn request(device: &str, fstype: Value) -> Map {
        Map::new()
            .with("device", device)
            .with("size", 4096u64)
            .with("fstype", fstype)
            .with("read_only", true)
    }

    #[test]
    fn only_virtio_disks_are_named() {
        let read = Block::parse(&request("/dev/vdd", Value::Nil)).unwrap();
        assert_eq!((read.name.as_str(), read.size), ("vdd", 4096));
        for device in ["/dev/vd", "/dev/vdda", "/dev/../vda", "/dev/sda", "vdd"] {
            assert!(Block::parse(&request(device, Value::Nil)).is_err());
        }
        for fstype in ["", "ext4,ro", "a b"] {
            assert!(Block::parse(&request("/dev/vdd", Value::from(fstype))).is_err());
        }
    }

    #[test]
    fn file_systems_are_told_by_their_first_blocks() {
        let disk = |place: usize, magic: &[u8]| {
            let mut disk = vec![0; PROBED];
            disk[place..place + magic.len()].copy_from_slice(magic);
            disk
        };
        for (place, magic, fstype) in MAGICS {
            assert_eq!(type_of(&disk(place, magic)), Some(fstype));
        }
        assert_eq!(type_of(&vec![0; PROBED]), None);
        assert_eq!(type_of(b"XFSB"), Some("xfs"));
        assert_eq!(type_of(b""), None);
    }
}
