//! What is fuzzed: each target takes any bytes and panics if a promise does not hold for them.

mod request;
mod ring;
mod session;
mod stream;

pub use request::request;
pub use ring::ring;
pub use session::session;
pub use stream::stream;

use microsandbox_fuzz::Target;

/// All of them.
pub const TARGETS: [Target; 4] = [
    ("request", request),
    ("ring", ring),
    ("session", session),
    ("stream", stream),
];

/// Names that a guest gives.
pub const TEXTS: [&[u8]; 10] = [
    b"file\0",
    b"directory\0",
    b"link\0",
    b"new\0",
    b"..\0",
    b"../outside/canary\0",
    b"/\0",
    b"user.a\0",
    b"user.microsandbox.owner\0",
    b"security.capability\0",
];
