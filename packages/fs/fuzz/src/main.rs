//! The program that fuzzes without libFuzzer.

use targets::{TARGETS, TEXTS};

fn main() {
    microsandbox_fuzz::main(&microsandbox_fuzz::Package {
        targets: &TARGETS,
        texts: &TEXTS,
        home: env!("CARGO_MANIFEST_DIR"),
    });
}
