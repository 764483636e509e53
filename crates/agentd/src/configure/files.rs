//! The files under /etc that a sandbox has of its own.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};

use super::mounts::create_directory;
use super::Configuration;
use crate::network::Network;

/// Makes the files that every sandbox gets, empty: filling them is less than making them. An image's own
/// resolv.conf stays, for sandboxes without a network.
pub fn prepare() -> io::Result<()> {
    ensure_etc()?;
    replace("/etc/hostname", b"", 0o644)?;
    replace("/etc/machine-id", b"", 0o444)?;
    replace("/etc/hosts", b"", 0o644)?;
    match fs::symlink_metadata("/etc/resolv.conf") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            replace("/etc/resolv.conf", b"", 0o644)
        }
        _ => Ok(()),
    }
}

/// Writes hostname, machine-id, hosts and, if given or if there is a network, resolv.conf.
pub fn write(configuration: &Configuration) -> io::Result<()> {
    ensure_etc()?;
    let hostname = format!("{}\n", configuration.hostname);
    replace("/etc/hostname", hostname.as_bytes(), 0o644)?;
    let machine_id = format!("{}\n", configuration.machine_id);
    replace("/etc/machine-id", machine_id.as_bytes(), 0o444)?;
    replace("/etc/hosts", hosts(configuration).as_bytes(), 0o644)?;
    let asked = configuration.resolv_conf.clone();
    match (asked, &configuration.network) {
        (Some(content), _) => replace("/etc/resolv.conf", &content, 0o644),
        (None, Some(network)) => name_servers(network),
        (None, None) => Ok(()),
    }
}

/// Writes the name servers of a network into resolv.conf.
pub fn name_servers(network: &Network) -> io::Result<()> {
    replace("/etc/resolv.conf", network.resolv_conf().as_bytes(), 0o644)
}

fn ensure_etc() -> io::Result<()> {
    // A link to a directory stays: there are images whose /etc is one.
    match fs::metadata("/etc") {
        Ok(found) if found.is_dir() => Ok(()),
        _ => create_directory("/etc", 0o755),
    }
}

/// The text of /etc/hosts.
fn hosts(configuration: &Configuration) -> String {
    let name = &configuration.hostname;
    let mut text = String::from(
        "127.0.0.1 localhost\n\
         ::1 localhost ip6-localhost ip6-loopback\n",
    );
    text += &format!("127.0.1.1 {name}\n");
    for (address, names) in &configuration.hosts {
        text += &format!("{address} {}\n", names.join(" "));
    }
    text
}

/// Writes a file at exactly this path. An image may have a link there, dangling or into a place
/// that does not exist yet (`/run/systemd/resolve/...`): it is replaced, not followed.
fn replace(path: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .custom_flags(libc::O_NOFOLLOW)
        .mode(mode);
    match fs::symlink_metadata(path) {
        Ok(found) if is_ours(&found, mode) => return options.open(path)?.write_all(content),
        Ok(found) if found.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let mut file = options.create_new(true).open(path)?;
    // The mode above is subject to the umask, which is the kernel's default here.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)
}

/// Whether a file is as `prepare` makes it.
fn is_ours(found: &fs::Metadata, mode: u32) -> bool {
    let owner = (found.uid(), found.gid(), found.nlink());
    found.is_file() && found.len() == 0 && found.mode() & 0o7777 == mode && owner == (0, 0, 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::super::Disks;
    use super::*;

    fn configuration() -> Configuration {
        Configuration {
            entropy: vec![],
            time_ns: 0,
            hostname: "box".into(),
            machine_id: String::new(),
            disks: Disks {
                image: String::new(),
                upper: String::new(),
            },
            hosts: vec![("10.0.0.1".into(), vec!["gateway".into(), "host".into()])],
            resolv_conf: None,
            network: None,
            options: Default::default(),
            mounts: Default::default(),
            security: Default::default(),
        }
    }

    #[test]
    fn hosts_has_localhost_the_name_and_the_extra_lines() {
        assert_eq!(
            hosts(&configuration()),
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n\
             127.0.1.1 box\n10.0.0.1 gateway host\n"
        );
    }

    #[test]
    fn a_link_is_replaced_and_its_target_left_alone() {
        let place = std::env::temp_dir().join(format!("agentd-files-{}", std::process::id()));
        fs::create_dir_all(&place).unwrap();
        let (target, link) = (place.join("target"), place.join("link"));
        fs::write(&target, "old").unwrap();
        std::os::unix::fs::symlink(&target, &link).unwrap();
        replace(link.to_str().unwrap(), b"new", 0o644).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read(&link).unwrap(), b"new");
        let dangling = place.join("dangling");
        std::os::unix::fs::symlink("/nowhere/at/all", &dangling).unwrap();
        replace(dangling.to_str().unwrap(), b"x", 0o444).unwrap();
        assert_eq!(fs::read(&dangling).unwrap(), b"x");
        fs::write(&dangling, "more than is written").unwrap();
        replace(dangling.to_str().unwrap(), b"y", 0o644).unwrap();
        assert_eq!(fs::read(&dangling).unwrap(), b"y");
        fs::remove_dir_all(&place).unwrap();
    }
}
