//! VMDK descriptors: several files as one disk.

use crate::error::{Code, Error, Result};
use std::fmt::Write;

const SECTOR: u64 = 512;
/// QEMU reads names into a buffer of 512 bytes.
const NAME_MAX: usize = 511;

/// A descriptor over flat extents, given as name and size in bytes.
///
/// The access mode is `RW` because QEMU passes over every extent that says anything else; it is the drive's
/// `readonly=on`, and the files' mode, that keep guests from writing. `monolithicFlat` rather than `twoGbMaxExtentFlat`: the
/// type only matters to tools that split or grow disks, and nothing here is 2 GB at most.
pub fn descriptor(extents: &[(&str, u64)]) -> Result<String> {
    let mut lines = String::new();
    let mut sectors = 0u64;
    for (name, size) in extents {
        // The format has no escapes; a line break would start an extent of the name's choice.
        let unsafe_name = name.chars().any(|c| c == '"' || c.is_control());
        if name.is_empty() || name.len() > NAME_MAX || unsafe_name {
            return Err(Error::new(
                Code::BadPath,
                "extent name is empty, too long, or has a quotation mark or control character",
            ));
        }
        if *size == 0 || size % SECTOR != 0 {
            return Err(Error::new(
                Code::Unsupported,
                format!("extent of {size} bytes: not a positive multiple of {SECTOR}"),
            ));
        }
        sectors += size / SECTOR;
        // `write!` to a string cannot fail.
        let _ = writeln!(lines, "RW {} FLAT \"{name}\" 0", size / SECTOR);
    }
    // Geometry is for BIOS calls that nothing makes; QEMU only wants the keys to be there.
    let cylinders = (sectors / (16 * 63)).min(16383);
    Ok(format!(
        "# Disk DescriptorFile\n\
         version=1\n\
         CID=fffffffe\n\
         parentCID=ffffffff\n\
         createType=\"monolithicFlat\"\n\
         \n\
         # Extent description\n\
         {lines}\
         \n\
         # The Disk Data Base\n\
         #DDB\n\
         \n\
         ddb.virtualHWVersion = \"4\"\n\
         ddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\n\
         ddb.geometry.sectors = \"63\"\n\
         ddb.adapterType = \"ide\"\n"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = descriptor(&[("fsmeta.erofs", 8192), ("../l/a.erofs", 4096)]).unwrap();
        assert!(text.contains("\nRW 16 FLAT \"fsmeta.erofs\" 0\nRW 8 FLAT \"../l/a.erofs\" 0\n"));
    }

    #[test]
    fn names_cannot_add_lines() {
        for name in ["", "a\"b", "a\nRW 1 FLAT \"/etc/shadow\" 0"] {
            assert!(descriptor(&[(name, 512)]).is_err());
        }
        assert!(descriptor(&[("a", 0)]).is_err());
        assert!(descriptor(&[("a", 513)]).is_err());
    }
}
