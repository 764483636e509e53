//! Diagnostics: single lines to the kernel log, which the host keeps as the guest's console.

use std::io::Write;

/// Tells the reader of the console what went wrong.
pub fn error(text: &str) {
    line(3, text);
}

fn line(level: u8, text: &str) {
    // One write is one record of the kernel log, so the line is put together first. Standard error
    // is /dev/kmsg; if even that fails there is nobody left to tell.
    let record = format!("<{level}>agentd: {text}\n");
    let _ = std::io::stderr().write_all(record.as_bytes());
}

/// Sends panics to the same place; a panic of PID 1 ends the VM.
pub fn take_panics() {
    std::panic::set_hook(Box::new(|panic| error(&format!("{panic}"))));
}
