//! Any tree that a layer can have: what the writer makes of it is read back as the same tree.

use crate::draw::{Draw, START};
use crate::memory;
use crate::outline::{assert_same, outline, whole};
use microsandbox_oci_native::erofs::read::Image;
use microsandbox_oci_native::erofs::write::{self, Identity};

pub fn tree(data: &[u8]) {
    let tree = Draw(data).tree(200);
    let file = memory();
    write::write(&file, &tree, START, &[], Identity::Known([1; 32])).expect("write");
    let image = Image::open(&file).expect("open what was written");
    let read = image.tree().expect("read what was written");
    assert_same(&outline(&read, whole), &outline(&tree, whole));

    let again = memory();
    write::write(&again, &read, START, &[], Identity::Known([1; 32])).expect("write again");
    let second = Image::open(&again).expect("open what was written again");
    assert_eq!(image.first.metadata_sha256, second.first.metadata_sha256);
}
