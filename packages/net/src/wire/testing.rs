//! Feeds readers as networks do.

use super::Progress;
use std::fmt::Debug;

/// What `feed` ends in when `bytes` come in pieces of `sizes` (again and again from the first).
pub fn in_pieces<T>(
    bytes: &[u8],
    sizes: &[usize],
    mut feed: impl FnMut(&[u8]) -> Progress<T>,
) -> Progress<T> {
    let mut rest = bytes;
    for size in sizes.iter().cycle() {
        let (piece, after) = rest.split_at(rest.len().min((*size).max(1)));
        match feed(piece) {
            Progress::NeedMore if !after.is_empty() => rest = after,
            end => return end,
        }
    }
    Progress::NeedMore
}

/// The end, which has to be the same for the whole and for every way to cut it that is tried.
pub fn whole_and_in_pieces<R, T: PartialEq + Debug>(
    bytes: &[u8],
    reader: impl Fn() -> R,
    feed: impl Fn(&mut R, &[u8]) -> Progress<T>,
) -> Progress<T> {
    let mut first = reader();
    let whole = feed(&mut first, bytes);
    for sizes in [&[1][..], &[2], &[3, 1], &[7], &[100, 1]] {
        let mut reader = reader();
        let cut = in_pieces(bytes, sizes, |piece| feed(&mut reader, piece));
        assert_eq!(cut, whole, "pieces of {sizes:?}");
    }
    whole
}
