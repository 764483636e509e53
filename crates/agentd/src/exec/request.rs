//! What `exec` is asked for, checked before anything is started.

use std::ffi::CString;

use super::terminal::Size;
use crate::channel::{Field, Invalid, Map, Value};

/// Searched when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of a file's name, and directories in a PATH. The product of larger ones could be more than the memory.
const NAME_MAX: usize = 255;
const DIRECTORIES_MAX: usize = 4096;
/// Soft and hard limit of descriptors unless the request says otherwise. agentd's own is higher.
const NOFILE: (u64, u64) = (65_536, 1 << 20);

/// A checked request.
#[derive(Debug)]
pub struct Request {
    pub argv: Vec<CString>,
    /// The files to try, in order.
    pub candidates: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub user: Option<String>,
    pub stdin: bool,
    pub terminal: Option<Size>,
    pub rlimits: Vec<(libc::__rlimit_resource_t, libc::rlimit)>,
    pub timeout_ms: Option<u64>,
}

impl Request {
    pub fn parse(request: &Map) -> Result<Request, Invalid> {
        let argv = c_strings(request.field("argv")?, "argv")?;
        let env: Vec<&[u8]> = request.field("env")?;
        if !env
            .iter()
            .all(|entry| entry.iter().skip(1).any(|byte| *byte == b'='))
        {
            return Err(Invalid::new("`env` is not NAME=value"));
        }
        let Some(program) = argv.first() else {
            return Err(Invalid::new("`argv` is empty"));
        };
        let candidates = candidates(program.as_bytes(), variable(&env, b"PATH"))?;
        let cwd: Option<&[u8]> = request.field("cwd")?;
        let user: Option<&str> = request.field("user")?;
        let stdin = match request.field("stdin")? {
            "null" => false,
            "pipe" => true,
            _ => return Err(Invalid::new("`stdin` is neither null nor pipe")),
        };
        let tty: Option<&Map> = request.field("tty")?;
        Ok(Request {
            candidates,
            env: c_strings(env, "env")?,
            cwd: c_string(cwd.unwrap_or(b"/"), "cwd")?,
            user: user.map(str::to_owned),
            stdin,
            terminal: tty.map(Size::read).transpose()?,
            rlimits: rlimits(request.field("rlimits")?)?,
            timeout_ms: request.field("timeout_ms")?,
            argv,
        })
    }

    /// Adds HOME if the request has none.
    pub fn add_home(&mut self, home: &[u8]) {
        let has_home = self
            .env
            .iter()
            .any(|entry| entry.as_bytes().starts_with(b"HOME="));
        if !has_home {
            // A home with a NUL cannot come from a line of a file's text: then there is none.
            if let Ok(entry) = CString::new([b"HOME=", home].concat()) {
                self.env.push(entry);
            }
        }
    }
}

fn c_string(bytes: &[u8], key: &str) -> Result<CString, Invalid> {
    CString::new(bytes).map_err(|_| Invalid(format!("`{key}` has a NUL byte")))
}

fn c_strings(items: Vec<&[u8]>, key: &str) -> Result<Vec<CString>, Invalid> {
    items.into_iter().map(|item| c_string(item, key)).collect()
}

/// The value of a variable; of two, the first, as getenv(3) has it.
fn variable<'a>(env: &[&'a [u8]], name: &[u8]) -> Option<&'a [u8]> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix(b"="))
}

/// The files that `program` may mean: itself if it has a slash, else one per directory of `path`.
fn candidates(program: &[u8], path: Option<&[u8]>) -> Result<Vec<CString>, Invalid> {
    let is_name = !program.contains(&b'/') && (1..=NAME_MAX).contains(&program.len());
    if !is_name {
        return Ok(vec![c_string(program, "argv")?]);
    }
    let path = path.unwrap_or(DEFAULT_PATH);
    if path.iter().filter(|byte| **byte == b':').count() >= DIRECTORIES_MAX {
        return Err(Invalid(format!(
            "PATH in `env` has more than {DIRECTORIES_MAX} directories"
        )));
    }
    path.split(|byte| *byte == b':')
        .map(|directory| match directory {
            // POSIX: an empty entry is the working directory.
            b"" => c_string(program, "argv"),
            directory => c_string(&[directory, b"/", program].concat(), "env"),
        })
        .collect()
}

fn rlimits(items: &[Value]) -> Result<Vec<(libc::__rlimit_resource_t, libc::rlimit)>, Invalid> {
    let limit = |soft, hard| libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    let mut limits = vec![(libc::RLIMIT_NOFILE, limit(NOFILE.0, NOFILE.1))];
    for item in items {
        let malformed = || Invalid::new("`rlimits` is not name, soft, hard");
        let Some([name, soft, hard]) = <&[Value]>::read(item) else {
            return Err(malformed());
        };
        let name = <&str>::read(name).ok_or_else(malformed)?;
        let soft = u64::read(soft).ok_or_else(malformed)?;
        let hard = u64::read(hard).ok_or_else(malformed)?;
        let resource = resource(name).ok_or_else(|| Invalid(format!("no resource {name:?}")))?;
        if soft > hard {
            return Err(Invalid(format!("`{name}`: soft limit above the hard one")));
        }
        limits.retain(|(other, _)| *other != resource);
        limits.push((resource, limit(soft, hard)));
    }
    Ok(limits)
}

/// The resources by their names (getrlimit(2)).
const RESOURCES: [(&str, libc::__rlimit_resource_t); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

fn resource(name: &str) -> Option<libc::__rlimit_resource_t> {
    let found = RESOURCES.iter().find(|(other, _)| *other == name);
    found.map(|(_, resource)| *resource)
}

/// The name of a resource by its number.
pub fn resource_name(number: u8) -> &'static str {
    let found = RESOURCES
        .iter()
        .find(|(_, resource)| *resource == number.into());
    found.map_or("an unknown resource", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn paths(program: &str, path: Option<&str>) -> Vec<String> {
        candidates(program.as_bytes(), path.map(str::as_bytes))
            .unwrap()
            .into_iter()
            .map(|path| path.into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_slash_means_exactly_that_file() {
        assert_eq!(paths("./a", Some("/bin")), ["./a"]);
        assert_eq!(paths("/bin/a", None), ["/bin/a"]);
        assert_eq!(paths("", Some("/bin")), [""]);
    }

    #[test]
    fn a_name_is_looked_up_in_path() {
        assert_eq!(paths("a", Some("/x:/y/:")), ["/x/a", "/y//a", "a"]);
        assert_eq!(paths("a", None).len(), 6);
    }

    #[test]
    fn a_search_is_bounded() {
        // The kernel says what is wrong with it.
        assert_eq!(paths(&"a".repeat(256), Some("/x:/y")), ["a".repeat(256)]);
        let path = ":".repeat(DIRECTORIES_MAX);
        assert_eq!(paths("a", Some(&path[1..])).len(), DIRECTORIES_MAX);
        assert!(candidates(b"a", Some(path.as_bytes())).is_err());
    }

    fn request() -> Map {
        let bin = |text: &str| Value::Bin(text.into());
        Map::new()
            .with("argv", vec![bin("sh")])
            .with("env", vec![bin("PATH=/bin"), bin("A=b=c")])
            .with("cwd", Value::Nil)
            .with("user", Value::Nil)
            .with("stdin", "null")
            .with("tty", Value::Nil)
            .with("rlimits", Vec::new())
            .with("timeout_ms", Value::Nil)
    }

    fn replaced(key: &str, value: impl Into<Value>) -> Result<Request, Invalid> {
        let rest = request()
            .iter()
            .filter(|(name, _)| *name != key)
            .fold(Map::new(), |map, (name, value)| {
                map.with(name, value.clone())
            });
        Request::parse(&rest.with(key, value))
    }

    #[test]
    fn a_full_request_is_read() {
        let mut read = Request::parse(&request()).unwrap();
        assert_eq!(read.candidates, [c"/bin/sh".to_owned()]);
        assert_eq!(read.cwd.as_c_str(), c"/");
        read.add_home(b"/root");
        assert_eq!(read.env.last().unwrap().as_c_str(), c"HOME=/root");
        read.add_home(b"/other");
        assert_eq!(read.env.len(), 3);
    }

    #[test]
    fn a_terminal_has_a_size() {
        let size = Map::new().with("rows", 24u64).with("cols", 80u64);
        assert_eq!(
            replaced("tty", size.clone()).unwrap().terminal,
            Some(Size::read(&size).unwrap())
        );
        assert_eq!(Request::parse(&request()).unwrap().terminal, None);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let bin = |bytes: &[u8]| Value::Bin(bytes.to_vec());
        let limit = |name: &str, soft: u64, hard: u64| {
            vec![Value::Array(vec![name.into(), soft.into(), hard.into()])]
        };
        for (key, value) in [
            ("argv", Value::Array(vec![])),
            ("argv", Value::Array(vec![bin(b"a\0b")])),
            ("argv", Value::Array(vec!["text".into()])),
            ("env", Value::Array(vec![bin(b"NOVALUE")])),
            ("env", Value::Array(vec![bin(b"=x")])),
            ("cwd", bin(b"/a\0")),
            ("stdin", "file".into()),
            ("rlimits", limit("files", 1, 1).into()),
            ("rlimits", limit("nofile", 2, 1).into()),
            ("timeout_ms", Value::Int(-1)),
            ("tty", true.into()),
            ("tty", Map::new().with("rows", 24u64).into()),
        ] {
            assert!(replaced(key, value.clone()).is_err(), "{key} {value:?}");
        }
    }
}
