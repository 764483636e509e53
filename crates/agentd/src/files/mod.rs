//! The `files` method: files of the guest, read and written for the host.
//!
//! Each request is carried out by a process of its own that is forked from agentd and executes nothing.
//! What the workload has put in the way (a FIFO, a file system that does not answer, a million entries)
//! holds up that process and not PID 1, and the kernel resolves every path inside the sandbox's root.

mod changes;
mod pack;
mod record;
mod request;
mod simple;
mod sys;
mod temporary;
mod unpack;
mod write;

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};

use crate::channel::{encode, Map, Value};
use crate::sys::describe;
pub use request::Operation;

/// Levels of directories below the one that is copied.
const DEPTH_MAX: usize = 256;
/// Of a message or a path in a result, whose frame is capped.
const SHOWN_MAX: usize = 4096;

/// What could not be done, and to which path.
#[derive(Debug)]
struct Failure {
    path: PathBuf,
    error: io::Error,
}

type Done<T = ()> = Result<T, Failure>;

/// For `map_err`: the failure of something done to `path`.
fn at(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure {
        path: path.as_ref().to_owned(),
        error,
    }
}

fn errno(path: impl AsRef<Path>, errno: i32) -> Failure {
    at(path)(io::Error::from_raw_os_error(errno))
}

/// For what is neither a regular file nor anything else that was asked for: a device, a FIFO, a socket.
fn not_regular(path: impl AsRef<Path>) -> Failure {
    at(path)(io::ErrorKind::Unsupported.into())
}

impl Failure {
    fn result(&self) -> Map {
        use std::os::unix::ffi::OsStrExt;
        let bytes = self.path.as_os_str().as_bytes();
        let kind = match self.error.kind() {
            io::ErrorKind::Unsupported if self.error.raw_os_error().is_none() => "not_regular",
            _ => "failed",
        };
        let mut error = Map::new()
            .with("kind", kind)
            .with("message", describe(&self.error).as_str())
            .with(
                "path",
                Value::Bin(bytes[..bytes.len().min(SHOWN_MAX)].to_vec()),
            );
        if let Some(number) = self.error.raw_os_error() {
            error = error.with("errno", i64::from(number));
        }
        Map::new().with("error", error)
    }
}

/// The life of the process: 0 is its input, 1 its output, and on 2 it says how it ended.
///
/// # Safety
///
/// To be called once, in a forked child whose descriptors 0, 1 and 2 belong to nothing else.
pub unsafe fn carry_out(operation: &Operation) -> i32 {
    // SAFETY: the contract of this function.
    let [input, output, mut results] = [0, 1, 2].map(|fd| unsafe { File::from_raw_fd(fd) });
    let done = perform(operation, input, output);
    let (result, code) = match done {
        Ok(facts) => (facts, 0),
        Err(failure) => (failure.result(), 1),
    };
    // Refused only when nobody waits for it.
    let _ = results.write_all(&encode(&result));
    code
}

fn perform(operation: &Operation, input: File, output: File) -> Done<Map> {
    let nothing = |()| Map::new();
    match operation {
        Operation::Stat { path, follow } => simple::stat(path, *follow),
        Operation::List { path } => simple::list(path, record::Writer::new(output)).map(nothing),
        Operation::Mkdir { path, parents } => simple::mkdir(path, *parents).map(nothing),
        Operation::Remove { path, recursive } => simple::remove(path, *recursive).map(nothing),
        Operation::Rename { path, to } => simple::rename(path, to).map(nothing),
        Operation::Chmod { path, mode } => simple::chmod(path, *mode).map(nothing),
        Operation::Chown { path, uid, gid } => simple::chown(path, *uid, *gid).map(nothing),
        Operation::Read { path } => simple::read(path, output).map(nothing),
        Operation::Write { path } => write::write(path, record::Reader::new(input)).map(nothing),
        Operation::Pack { path } => pack::pack(path, record::Writer::new(output)).map(nothing),
        Operation::Changes { workspace } => {
            changes::changes(workspace.as_deref(), record::Writer::new(output)).map(nothing)
        }
        Operation::Unpack(place) => unpack::unpack(place, record::Reader::new(input)).map(nothing),
    }
}
