//! The stack as Python sees it; its types are described in `_native.pyi`.

use super::config::{Config, Limits};
use super::forward::{Forwarder, Mode};
use super::packet::{Ends, Mac};
use super::proxy::{Proxy, Way};
use super::publish::{Binding, PortUnavailable};
use super::rate;
use super::run;
use super::servers::Servers;
use super::warden::{Ward, Warden};
use crate::policy::{self, Protocol};
use crate::python::{to_python, Policy};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use rustix::event::{eventfd, EventfdFlags};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Descriptors that are left to the rest of the process.
const SPARE: usize = 256;

/// What `microsandbox_net.StackConfig` holds, as text.
#[derive(FromPyObject)]
struct Written {
    guest_mac: String,
    gateway_mac: String,
    ipv4: Option<(String, String)>,
    ipv6: Option<(String, String)>,
    mtu: usize,
    nameservers: Option<Vec<String>>,
    dns_mode: String,
    max_connections: usize,
    max_datagram_flows: usize,
    connect_timeout: f64,
    tcp_idle_timeout: f64,
    udp_idle_timeout: f64,
    time_wait: f64,
    naming_timeout: f64,
    stay_awake: f64,
    audit_records: usize,
    rates: Vec<rate::Written>,
    ports: Vec<WrittenPort>,
    proxy: Option<String>,
    no_proxy: String,
}

/// What `microsandbox_net.PortBinding` holds.
#[derive(FromPyObject)]
struct WrittenPort {
    protocol: String,
    address: String,
    host_port: u16,
    guest_port: u16,
}

#[pyclass(frozen, module = "microsandbox_net._native")]
pub struct Stack {
    stack: Mutex<run::Stack>,
    ward: Ward,
    gateways: Vec<IpAddr>,
    bell: Arc<OwnedFd>,
}

fn wrong(what: &str, seen: &str, wanted: &str) -> PyErr {
    PyValueError::new_err(format!("{what} {seen:?} is not {wanted}"))
}

fn mac(what: &str, text: &str) -> PyResult<Mac> {
    let parts = text.split(':').map(|part| match part.len() {
        2 => u8::from_str_radix(part, 16).ok(),
        _ => None,
    });
    let parts: Option<Vec<u8>> = parts.collect();
    let mac: Option<Mac> = parts.and_then(|parts| parts.try_into().ok());
    mac.filter(|mac| mac[0] & 1 == 0).ok_or_else(|| {
        wrong(
            what,
            text,
            "an Ethernet address of one host, as 02:00:00:00:00:01",
        )
    })
}

fn address<T: std::str::FromStr>(what: &str, text: &str, family: &str) -> PyResult<T> {
    text.parse().map_err(|_| wrong(what, text, family))
}

fn seconds(what: &str, value: f64) -> PyResult<Duration> {
    let duration = Duration::try_from_secs_f64(value).ok();
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| wrong(what, &value.to_string(), "a number of seconds above 0"))
}

fn awake(value: f64) -> PyResult<Duration> {
    let duration = Duration::try_from_secs_f64(value).ok();
    duration
        .filter(|duration| *duration <= Duration::from_millis(1))
        .ok_or_else(|| {
            let wanted = "a number of seconds from 0 to 0.001";
            wrong("stay_awake", &value.to_string(), wanted)
        })
}

fn os_error(error: &io::Error) -> PyErr {
    let inner = error.get_ref();
    if let Some(unavailable) = inner.and_then(|inner| inner.downcast_ref()) {
        return Python::attach(|py| port_unavailable(py, unavailable))
            .unwrap_or_else(|other| other);
    }
    match error.raw_os_error() {
        Some(errno) => PyOSError::new_err((errno, error.to_string())),
        None => PyValueError::new_err(error.to_string()),
    }
}

/// The error of Python, which has parts.
fn port_unavailable(py: Python<'_>, why: &PortUnavailable) -> PyResult<PyErr> {
    let Binding { protocol, host, .. } = why.binding;
    let kind = py
        .import("microsandbox_net._stack")?
        .getattr("PortUnavailable")?;
    let parts = (
        host.port(),
        protocol.as_str(),
        why.reason(),
        host.ip().to_string(),
    );
    let raised = kind.call1(parts)?;
    raised.setattr("errno", why.error.raw_os_error())?;
    Ok(PyErr::from_value(raised))
}

/// No more flows than there are descriptors for beside those of `ports`, whatever was asked for.
fn affordable(wanted: usize, ports: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let most = limit
        .and_then(|most| usize::try_from(most).ok())
        .unwrap_or(usize::MAX);
    wanted.min(most.saturating_sub(SPARE + ports).max(16))
}

fn binding(written: &WrittenPort) -> PyResult<Binding> {
    let protocol = match written.protocol.as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(wrong("protocol of a published port", other, "tcp or udp")),
    };
    if written.guest_port == 0 {
        return Err(wrong("guest_port", "0", "between 1 and 65535"));
    }
    let host: IpAddr = address(
        "address of a published port",
        &written.address,
        "an IP address",
    )?;
    Ok(Binding {
        protocol,
        host: SocketAddr::new(host, written.host_port),
        guest: written.guest_port,
    })
}

fn configuration(written: &Written) -> PyResult<Config> {
    let v4 = match &written.ipv4 {
        Some((guest, gateway)) => Some((
            address("ipv4 guest address", guest, "an IPv4 address")?,
            address("ipv4 gateway", gateway, "an IPv4 address")?,
        )),
        None => None,
    };
    let v6 = match &written.ipv6 {
        Some((guest, gateway)) => Some((
            address("ipv6 guest address", guest, "an IPv6 address")?,
            address("ipv6 gateway", gateway, "an IPv6 address")?,
        )),
        None => None,
    };
    if !(1280..=65_520).contains(&written.mtu) {
        return Err(wrong(
            "mtu",
            &written.mtu.to_string(),
            "between 1280 and 65520",
        ));
    }
    let counts = [
        ("max_connections", written.max_connections),
        ("max_datagram_flows", written.max_datagram_flows),
        ("audit_records", written.audit_records),
    ];
    for (what, count) in counts {
        if count == 0 {
            return Err(wrong(what, "0", "at least 1"));
        }
    }
    Ok(Config {
        ends: Ends {
            guest_mac: mac("guest_mac", &written.guest_mac)?,
            gateway_mac: mac("gateway_mac", &written.gateway_mac)?,
            v4,
            v6,
        },
        mtu: written.mtu,
        limits: Limits {
            connections: affordable(written.max_connections, written.ports.len()),
            datagrams: affordable(written.max_datagram_flows, written.ports.len()),
            audit: written.audit_records,
            connect: seconds("connect_timeout", written.connect_timeout)?,
            tcp_idle: seconds("tcp_idle_timeout", written.tcp_idle_timeout)?,
            udp_idle: seconds("udp_idle_timeout", written.udp_idle_timeout)?,
            rates: rate::Bounds::new(&written.rates).map_err(PyValueError::new_err)?,
            time_wait: seconds("time_wait", written.time_wait)?,
            stay_awake: awake(written.stay_awake)?,
            naming: seconds("naming_timeout", written.naming_timeout)?,
            ..Limits::default()
        },
        proxy: match &written.proxy {
            Some(url) => Some(Proxy::parse(url, &written.no_proxy).map_err(PyValueError::new_err)?),
            None => None,
        },
        ports: written.ports.iter().map(binding).collect::<PyResult<_>>()?,
    })
}

fn nameservers(written: &Written) -> PyResult<Servers> {
    let Some(texts) = &written.nameservers else {
        return Ok(Servers::of_file("/etc/resolv.conf".into()));
    };
    let parsed: PyResult<Vec<IpAddr>> = texts
        .iter()
        .map(|text| address("nameserver", text, "an IP address"))
        .collect();
    let at_port = |address| SocketAddr::new(address, super::dns::PORT);
    Ok(Servers::fixed(parsed?.into_iter().map(at_port).collect()))
}

fn dns_mode(text: &str) -> PyResult<Mode> {
    match text {
        "resolve" => Ok(Mode::Resolve),
        "synthetic" => Ok(Mode::Synthetic),
        _ => Err(wrong("dns_mode", text, "resolve or synthetic")),
    }
}

/// The proxy at `url` without user and password, or what is wrong with it or with what goes past it.
#[pyfunction]
pub fn check_proxy(url: &str, no_proxy: &str) -> PyResult<String> {
    let proxy = Proxy::parse(url, no_proxy).map_err(PyValueError::new_err)?;
    Ok(proxy.to_string())
}

/// How a flow to `target`, `HOST:PORT`, would go: `through`, `past`, or `itself`.
#[pyfunction]
pub fn proxy_way(
    py: Python<'_>,
    url: &str,
    no_proxy: &str,
    target: &str,
) -> PyResult<&'static str> {
    let proxy = Proxy::parse(url, no_proxy).map_err(PyValueError::new_err)?;
    let target = policy::explain::parse(target).map_err(|error| to_python(py, error))?;
    Ok(match proxy.way(&target.host, target.port) {
        Way::Through => "through",
        Way::Past => "past",
        Way::Itself => "itself",
    })
}

impl Stack {
    /// `policy`, in which the gateways stand for the host: what goes to them arrives at its loopback.
    fn anchored(policy: &policy::Policy, gateways: &[IpAddr]) -> policy::Policy {
        let host: Vec<IpAddr> = policy.host().iter().chain(gateways).copied().collect();
        policy.clone().with_host(host)
    }

    fn running<T>(&self, work: impl FnOnce(&mut run::Stack) -> T) -> T {
        work(&mut self.stack.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[pymethods]
impl Stack {
    #[new]
    fn new(link: RawFd, config: Written, policy: &Policy) -> PyResult<Stack> {
        let written = config;
        let config = configuration(&written)?;
        if link < 0 {
            return Err(PyValueError::new_err("link: negative file descriptor"));
        }
        // SAFETY: the descriptor is only duplicated, at once; if it is not open, the system call says EBADF.
        // It is not -1, the one value that `BorrowedFd` must not hold.
        let borrowed = unsafe { BorrowedFd::borrow_raw(link) };
        let link = borrowed
            .try_clone_to_owned()
            .map_err(|error| os_error(&error))?;
        let v4 = config.ends.v4.map(|(_, gateway)| IpAddr::from(gateway));
        let v6 = config.ends.v6.map(|(_, gateway)| IpAddr::from(gateway));
        let gateways: Vec<IpAddr> = v4.into_iter().chain(v6).collect();
        let ward = Ward::new(Stack::anchored(&policy.0, &gateways));
        let (servers, mode) = (nameservers(&written)?, dns_mode(&written.dns_mode)?);
        let forwarder = Forwarder::over(ward.clone(), config.ends, servers, mode);
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let bell = Arc::new(bell.map_err(|error| os_error(&error.into()))?);
        let rung = Arc::clone(&bell);
        // A counter that is full rings all the same.
        let ring = move || {
            let _ = rustix::io::write(&*rung, &1u64.to_ne_bytes());
        };
        let gate = Box::new(Warden(ward.clone()));
        let stack = run::Stack::start(link, config, gate, Box::new(forwarder), Arc::new(ring));
        Ok(Stack {
            stack: Mutex::new(stack.map_err(|error| os_error(&error))?),
            ward,
            gateways,
            bell,
        })
    }

    fn set_policy(&self, policy: &Policy) {
        self.ward.narrow(Stack::anchored(&policy.0, &self.gateways));
        let gate = Box::new(Warden(self.ward.clone()));
        self.running(|stack| stack.set_gate(gate));
    }

    fn ports(&self) -> Vec<(String, u16)> {
        let ports = self.running(|stack| stack.ports().to_vec());
        let ports = ports.into_iter();
        ports
            .map(|bound| (bound.ip().to_string(), bound.port()))
            .collect()
    }

    fn metrics(&self) -> BTreeMap<String, u64> {
        self.running(|stack| stack.metrics().read())
            .into_iter()
            .collect()
    }

    fn audit(&self) -> Vec<String> {
        // Cleared first: what comes in between rings again.
        let _ = rustix::io::read(&*self.bell, &mut [0; 8]);
        self.running(|stack| stack.audit())
    }

    fn end(&self) -> Option<(bool, String)> {
        let end = self.running(|stack| stack.end())?;
        Some((matches!(end, run::End::Failed(_)), end.to_string()))
    }

    fn fileno(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    fn stop(&self, py: Python<'_>) {
        py.detach(|| self.running(run::Stack::stop));
    }
}
