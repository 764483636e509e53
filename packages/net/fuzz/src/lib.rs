//! What is fuzzed: each target takes any bytes and panics if a promise does not hold for them.

mod dns;
mod frame;
mod names;
mod rule;

pub use dns::dns;
pub use frame::frame;
pub use names::{client_hello, http, names};
pub use rule::rule;

use microsandbox_fuzz::Target;

/// All of them.
pub const TARGETS: [Target; 6] = [
    ("frame", frame),
    ("dns", dns),
    ("client_hello", client_hello),
    ("http", http),
    ("names", names),
    ("rule", rule),
];

/// What headers, requests and rules are told by.
pub const TEXTS: [&[u8]; 28] = [
    b"GET ",
    b"POST ",
    b"CONNECT ",
    b"http://",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"Host: ",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked\r\n",
    b"0\r\n\r\n",
    b"Upgrade: ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"example.com",
    b"[2001:db8::1]:80",
    b"192.0.2.1:80",
    b"\x16\x03\x01",
    b"\x00\x0b\x00\x09\x00\x00\x06",
    b"\xfe\x0d",
    b"\xc0\x0c",
    b"\x05\x01\x00",
    b"\x04\x01",
    b"allow@",
    b"deny:ingress@",
    b"*.",
    b":tcp:443",
    b"10.0.0.0/8",
];
