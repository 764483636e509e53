//! The extension module `microsandbox_oci._native`; its types are described in `_native.pyi`.

use crate::check::{self, hex};
use crate::compress::Encoding;
use crate::error::Error;
use crate::limits::Limits;
use crate::source::Patient;
use crate::{convert, export, fingerprint, merge, pack, vmdk};
use pyo3::create_exception;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};

create_exception!(
    microsandbox_oci._native,
    LayerError,
    PyValueError,
    "The input is unusable; `code` says how and `entry` where."
);

fn to_python(py: Python<'_>, error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Layer(layer) => {
            let raised = LayerError::new_err(text);
            let value = raised.value(py);
            let set = value
                .setattr("code", layer.code.as_str())
                .and_then(|()| value.setattr("entry", layer.entry));
            set.err().unwrap_or(raised)
        }
        Error::Io(error) => os_error(&error),
        Error::Cancelled => PyOSError::new_err("cancelled"),
    }
}

/// `OSError(errno, message)`, which picks the subclass that fits; the conversion of PyO3 loses `errno`.
fn os_error(error: &std::io::Error) -> PyErr {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(errno) => {
            let message = text.split(" (os error").next().unwrap_or(&text).to_owned();
            PyOSError::new_err((errno, message))
        }
        None => PyOSError::new_err(text),
    }
}

/// Own a duplicate, so that the caller may close its descriptor from another thread.
fn file(fd: RawFd) -> PyResult<File> {
    if fd < 0 {
        return Err(PyValueError::new_err("negative file descriptor"));
    }
    // SAFETY: the descriptor is only duplicated, at once; if it is not open, the system call says EBADF.
    // It is not -1, the one value that `BorrowedFd` must not hold.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    let owned = borrowed.try_clone_to_owned();
    Ok(owned.map_err(|error| os_error(&error))?.into())
}

/// A file that results go to: regular and empty, or a stale tail would survive behind the new image.
fn output(fd: RawFd) -> PyResult<File> {
    let file = file(fd)?;
    let metadata = file.metadata().map_err(|error| os_error(&error))?;
    if !metadata.is_file() || metadata.len() != 0 {
        return Err(PyValueError::new_err("out must be an empty regular file"));
    }
    Ok(file)
}

fn limits(given: Option<&Bound<'_, PyAny>>) -> PyResult<Limits> {
    let mut limits = Limits::default();
    let Some(given) = given else {
        return Ok(limits);
    };
    for item in given.call_method0("items")?.try_iter()? {
        let (key, value): (String, Bound<'_, PyAny>) = item?.extract()?;
        let value = value
            .extract::<u64>()
            .ok()
            .filter(|&value| value >= 1)
            .ok_or_else(|| {
                PyValueError::new_err(format!("limit {key} must be a whole number of at least 1"))
            })?;
        let mut named = limits.named();
        let slot = named.iter_mut().find(|(name, _)| *name == key);
        let (_, slot) =
            slot.ok_or_else(|| PyValueError::new_err(format!("unknown limit {key}")))?;
        **slot = value;
    }
    Ok(limits)
}

/// Run `work` without the interpreter lock. Its observer delivers signals and progress.
fn detached<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(&mut crate::source::Observer<'_>) -> crate::Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let result = py.detach(|| {
        let mut observer = |bytes: u64| {
            let asked = Python::attach(|py| {
                py.check_signals()?;
                if let Some(progress) = &progress {
                    progress.call1(py, (bytes,))?;
                }
                Ok(())
            });
            match asked {
                Ok(()) => true,
                Err(error) => {
                    raised = Some(error);
                    false
                }
            }
        };
        work(&mut observer)
    });
    result.map_err(|error| raised.unwrap_or_else(|| to_python(py, error)))
}

#[pyclass(frozen, get_all, module = "microsandbox_oci._native")]
struct LayerResult {
    diff_id: String,
    digest: String,
    compressed_size: u64,
    uncompressed_size: u64,
    entries: u64,
    blocks: u64,
    compression: String,
}

#[pyclass(frozen, get_all, module = "microsandbox_oci._native")]
struct MergeResult {
    blocks: u64,
    inodes: u64,
    chunk_indexes: u64,
    layer_blocks: Vec<u32>,
}

#[pyfunction]
#[pyo3(signature = (source, out, *, compression="none", limits=None, progress=None))]
fn convert_layer(
    py: Python<'_>,
    source: RawFd,
    out: RawFd,
    compression: &str,
    limits: Option<&Bound<'_, PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<LayerResult> {
    let limits = self::limits(limits)?;
    let encoding = Encoding::parse(compression)
        .ok_or_else(|| PyValueError::new_err(format!("unknown compression {compression:?}")))?;
    let (source, out) = (file(source)?, output(out)?);
    let done = detached(py, progress, |observer| {
        convert::convert(Patient(&source), &out, encoding, &limits, observer)
    })?;
    let summary = done.summary;
    Ok(LayerResult {
        diff_id: format!("sha256:{}", hex(&summary.diff_id)),
        digest: format!("sha256:{}", hex(&summary.digest)),
        compressed_size: summary.compressed_size,
        uncompressed_size: summary.uncompressed_size,
        entries: done.entries,
        blocks: done.blocks.into(),
        compression: summary.compression.as_str().to_owned(),
    })
}

#[pyfunction]
#[pyo3(signature = (path, out, *, limits=None, progress=None))]
fn pack_directory(
    py: Python<'_>,
    path: Vec<u8>,
    out: RawFd,
    limits: Option<&Bound<'_, PyAny>>,
    progress: Option<Py<PyAny>>,
) -> PyResult<LayerResult> {
    let limits = self::limits(limits)?;
    let out = output(out)?;
    let packed = detached(py, progress, |observer| {
        pack::pack(&path, &out, &limits, observer)
    })?;
    let id = format!("sha256:{}", hex(&packed.identity));
    Ok(LayerResult {
        diff_id: id.clone(),
        digest: id,
        compressed_size: 0,
        uncompressed_size: packed.bytes,
        entries: packed.entries,
        blocks: packed.blocks.into(),
        compression: "none".to_owned(),
    })
}

#[pyfunction]
fn fingerprint_directory(py: Python<'_>, path: Vec<u8>) -> PyResult<String> {
    detached(py, None, |observer| {
        fingerprint::fingerprint(&path, observer)
    })
    .map(|digest| hex(&digest))
}

#[pyfunction]
#[pyo3(name = "merge", signature = (layers, out, *, limits=None))]
fn merge_layers(
    py: Python<'_>,
    layers: Vec<RawFd>,
    out: RawFd,
    limits: Option<&Bound<'_, PyAny>>,
) -> PyResult<MergeResult> {
    let limits = limits.map(|given| self::limits(Some(given))).transpose()?;
    let layers = layers.into_iter().map(file).collect::<PyResult<Vec<_>>>()?;
    let out = output(out)?;
    let merged = detached(py, None, |observer| match &limits {
        Some(limits) => merge::merge_within(&layers, &out, limits, observer),
        None => merge::merge(&layers, &out, observer),
    })?;
    Ok(MergeResult {
        blocks: merged.written.blocks.into(),
        inodes: merged.written.inodes,
        chunk_indexes: merged.written.chunk_indexes,
        layer_blocks: merged.layer_blocks,
    })
}

#[pyfunction]
#[pyo3(signature = (metadata, layers, write, *, progress=None))]
fn export_tar(
    py: Python<'_>,
    metadata: RawFd,
    layers: Vec<RawFd>,
    write: Py<PyAny>,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    let metadata = file(metadata)?;
    let layers = layers.into_iter().map(file).collect::<PyResult<Vec<_>>>()?;
    let mut raised = None;
    let mut out = |piece: &[u8]| {
        Python::attach(|py| write.call1(py, (PyBytes::new(py, piece),)))
            .map(drop)
            .map_err(|error| {
                raised = Some(error);
                Error::Cancelled
            })
    };
    let done = detached(py, progress, |observer| {
        export::export(&metadata, &layers, &mut out, observer)
    });
    done.map_err(|error| raised.unwrap_or(error))
}

#[pyfunction]
fn vmdk_descriptor(extents: Vec<(String, u64)>) -> PyResult<String> {
    let extents: Vec<_> = extents
        .iter()
        .map(|(name, size)| (name.as_str(), *size))
        .collect();
    vmdk::descriptor(&extents).map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pyfunction]
fn check_layer(py: Python<'_>, fd: RawFd) -> PyResult<()> {
    let file = file(fd)?;
    detached(py, None, |_| check::check(&file))
}

#[pyfunction]
fn sha256_fd(py: Python<'_>, fd: RawFd) -> PyResult<String> {
    let file = file(fd)?;
    detached(py, None, |observer| check::sha256(&file, observer)).map(|digest| hex(&digest))
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = m.py();
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let defaults = PyDict::new(py);
    for (name, value) in Limits::default().named() {
        defaults.set_item(name, *value)?;
    }
    let proxy = py.import("types")?.getattr("MappingProxyType")?;
    m.add("DEFAULT_LIMITS", proxy.call1((defaults,))?)?;
    m.add("LayerError", py.get_type::<LayerError>())?;
    m.add_class::<LayerResult>()?;
    m.add_class::<MergeResult>()?;
    m.add_function(wrap_pyfunction!(convert_layer, m)?)?;
    m.add_function(wrap_pyfunction!(pack_directory, m)?)?;
    m.add_function(wrap_pyfunction!(fingerprint_directory, m)?)?;
    m.add_function(wrap_pyfunction!(merge_layers, m)?)?;
    m.add_function(wrap_pyfunction!(export_tar, m)?)?;
    m.add_function(wrap_pyfunction!(vmdk_descriptor, m)?)?;
    m.add_function(wrap_pyfunction!(check_layer, m)?)?;
    m.add_function(wrap_pyfunction!(sha256_fd, m)?)?;
    Ok(())
}
