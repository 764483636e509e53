//! How a TCP flow of the guest reaches its target: by itself, or through the proxy. What the proxy does not carry is
//! refused, and never goes another way.

use super::core::Core;
use super::proxy::Proxy;
use super::upstream::{dial, Upstream};
use crate::authority::Host;
use crate::policy::{Action, Flow, Name, Verdict};
use crate::wire::tunnel::{Handshake, Next, Reach, Refusal};
use rustix::io::Errno;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long the addresses of the proxy's name are good.
const LOOKED_UP: Duration = Duration::from_secs(60);

/// The addresses of a proxy that has a name, and when they were asked for.
#[derive(Default)]
pub struct Whereabouts(Mutex<Option<(Instant, Vec<SocketAddr>)>>);

/// A connection for `flow`, which leads to `target`. What the error says is for the guest; it is on record if the
/// proxy is its cause.
pub async fn reach(core: &Core, flow: &Flow, target: IpAddr) -> io::Result<Upstream> {
    let most = core.config.limits.connect;
    let port = flow.port.unwrap_or_default();
    let Some(proxy) = &core.config.proxy else {
        let connecting = Upstream::connect(target, port);
        return match timeout(most, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
    };
    let names = core.gate.borrow().names(flow);
    let reached = timeout(most, through(core, proxy, flow, &names, (target, port))).await;
    let (why, told) = match reached {
        Ok(Ok(upstream)) => return Ok(upstream),
        Ok(Err(Failure::Target(error))) => return Err(error),
        Ok(Err(Failure::Itself)) => {
            let rule = "built-in: the proxy is not for the sandbox to reach".to_owned();
            (rule, Errno::ACCESS)
        }
        Ok(Err(Failure::Proxy(why, told))) => (format!("proxy {proxy}: {why}"), told),
        Err(_) if past(core, proxy, flow, target, &names) => {
            return Err(io::ErrorKind::TimedOut.into())
        }
        Err(_) => {
            let why = format!("proxy {proxy}: no answer within {} s", most.as_secs_f64());
            (why, Errno::HOSTUNREACH)
        }
    };
    let asked = Flow {
        name: names.first().cloned(),
        ..flow.clone()
    };
    let action = Action::Deny;
    core.record(&asked, &Verdict { action, rule: why });
    Err(told.into())
}

/// Whether `flow` would have to go through the proxy, which carries TCP only.
pub fn proxied(core: &Core, flow: &Flow) -> bool {
    core.config.proxy.as_ref().is_some_and(|proxy| {
        let names = core.gate.borrow().names(flow);
        !past(core, proxy, flow, core.upstream(flow.address), &names)
    })
}

/// Whether `flow` goes past the proxy: to the host itself, or because it is exempt. Where it has several names, all
/// of them have to be.
fn past(core: &Core, proxy: &Proxy, flow: &Flow, target: IpAddr, names: &[Name]) -> bool {
    let ends = core.ends(flow.address);
    let host = ends.is_some_and(|(_, gateway)| gateway == flow.address);
    let named = !names.is_empty() && names.iter().all(|name| proxy.exempt.name(name));
    host || named || proxy.exempt.address(target)
}

enum Failure {
    /// Of the target of a flow that goes past the proxy.
    Target(io::Error),
    /// The target is the proxy.
    Itself,
    /// What is on record, and what the guest is told.
    Proxy(String, Errno),
}

fn unreachable(why: impl ToString) -> Failure {
    Failure::Proxy(why.to_string(), Errno::HOSTUNREACH)
}

async fn through(
    core: &Core,
    proxy: &Proxy,
    flow: &Flow,
    names: &[Name],
    (target, port): (IpAddr, u16),
) -> Result<Upstream, Failure> {
    let ways = addresses(core, proxy).await.map_err(unreachable)?;
    if ways.iter().any(|way| is_same((target, port), *way)) {
        return Err(Failure::Itself);
    }
    if past(core, proxy, flow, target, names) {
        return Upstream::connect(target, port)
            .await
            .map_err(Failure::Target);
    }
    let mut stream = Err(unreachable("its name has no address"));
    for way in ways {
        stream = dial(way.ip(), way.port()).await.map_err(unreachable);
        if stream.is_ok() {
            break;
        }
    }
    let mut stream = stream?;
    let host = match names.first() {
        Some(name) => Host::Name(name.clone()),
        None => Host::Address(target),
    };
    ask(&mut stream, proxy, &host, port).await?;
    Upstream::over(stream).map_err(unreachable)
}

async fn addresses(core: &Core, proxy: &Proxy) -> io::Result<Vec<SocketAddr>> {
    let name = match &proxy.host {
        Host::Address(address) => return Ok(vec![SocketAddr::new(*address, proxy.port)]),
        Host::Name(name) => name,
    };
    // Held over the question: one of many flows asks it for all.
    let mut known = core.whereabouts.0.lock().await;
    if let Some((asked, addresses)) = known.as_ref() {
        if asked.elapsed() < LOOKED_UP {
            return Ok(addresses.clone());
        }
    }
    let found = tokio::net::lookup_host((name.as_str(), proxy.port)).await?;
    let found: Vec<_> = found.collect();
    *known = Some((Instant::now(), found.clone()));
    Ok(found)
}

/// Whether `target` is the proxy, which may be on this host and have other addresses there.
fn is_same((target, port): (IpAddr, u16), way: SocketAddr) -> bool {
    // What can be bound is this host's.
    let own = |address: IpAddr| UdpSocket::bind((address, 0)).is_ok();
    port == way.port() && (target == way.ip() || (own(target) && own(way.ip())))
}

async fn ask(stream: &mut TcpStream, proxy: &Proxy, host: &Host, port: u16) -> Result<(), Failure> {
    let credentials = proxy.credentials.as_ref();
    let credentials = credentials.map(|(user, password)| (&user[..], &password[..]));
    let (mut handshake, first) = Handshake::new(proxy.protocol, credentials, host, port);
    stream.write_all(&first).await.map_err(unreachable)?;
    let mut bytes = [0; 2048];
    loop {
        // Looked at before it is taken: what follows the answer belongs to the flow.
        let count = stream.peek(&mut bytes).await.map_err(unreachable)?;
        if count == 0 {
            return Err(unreachable("it ended the connection"));
        }
        let step = handshake.feed(&bytes[..count]);
        let answer = &mut bytes[..step.used];
        stream.read_exact(answer).await.map_err(unreachable)?;
        match step.next {
            Next::Read => {}
            Next::Send(message) => stream.write_all(&message).await.map_err(unreachable)?,
            Next::Open => return Ok(()),
            Next::Refused(refusal) => return Err(refused(refusal)),
        }
    }
}

fn refused(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Refused(reach, why) => {
            let told = match reach {
                Reach::Refused => Errno::CONNREFUSED,
                Reach::Network => Errno::NETUNREACH,
                Reach::Host => Errno::HOSTUNREACH,
                Reach::Prohibited => Errno::ACCESS,
            };
            Failure::Proxy(format!("it refused with {why}"), told)
        }
        Refusal::Credentials => unreachable("it wants a user and a password, or others"),
        Refusal::Garbage(why) => unreachable(format!("it does not speak the protocol: {why}")),
    }
}
