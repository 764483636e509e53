//! The MessagePack decoder: what it accepts, it can write and read again.
#![no_main]

use agentd::channel::{decode, encode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(map) = decode(bytes) {
        assert_eq!(decode(&encode(&map)).as_ref(), Ok(&map));
    }
});
