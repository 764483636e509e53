//! The module `microsandbox_fs._native`.

use crate::broker::{Broker as Core, Cache, Options};
use crate::confine;
use crate::device::Device as Queues;
use crate::owners::Ownership;
use crate::quota::{Limits, Quota};
use crate::serve::{Failure, Session};
use crate::share::Resolution;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[pyclass(frozen)]
struct Broker {
    core: Core,
    serving: Mutex<Serving>,
}

/// What `serve` and `stop` know of each other.
#[derive(Default)]
struct Serving {
    session: Option<Served>,
    stopped: bool,
}

/// What a broker is at work on.
#[derive(Clone)]
enum Served {
    Stream(Arc<Session>),
    Device(Arc<Queues>),
}

impl Served {
    fn run(&self, core: &Core, threads: usize) -> Result<(), Failure> {
        match self {
            Self::Stream(session) => session.run(core, threads),
            Self::Device(device) => device.serve(core, threads),
        }
    }

    fn stop(&self) {
        match self {
            Self::Stream(session) => session.stop(),
            Self::Device(device) => device.halt(),
        }
    }
}

impl Broker {
    fn serving(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, py: Python<'_>, served: Served, threads: usize) -> PyResult<()> {
        {
            let mut serving = self.serving();
            if serving.session.is_some() {
                return Err(failed(Errno::BUSY, None));
            }
            serving.session = Some(served.clone());
            if serving.stopped {
                served.stop();
            }
        }
        let done = py.detach(|| served.run(&self.core, threads));
        self.serving().session = None;
        done.map_err(ended)
    }
}

#[pymethods]
impl Broker {
    #[new]
    #[pyo3(signature = (path, *, read_only, ownership, uid, gid, cache, follow_root, cross_mounts, link_guard, walk, watch, nodes, handles, quota, counter))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        path: PathBuf,
        read_only: bool,
        ownership: &str,
        uid: u32,
        gid: u32,
        cache: &str,
        follow_root: bool,
        cross_mounts: bool,
        link_guard: bool,
        walk: bool,
        watch: bool,
        nodes: usize,
        handles: usize,
        quota: Option<(u64, u64)>,
        counter: Option<PathBuf>,
    ) -> PyResult<Self> {
        let ownership = match ownership {
            "virtual" => Ownership::Virtual { uid, gid },
            "passthrough" => Ownership::Passthrough,
            "squash" => Ownership::Squash { uid, gid },
            other => return Err(PyValueError::new_err(format!("no ownership: {other:?}"))),
        };
        let cache = match cache {
            "none" => Cache::None,
            "auto" => Cache::Auto,
            "always" => Cache::Always,
            other => return Err(PyValueError::new_err(format!("no cache policy: {other:?}"))),
        };
        let options = Options {
            read_only,
            ownership,
            cache,
            follow_root,
            cross_mounts,
            link_guard,
            walk,
            watch,
            nodes,
            handles,
        };
        match Core::open(&path, options) {
            Ok(mut core) => {
                if let Some((bytes, names)) = quota {
                    core.limit(limited(Limits { bytes, names }, counter)?);
                }
                Ok(Self {
                    core,
                    serving: Mutex::default(),
                })
            }
            Err(errno) => Err(failed(errno, Some(path))),
        }
    }

    /// `stream` is the number of an open socket, which stays the caller's.
    fn serve(&self, py: Python<'_>, stream: i32, threads: usize) -> PyResult<()> {
        let session = duplicate(stream).and_then(Session::new);
        let session = session.map_err(|errno| failed(errno, None))?;
        self.run(py, Served::Stream(Arc::new(session)), threads)
    }

    fn serve_device(&self, py: Python<'_>, device: &Device, threads: usize) -> PyResult<()> {
        self.run(py, Served::Device(device.0.clone()), threads)
    }

    fn stop(&self) {
        let mut serving = self.serving();
        serving.stopped = true;
        if let Some(session) = &serving.session {
            session.stop();
        }
    }

    fn answer<'py>(
        &self,
        py: Python<'py>,
        message: Vec<u8>,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut out = Vec::new();
        py.detach(|| self.core.answer(&message, &mut out))
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok((!out.is_empty()).then(|| PyBytes::new(py, &out)))
    }

    fn usage(&self) -> (usize, usize) {
        self.core.usage()
    }

    fn counted(&self, py: Python<'_>) -> PyResult<Option<(u64, u64)>> {
        py.detach(|| self.core.counted())
            .map_err(|errno| failed(errno, None))
    }

    fn is_directory(&self) -> bool {
        self.core.is_directory()
    }

    /// Whether the kernel keeps paths beneath the root: openat2(2).
    fn contained(&self) -> bool {
        self.core.resolution() == Resolution::Kernel
    }
}

/// A device of virtio-fs, at one end of a socket with QEMU at the other.
#[pyclass(frozen)]
struct Device(Arc<Queues>);

#[pymethods]
impl Device {
    /// `stream` is the number of an open socket, which stays the caller's.
    #[new]
    fn new(stream: i32) -> PyResult<Self> {
        let device = duplicate(stream).and_then(Queues::open);
        let device = device.map_err(|errno| failed(errno, None))?;
        Ok(Self(Arc::new(device)))
    }

    fn refuse(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.0.refuse()).map_err(ended)
    }

    fn stop(&self) {
        self.0.stop();
    }
}

fn duplicate(number: i32) -> rustix::io::Result<OwnedFd> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: it is looked at during the next call alone, which says so if it is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_dupfd_cloexec(borrowed, 0)
}

fn ended(failure: Failure) -> PyErr {
    match failure {
        Failure::Malformed(_) | Failure::Ring(_) => PyValueError::new_err(failure.to_string()),
        Failure::System(_, errno) => {
            PyOSError::new_err((errno.raw_os_error(), failure.to_string()))
        }
        Failure::Broken => PyRuntimeError::new_err(failure.to_string()),
    }
}

/// A quota whose account is the file `counter`, made if it is not there.
fn limited(limits: Limits, counter: Option<PathBuf>) -> PyResult<Quota> {
    let open = |path: &PathBuf| {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
    };
    let file = counter.as_ref().map(open).transpose();
    file.and_then(|file| Quota::new(limits, file))
        .map_err(|errno| failed(errno, counter))
}

fn failed(errno: Errno, path: Option<PathBuf>) -> PyErr {
    let text = std::io::Error::from(errno).to_string();
    // Its own text ends with the number, which Python adds.
    let text = text
        .split(" (os error")
        .next()
        .unwrap_or_default()
        .to_owned();
    match path {
        Some(path) => PyOSError::new_err((errno.raw_os_error(), text, path.into_os_string())),
        None => PyOSError::new_err((errno.raw_os_error(), text)),
    }
}

/// Whether threads of sessions are confined on this kernel: Landlock.
#[pyfunction]
fn confined() -> bool {
    confine::available()
}

/// Whether the kernel keeps paths beneath a directory.
#[pyfunction]
fn openat2() -> bool {
    crate::share::has_openat2()
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add_function(wrap_pyfunction!(confined, m)?)?;
    m.add_function(wrap_pyfunction!(openat2, m)?)?;
    m.add_class::<Device>()?;
    m.add_class::<Broker>()
}
