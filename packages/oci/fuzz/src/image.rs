//! Any bytes as the metadata of a cached layer: either a typed error or a tree that merges.

use crate::memory;
use microsandbox_oci_native::erofs::format::{FirstBlock, ImageKind, BLOCK};
use microsandbox_oci_native::erofs::read::Image;
use microsandbox_oci_native::merge;
use sha2::{Digest, Sha256};
use std::os::unix::fs::FileExt;

// The input is the metadata area; its last eight bytes say how it is divided.
pub fn image(data: &[u8]) {
    let Some((area, control)) = data.split_last_chunk::<8>() else {
        return;
    };
    let mut area = area.to_vec();
    area.resize(area.len().next_multiple_of(BLOCK).max(BLOCK), 0);
    let start = 1 + u32::from(control[0]);
    let blocks = (area.len() / BLOCK) as u32;
    let merged = control[1] & 1 == 1;
    let first = FirstBlock {
        kind: if merged {
            ImageKind::Merged
        } else {
            ImageKind::Layer
        },
        blocks: start + blocks,
        root_nid: u16::from(control[2]),
        inodes: u64::from(control[3]),
        meta_block: start + u32::from(control[4]) % blocks,
        devices: u16::from(control[5]),
        device_slot: 0,
        feature_incompat: 0,
        uuid: [0; 16],
        metadata_start: start,
        metadata_sha256: Sha256::digest(&area).into(),
        identity: [0; 32],
    };
    let file = memory();
    file.write_all_at(&first.encode(), 0).expect("write");
    file.write_all_at(&area, u64::from(start) * BLOCK as u64)
        .expect("write");
    let image = Image::open(&file).expect("the first block is valid");
    if image.tree().is_ok() && !merged {
        let out = memory();
        if merge::merge(&[file], &out, &mut |_| true).is_ok() {
            Image::open(&out)
                .and_then(|image| image.tree())
                .expect("merged");
        }
    }
}
