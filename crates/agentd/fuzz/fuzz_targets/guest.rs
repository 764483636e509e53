//! The guest's state machine under any host and any order of its handlers' commands.
#![no_main]

#[path = "../../tests/support/mod.rs"]
mod support;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|program: &[u8]| support::Auditor::default().run(program));
