//! Any bytes as a tar: either a typed error, or a layer that reads back as what was read, and merges.

use crate::memory;
use crate::outline::{assert_same, outline, whole};
use microsandbox_oci_native::compress::Encoding;
use microsandbox_oci_native::erofs::read::Image;
use microsandbox_oci_native::erofs::write::{self, Identity};
use microsandbox_oci_native::limits::Limits;
use microsandbox_oci_native::tar::Reader;
use microsandbox_oci_native::{convert, merge};

pub fn layer(data: &[u8]) {
    let mut tar = data.to_vec();
    // Checksums are not what is being tested; wrong ones would hide everything else.
    for header in tar.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" {
            header[148..156].fill(b' ');
            let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
            header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let limits = Limits {
        max_entries: 2000,
        max_size: 1 << 20,
        max_file_size: 1 << 40,
        max_metadata: 1 << 20,
        max_header: 1 << 14,
        ..Limits::default()
    };
    // Both kinds of layer, by a bit that is hardly ever something else.
    let encoding = match data.first() {
        Some(byte) if byte & 1 == 1 => Encoding::Lz4,
        _ => Encoding::Plain,
    };
    let layer = memory();
    let mut reader = Reader::new(&tar[..], limits.clone());
    let Ok((tree, start, _)) = convert::read_tar(&mut reader, &layer, encoding, &limits) else {
        return;
    };
    write::write(&layer, &tree, start, &[], Identity::Known([1; 32])).expect("write");
    let image = Image::open(&layer).expect("open what was written");
    let read = image.tree().expect("read what was written");
    assert_same(&outline(&read, whole), &outline(&tree, whole));

    let out = memory();
    let layers = [
        layer.try_clone().expect("duplicate"),
        layer.try_clone().expect("duplicate"),
    ];
    if merge::merge(&layers, &out, &mut |_| true).is_ok() {
        let merged = Image::open(&out).expect("open what was merged");
        merged.tree().expect("read what was merged");
    }
}
