//! The program that the kernel starts as PID 1.
#![no_main]

/// The C entry point. `fn main` would run the standard library's start-up first, which aborts
/// when a standard descriptor is closed and there is no /dev/null yet, as on a boot disk.
#[no_mangle]
pub extern "C" fn main(_argc: i32, _argv: *const *const u8) -> i32 {
    if std::process::id() != 1 {
        eprintln!("agentd is PID 1 of a microsandbox guest; there is no other use for it");
        return 2;
    }
    agentd::run()
}
