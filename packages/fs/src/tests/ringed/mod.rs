//! The same vectors by the queues of a device, and what only queues can say.
#![allow(clippy::duplicate_mod)] // They are to be the same.

#[path = "../attributes.rs"]
mod attributes;
mod chains;
#[path = "../files.rs"]
mod files;
#[path = "../hostile.rs"]
mod hostile;
pub mod machine;
#[path = "../moving.rs"]
mod moving;
#[path = "../names.rs"]
mod names;
#[path = "../quotas.rs"]
mod quotas;
#[path = "../support.rs"]
mod support;
#[path = "../written_back.rs"]
mod written_back;

const RINGED: bool = true;
