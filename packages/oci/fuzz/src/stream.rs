//! Any bytes as a compressed layer: they end in an error or in bytes within the limits; and what was
//! compressed comes out as it went in.

use microsandbox_oci_native::limits::Limits;
use microsandbox_oci_native::source::{self, Summary};
use microsandbox_oci_native::Result;
use sha2::{Digest, Sha256};
use std::io::{Read, Write};

const MOST: u64 = 1 << 20;

fn run(bytes: &[u8]) -> Result<(Vec<u8>, Summary)> {
    let limits = Limits {
        max_size: MOST,
        ratio_floor: 1 << 16,
        max_window_log: 20,
        ..Limits::default()
    };
    source::run(bytes, &limits, &mut |_| true, |input| {
        let mut data = Vec::new();
        input.read_to_end(&mut data)?;
        Ok(data)
    })
}

pub fn stream(data: &[u8]) {
    let Some((&how, data)) = data.split_first() else {
        return;
    };
    // Compressed here, in members or frames of a drawn size, or as it is.
    let pieces = data.chunks(usize::from(how / 4) * 50 + 1);
    let bytes = match how % 4 {
        1 if !data.is_empty() => pieces.flat_map(gzip).collect(),
        2 if !data.is_empty() => pieces
            .flat_map(|piece| zstd::encode_all(piece, 1).expect("compress"))
            .collect(),
        _ => data.to_vec(),
    };
    match run(&bytes) {
        Ok((out, summary)) => {
            if how % 4 == 1 || how % 4 == 2 {
                assert_eq!(out, data);
            }
            assert!(out.len() as u64 <= MOST);
            assert_eq!(summary.uncompressed_size, out.len() as u64);
            assert_eq!(summary.compressed_size, bytes.len() as u64);
            assert_eq!(summary.digest[..], Sha256::digest(&bytes)[..]);
            assert_eq!(summary.diff_id[..], Sha256::digest(&out)[..]);
        }
        Err(error) => assert!(error.code().is_some(), "{error}"),
    }
}

fn gzip(piece: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(piece).expect("compress");
    encoder.finish().expect("compress")
}
