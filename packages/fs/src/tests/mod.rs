//! Raw FUSE messages into the broker, as a hostile guest's kernel may send them; no VM.

mod adversary;
mod attributes;
mod beside;
mod confined;
mod files;
mod hostile;
mod moving;
mod names;
mod quotas;
mod ringed;
mod serving;
mod support;
mod watching;
mod written_back;

const RINGED: bool = false;
