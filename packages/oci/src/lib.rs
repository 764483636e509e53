//! Native half of `microsandbox_oci`: tar streams and directories in, EROFS images out.
//!
//! The way of a layer: [`source`] decompresses and hashes, [`tar`] parses, [`follow`] finds where an entry
//! belongs, [`tree`] keeps the names and attributes, [`blob`] takes file contents as they come, and
//! [`erofs`] writes the metadata behind them. [`merge`] reads the metadata of several layers back and writes one that points into all of them.
//! [`export`] goes the other way: one tar stream out of a merged image.

pub mod blob;
pub mod check;
pub mod compress;
pub mod convert;
pub mod erofs;
pub mod error;
pub mod export;
pub mod fingerprint;
pub mod follow;
pub mod limits;
pub mod merge;
pub mod pack;
pub mod path;
#[cfg(all(feature = "python", not(test)))]
mod python;
pub mod source;
pub mod tar;
#[cfg(test)]
mod testing;
pub mod tree;
pub mod vmdk;
pub mod xattr;

pub use error::{Code, Error, Result};
pub use limits::Limits;
