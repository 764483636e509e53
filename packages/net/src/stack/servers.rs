//! The name servers to ask: the host's, or those of the configuration.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a server that did not answer is asked after the others.
const SULK: Duration = Duration::from_secs(30);
/// The most servers of a list; resolv.conf(5) reads three.
const MOST: usize = 8;

/// The servers in the text of a resolv.conf (resolv.conf(5)). Those that need an interface are left out.
pub fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let lines = resolv_conf.lines().map(str::split_whitespace);
    let named = lines.filter_map(|mut words| match words.next() {
        Some("nameserver") => words.next()?.parse::<IpAddr>().ok(),
        _ => None,
    });
    named
        .map(|address| SocketAddr::new(address, super::dns::PORT))
        .take(MOST)
        .collect()
}

/// Servers in the order in which they are asked.
pub struct Servers {
    list: Vec<(SocketAddr, Option<Instant>)>,
    file: Option<(PathBuf, Option<Stamp>)>,
}

/// What tells one state of a file from another: device, inode, length, and time of the last change.
type Stamp = (u64, u64, u64, i64, i64);

impl Servers {
    pub fn fixed(list: Vec<SocketAddr>) -> Servers {
        Servers {
            list: list.into_iter().map(|server| (server, None)).collect(),
            file: None,
        }
    }

    /// Those of a resolv.conf, which is read again whenever it changed.
    pub fn of_file(path: PathBuf) -> Servers {
        Servers {
            list: Vec::new(),
            file: Some((path, None)),
        }
    }

    /// Look whether the file changed. True if other servers are asked from now on. One that cannot be read
    /// changes nothing: somebody is just writing it.
    pub fn refresh(&mut self) -> bool {
        let Some((path, seen)) = &mut self.file else {
            return false;
        };
        let stamp = std::fs::metadata(&*path).map(|file| {
            (
                file.dev(),
                file.ino(),
                file.len(),
                file.mtime(),
                file.mtime_nsec(),
            )
        });
        let first = seen.is_none();
        let text = match stamp {
            Ok(stamp) if *seen == Some(stamp) => return false,
            Ok(stamp) => match std::fs::read_to_string(&*path) {
                Ok(text) => {
                    *seen = Some(stamp);
                    text
                }
                Err(_) => String::new(),
            },
            Err(_) => String::new(),
        };
        if text.is_empty() && !first {
            return false;
        }
        let mut found = servers(&text);
        if found.is_empty() {
            // As for every other program of the host (resolv.conf(5)).
            found.push((Ipv4Addr::LOCALHOST, super::dns::PORT).into());
        }
        if found.iter().eq(self.list.iter().map(|(server, _)| server)) {
            return false;
        }
        self.list = found.into_iter().map(|server| (server, None)).collect();
        true
    }

    /// All of them, those that did not answer lately last.
    pub fn order(&self, now: Instant) -> Vec<SocketAddr> {
        let sulks = |missed: &Option<Instant>| {
            missed.is_some_and(|since| now.saturating_duration_since(since) < SULK)
        };
        let (last, first): (Vec<_>, Vec<_>) =
            self.list.iter().partition(|(_, missed)| sulks(missed));
        let both = first.into_iter().chain(last);
        both.map(|(server, _)| server).collect()
    }

    /// Whether `server` answered.
    pub fn note(&mut self, server: SocketAddr, answered: bool, now: Instant) {
        for (known, missed) in &mut self.list {
            if *known == server {
                *missed = (!answered).then_some(now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(servers: &Servers, now: Instant) -> Vec<String> {
        let order = servers.order(now);
        order.iter().map(|server| server.ip().to_string()).collect()
    }

    #[test]
    fn who_does_not_answer_is_asked_last_for_a_while() {
        let now = Instant::now();
        let text = "nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let mut list = Servers::fixed(servers(text));
        list.note("192.0.2.1:53".parse().unwrap(), false, now);
        assert_eq!(
            addresses(&list, now),
            ["192.0.2.2", "192.0.2.3", "192.0.2.1"]
        );
        assert_eq!(addresses(&list, now + SULK)[0], "192.0.2.1");
        list.note("192.0.2.1:53".parse().unwrap(), true, now);
        assert_eq!(addresses(&list, now)[0], "192.0.2.1");
    }

    #[test]
    fn the_file_is_read_again_when_it_changed() {
        let path = std::env::temp_dir().join(format!("resolv-{}.conf", std::process::id()));
        let now = Instant::now();
        let mut list = Servers::of_file(path.clone());
        assert!(list.refresh());
        assert_eq!(addresses(&list, now), ["127.0.0.1"]);
        std::fs::write(&path, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        assert!(list.refresh());
        assert_eq!(addresses(&list, now), ["127.0.0.53"]);
        assert!(!list.refresh());
        // Replaced as a whole, by something of the same length.
        let other = path.with_extension("new");
        std::fs::write(&other, "nameserver 127.0.0.54\noptions edns0\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(list.refresh());
        assert_eq!(addresses(&list, now), ["127.0.0.54"]);
        std::fs::write(&path, "").unwrap();
        assert!(!list.refresh());
        std::fs::remove_file(&path).unwrap();
        assert!(!list.refresh());
        assert_eq!(addresses(&list, now), ["127.0.0.54"]);
    }
}
