//! The extension module `microsandbox_net._native`; its types are described in `_native.pyi`.
//! Everything crosses as text, so that what Python shows is what a user would write.

use crate::address;
use crate::policy::rule::{Http, Ports};
use crate::policy::{self, explain, Action, Destination, Direction, Effect, Flow, Name, Names};
use crate::policy::{Pins, Preset, Protocol, Rule, Verdict};
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use std::net::IpAddr;
use std::time::Instant;

create_exception!(
    microsandbox_net._native,
    PolicyError,
    PyValueError,
    "A network policy that cannot be what was written; `hint` says what to write instead."
);

pub(crate) fn to_python(py: Python<'_>, error: policy::PolicyError) -> PyErr {
    let raised = PolicyError::new_err(error.message);
    match raised.value(py).setattr("hint", error.hint) {
        Ok(()) => raised,
        Err(other) => other,
    }
}

fn plain(py: Python<'_>, message: String, hint: &str) -> PyErr {
    to_python(py, policy::PolicyError::new(message, hint))
}

fn parse_address(py: Python<'_>, text: &str) -> PyResult<IpAddr> {
    text.parse().map_err(|_| {
        let shown = policy::error::quoted(text);
        plain(
            py,
            format!("{shown} is no IP address"),
            "write 192.0.2.1 or 2001:db8::1",
        )
    })
}

fn parse_name(py: Python<'_>, text: &str) -> PyResult<Name> {
    Name::parse(text).ok_or_else(|| {
        let shown = policy::error::quoted(text);
        plain(
            py,
            format!("{shown} is no host name"),
            "write a name such as example.com",
        )
    })
}

fn parse_protocol(py: Python<'_>, text: &str) -> PyResult<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Icmp]
        .into_iter()
        .find(|protocol| protocol.as_str() == text)
        .ok_or_else(|| {
            let shown = policy::error::quoted(text);
            plain(
                py,
                format!("{shown} is no protocol"),
                "write tcp, udp or icmp",
            )
        })
}

fn parse_direction(py: Python<'_>, text: &str) -> PyResult<Direction> {
    match text {
        "egress" => Ok(Direction::Egress),
        "ingress" => Ok(Direction::Ingress),
        other => {
            let shown = policy::error::quoted(other);
            Err(plain(
                py,
                format!("{shown} is no direction"),
                "write egress or ingress",
            ))
        }
    }
}

#[pyfunction]
fn classify(py: Python<'_>, text: &str) -> PyResult<&'static str> {
    Ok(address::classify(parse_address(py, text)?).as_str())
}

#[pyfunction]
fn destination(py: Python<'_>, kind: &str, text: &str) -> PyResult<String> {
    let parsed = match kind {
        "ip" => Destination::ip(text),
        "cidr" => Destination::cidr(text),
        "domain" => Destination::domain(text),
        "domain_suffix" => Destination::domain_suffix(text),
        "group" => Destination::group(text),
        _ => Destination::parse(text),
    };
    let parsed = parsed.map_err(|error| to_python(py, error))?;
    Ok(parsed.to_string())
}

/// Action, direction, destination, protocol, ports: what a rule in text says.
type Parts = (
    &'static str,
    &'static str,
    String,
    Option<&'static str>,
    Option<String>,
);

#[pyfunction]
fn parse_rule(py: Python<'_>, text: &str) -> PyResult<Parts> {
    let rule: Rule = text.parse().map_err(|error| to_python(py, error))?;
    let action = match rule.effect() {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    };
    let direction = match rule.direction() {
        Direction::Egress => "egress",
        Direction::Ingress => "ingress",
    };
    Ok((
        action,
        direction,
        rule.destination().to_string(),
        rule.protocol().map(Protocol::as_str),
        rule.ports().map(ToString::to_string),
    ))
}

/// A rule in parts: action, direction, destination, protocol, ports, HTTP methods, HTTP paths.
#[derive(FromPyObject)]
struct Written(
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    Vec<String>,
    Vec<String>,
);

fn build_rule(py: Python<'_>, written: &Written) -> PyResult<Rule> {
    let Written(action, direction, destination, protocol, ports, methods, paths) = written;
    let effect = match action.as_str() {
        "allow" => Effect::Allow,
        "deny" => Effect::Deny,
        other => {
            let shown = policy::error::quoted(other);
            return Err(plain(
                py,
                format!("{shown} is no action"),
                "write allow or deny",
            ));
        }
    };
    let direction = parse_direction(py, direction)?;
    let protocol = match protocol {
        Some(text) => Some(parse_protocol(py, text)?),
        None => None,
    };
    let http = (!methods.is_empty() || !paths.is_empty()).then(|| Http {
        methods: methods.clone(),
        paths: paths.clone(),
    });
    Destination::parse(destination)
        .and_then(|destination| {
            let ports = ports.as_deref().map(Ports::parse).transpose()?;
            Rule::new(effect, direction, destination, protocol, ports, http)
        })
        .map_err(|error| to_python(py, error))
}

/// The rule in text, if it is one.
#[pyfunction]
fn check_rule(py: Python<'_>, written: Written) -> PyResult<String> {
    Ok(build_rule(py, &written)?.to_string())
}

fn told(verdict: Verdict) -> (&'static str, String) {
    let action = match verdict.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
        Action::AllowIfNamed => "allow-if-named",
    };
    (action, verdict.rule)
}

/// A flow: direction, protocol, address, port, stated name.
#[derive(FromPyObject)]
struct Asked(String, String, String, Option<u16>, Option<String>);

#[pyclass(frozen, module = "microsandbox_net._native")]
pub(crate) struct Policy(pub(crate) policy::Policy);

#[pymethods]
impl Policy {
    #[new]
    fn new(
        py: Python<'_>,
        preset: &str,
        rules: Vec<Written>,
        names: &str,
        host: Vec<String>,
    ) -> PyResult<Policy> {
        let rules: PyResult<Vec<Rule>> = rules.iter().map(|rule| build_rule(py, rule)).collect();
        let rules = rules?;
        let host: PyResult<Vec<IpAddr>> = host.iter().map(|text| parse_address(py, text)).collect();
        let host = host?;
        Preset::parse(preset)
            .and_then(|preset| policy::Policy::new(preset, rules, Names::parse(names)?))
            .map(|policy| Policy(policy.with_host(host)))
            .map_err(|error| to_python(py, error))
    }

    fn decide(
        &self,
        py: Python<'_>,
        flow: Asked,
        pins: Vec<(String, String)>,
    ) -> PyResult<(&'static str, String)> {
        let Asked(direction, protocol, address, port, name) = &flow;
        let mut pinned = Pins::default();
        for (name, address) in &pins {
            let (name, address) = (parse_name(py, name)?, parse_address(py, address)?);
            pinned.pin(&name, address, Instant::now());
        }
        let name = name.as_deref().map(|text| parse_name(py, text));
        let flow = Flow {
            direction: parse_direction(py, direction)?,
            protocol: parse_protocol(py, protocol)?,
            address: parse_address(py, address)?,
            port: *port,
            name: name.transpose()?,
        };
        Ok(told(policy::decide(&flow, &self.0, &pinned)))
    }

    fn decide_name(&self, py: Python<'_>, name: &str) -> PyResult<(&'static str, String)> {
        Ok(told(policy::decide_name(&parse_name(py, name)?, &self.0)))
    }

    fn decide_answer(
        &self,
        py: Python<'_>,
        name: &str,
        address: &str,
    ) -> PyResult<(&'static str, String)> {
        let (name, address) = (parse_name(py, name)?, parse_address(py, address)?);
        Ok(told(policy::decide_answer(&name, address, &self.0)))
    }

    fn explain(
        &self,
        py: Python<'_>,
        target: &str,
        protocol: &str,
    ) -> PyResult<(&'static str, String)> {
        let protocol = parse_protocol(py, protocol)?;
        let target = explain::parse(target).map_err(|error| to_python(py, error))?;
        if protocol != Protocol::Icmp && target.port.is_none() {
            let message = format!("{} has ports, and none is given", protocol.as_str());
            return Err(plain(py, message, "write HOST:PORT"));
        }
        Ok(told(explain::explain(
            &target.host,
            protocol,
            target.port,
            &self.0,
        )))
    }
}

#[pymodule]
fn _native(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    let error = m.py().get_type::<PolicyError>();
    error.setattr("code", "network_policy")?;
    m.add("PolicyError", error)?;
    m.add_class::<Policy>()?;
    m.add_class::<crate::stack::python::Stack>()?;
    m.add_function(wrap_pyfunction!(classify, m)?)?;
    m.add_function(wrap_pyfunction!(destination, m)?)?;
    m.add_function(wrap_pyfunction!(parse_rule, m)?)?;
    m.add_function(wrap_pyfunction!(check_rule, m)?)?;
    m.add_function(wrap_pyfunction!(crate::stack::python::check_proxy, m)?)?;
    m.add_function(wrap_pyfunction!(crate::stack::python::proxy_way, m)?)
}
