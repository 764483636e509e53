//! Who a program runs as: `/etc/passwd` and `/etc/group` of the image, read without any library.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// More than any real file; a workload may have put anything there.
const FILE_MAX: u64 = 4 << 20;
/// The kernel's limit (NGROUPS_MAX).
const GROUPS_MAX: usize = 65_536;

/// The identity of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub home: Vec<u8>,
}

/// The two files as they are now; a missing file is an empty one.
pub struct Accounts {
    passwd: Vec<u8>,
    group: Vec<u8>,
}

struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl Accounts {
    pub fn read() -> Accounts {
        Accounts {
            passwd: read_bounded("/etc/passwd"),
            group: read_bounded("/etc/group"),
        }
    }

    #[cfg(test)]
    fn of(passwd: &str, group: &str) -> Accounts {
        Accounts {
            passwd: passwd.into(),
            group: group.into(),
        }
    }

    /// Resolves `name`, `uid`, `name:group` or `uid:gid`; nothing means root. An unknown number
    /// is taken as it is, an unknown name is an error. With a group given there are no others.
    pub fn resolve(&self, user: Option<&str>) -> Result<Identity, String> {
        let spec = user.unwrap_or("0");
        let (who, group) = match spec.split_once(':') {
            Some((who, group)) => (who, Some(group)),
            None => (spec, None),
        };
        let found = self.user(who);
        let uid = match &found {
            Some(user) => user.uid,
            None => number(who.as_bytes()).ok_or_else(|| format!("no user {who:?}"))?,
        };
        let home = match &found {
            Some(user) if !user.home.is_empty() => user.home.to_vec(),
            _ => b"/".to_vec(),
        };
        let (gid, groups) = match group {
            Some(group) => {
                let gid = self
                    .group(group)
                    .ok_or_else(|| format!("no group {group:?}"))?;
                (gid, vec![gid])
            }
            None => {
                let gid = found.as_ref().map_or(0, |user| user.gid);
                let name = found.as_ref().map(|user| user.name);
                (gid, self.groups_of(name, gid))
            }
        };
        Ok(Identity {
            uid,
            gid,
            groups,
            home,
        })
    }

    /// A number is a uid, as container engines have it: nobody becomes somebody else by a name of digits.
    fn user(&self, who: &str) -> Option<User<'_>> {
        let mut users = lines(&self.passwd).filter_map(parse_user);
        match number(who.as_bytes()) {
            Some(uid) => users.find(|user| user.uid == uid),
            None => users.find(|user| user.name == who.as_bytes()),
        }
    }

    fn group(&self, which: &str) -> Option<u32> {
        number(which.as_bytes()).or_else(|| {
            let mut groups = lines(&self.group).filter_map(parse_group);
            groups
                .find(|(name, _, _)| *name == which.as_bytes())
                .map(|(_, gid, _)| gid)
        })
    }

    fn groups_of(&self, name: Option<&[u8]>, gid: u32) -> Vec<u32> {
        let mut groups = vec![gid];
        if let Some(name) = name {
            for (_, other, members) in lines(&self.group).filter_map(parse_group) {
                let member = members.split(|byte| *byte == b',').any(|one| one == name);
                if member && !groups.contains(&other) && groups.len() < GROUPS_MAX {
                    groups.push(other);
                }
            }
        }
        groups
    }
}

fn read_bounded(path: &str) -> Vec<u8> {
    let mut content = Vec::new();
    // O_NONBLOCK: a fifo in its place must not stop the agent.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    if let Ok(file) = file {
        if file.metadata().is_ok_and(|found| found.is_file()) {
            // A file that cannot be read has no users in it.
            let _ = file.take(FILE_MAX).read_to_end(&mut content);
        }
    }
    content
}

fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split(|byte| *byte == b'\n')
}

fn number(text: &[u8]) -> Option<u32> {
    if !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // 2^32-1 means "leave unchanged" to the kernel, which here would be root.
    let number = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number != u32::MAX).then_some(number)
}

/// `name:password:uid:gid:comment:home:shell`
fn parse_user(line: &[u8]) -> Option<User<'_>> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1).unwrap_or_default();
    Some(User {
        name,
        uid,
        gid,
        home,
    })
}

/// `name:password:gid:members`
fn parse_group(line: &[u8]) -> Option<(&[u8], u32, &[u8])> {
    let mut fields = line.split(|byte| *byte == b':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let gid = number(fields.nth(1)?)?;
    Some((name, gid, fields.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        broken line\n\
        :x:7:7::/:\n\
        app:x:1000:1001:App,,,:/home/app:/bin/sh\n\
        nohome:x:1002:1002\n\
        33:x:77:78::/odd:\n\
        last:x:1003:1003:::";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\napps:x:1001:app\n\
        docker:x:998:other,app\nodd:x:x:app\nempty:x:5\n";

    fn resolve(user: Option<&str>) -> Result<Identity, String> {
        Accounts::of(PASSWD, GROUP).resolve(user)
    }

    fn identity(uid: u32, gid: u32, groups: &[u32], home: &str) -> Identity {
        Identity {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        }
    }

    #[test]
    fn nothing_means_root_with_roots_groups() {
        assert_eq!(resolve(None).unwrap(), identity(0, 0, &[0, 10], "/root"));
        assert_eq!(resolve(Some("root")).unwrap(), resolve(Some("0")).unwrap());
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let app = identity(1000, 1001, &[1001, 10, 998], "/home/app");
        assert_eq!(resolve(Some("app")).unwrap(), app);
        assert_eq!(resolve(Some("1000")).unwrap(), app);
    }

    #[test]
    fn a_group_replaces_all_others() {
        let app = |gid| identity(1000, gid, &[gid], "/home/app");
        assert_eq!(resolve(Some("app:docker")).unwrap(), app(998));
        assert_eq!(resolve(Some("1000:12345")).unwrap(), app(12345));
    }

    #[test]
    fn unknown_numbers_are_taken_and_unknown_names_refused() {
        assert_eq!(resolve(Some("5000")).unwrap(), identity(5000, 0, &[0], "/"));
        assert_eq!(
            resolve(Some("5000:6")).unwrap(),
            identity(5000, 6, &[6], "/")
        );
        assert!(resolve(Some("nobody")).is_err());
        assert!(resolve(Some("app:nogroup")).is_err());
        assert!(resolve(Some("app:odd")).is_err());
        for odd in [
            "",
            ":",
            "app:",
            ":0",
            "-1",
            "+1",
            "4294967295",
            "4294967296",
            "0x0",
            " 0",
        ] {
            assert!(resolve(Some(odd)).is_err(), "{odd:?}");
        }
    }

    #[test]
    fn a_name_of_digits_is_no_name() {
        assert_eq!(resolve(Some("33")).unwrap(), identity(33, 0, &[0], "/"));
        assert_eq!(
            resolve(Some("77")).unwrap(),
            identity(77, 78, &[78], "/odd")
        );
    }

    #[test]
    fn short_lines_do_what_they_can() {
        assert_eq!(resolve(Some("nohome")).unwrap().home, b"/");
        assert_eq!(resolve(Some("last")).unwrap().home, b"/");
    }

    #[test]
    fn without_files_root_still_is_root() {
        let none = Accounts::of("", "");
        assert_eq!(none.resolve(None).unwrap(), identity(0, 0, &[0], "/"));
    }
}
