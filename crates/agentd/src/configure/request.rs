//! What `mount` and `configure` are told, checked before anything is changed.

use super::options::Options;
use crate::attached::Mounts;
use crate::channel::{Field, Invalid, Map, Value};
use crate::confine::Security;
use crate::network::Network;

/// The disks that the root is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disks {
    pub image: String,
    pub upper: String,
}

impl Disks {
    fn parse(request: &Map) -> Result<Disks, Invalid> {
        Ok(Disks {
            image: device(request.field("image")?, "erofs")?,
            upper: device(request.field("upper")?, "ext4")?,
        })
    }
}

/// A checked request to put the root together before anybody's configuration is known.
#[derive(Debug, PartialEq, Eq)]
pub struct Preparation {
    pub time_ns: u64,
    pub disks: Disks,
    /// Files to read and directories to look through, so that the machine has them in its memory when it is
    /// saved.
    pub warm: Vec<Vec<u8>>,
}

/// More files than this are not read ahead.
const WARM_MAX: usize = 64;

impl Preparation {
    pub fn parse(request: &Map) -> Result<Preparation, Invalid> {
        let warm: &[Value] = request.field("warm")?;
        let warm: Option<Vec<_>> = warm
            .iter()
            .map(|path| <&[u8]>::read(path).map(<[u8]>::to_vec))
            .collect();
        Ok(Preparation {
            time_ns: request.field("time_ns")?,
            disks: Disks::parse(request)?,
            warm: warm
                .filter(|paths| paths.len() <= WARM_MAX)
                .ok_or_else(|| Invalid(format!("`warm` is not up to {WARM_MAX} paths")))?,
        })
    }
}

/// A checked configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Configuration {
    pub entropy: Vec<u8>,
    pub time_ns: u64,
    pub hostname: String,
    pub machine_id: String,
    pub disks: Disks,
    /// Address and names.
    pub hosts: Vec<(String, Vec<String>)>,
    pub resolv_conf: Option<Vec<u8>>,
    pub network: Option<Network>,
    pub options: Options,
    pub mounts: Mounts,
    pub security: Security,
}

impl Configuration {
    pub fn parse(request: &Map) -> Result<Configuration, Invalid> {
        let entropy: &[u8] = request.field("entropy")?;
        if !(32..=1024).contains(&entropy.len()) {
            return Err(Invalid::new("`entropy` is not 32 to 1024 bytes"));
        }
        let hostname: &str = request.field("hostname")?;
        if !(1..=63).contains(&hostname.len()) || !is_word(hostname) {
            return Err(Invalid::new(
                "`hostname` is not 1 to 63 printable characters",
            ));
        }
        let machine_id: &str = request.field("machine_id")?;
        if machine_id.len() != 32 || !machine_id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Invalid::new("`machine_id` is not 32 hexadecimal digits"));
        }
        let resolv_conf: Option<&[u8]> = request.field("resolv_conf")?;
        Ok(Configuration {
            entropy: entropy.to_vec(),
            time_ns: request.field("time_ns")?,
            hostname: hostname.to_owned(),
            machine_id: machine_id.to_owned(),
            disks: Disks::parse(request)?,
            hosts: hosts(request.field("hosts")?)?,
            resolv_conf: resolv_conf.map(<[u8]>::to_vec),
            network: Network::read(request)?,
            options: Options::parse(request)?,
            mounts: Mounts::parse(request)?,
            security: Security::read(request)?,
        })
    }
}

fn device(map: &Map, expected: &str) -> Result<String, Invalid> {
    let fstype: &str = map.field("fstype")?;
    if fstype != expected {
        return Err(Invalid(format!("`fstype` is not {expected}")));
    }
    let device: &str = map.field("device")?;
    if !device.starts_with("/dev/") || device.contains('\0') {
        return Err(Invalid::new("`device` is not below /dev"));
    }
    Ok(device.to_owned())
}

fn hosts(items: &[Value]) -> Result<Vec<(String, Vec<String>)>, Invalid> {
    let line = |item: &Value| -> Option<(String, Vec<String>)> {
        let [address, names] = <&[Value]>::read(item)? else {
            return None;
        };
        let address = <&str>::read(address).filter(|text| is_word(text))?;
        let names = Vec::<&str>::read(names)?;
        // A space or a line break would be a second name or line.
        let all_words = !names.is_empty() && names.iter().all(|name| is_word(name));
        all_words.then(|| {
            let names = names.into_iter().map(str::to_owned).collect();
            (address.to_owned(), names)
        })
    };
    items
        .iter()
        .map(|item| line(item).ok_or_else(|| Invalid::new("`hosts` is not address and names")))
        .collect()
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    fn request() -> Map {
        let disk =
            |device: &str, fstype: &str| Map::new().with("device", device).with("fstype", fstype);
        Map::new()
            .with("entropy", Value::Bin(vec![7; 32]))
            .with("time_ns", 1u64)
            .with("hostname", "box")
            .with("machine_id", "0123456789abcdef0123456789abcdef")
            .with("image", disk("/dev/vdb", "erofs"))
            .with("upper", disk("/dev/vdc", "ext4"))
            .with(
                "hosts",
                vec![Value::Array(vec![
                    Value::from("10.0.0.1"),
                    Value::Array(vec![Value::from("gateway")]),
                ])],
            )
            .with("resolv_conf", Value::Nil)
    }

    fn replaced(key: &str, value: impl Into<Value>) -> Result<Configuration, Invalid> {
        let rest = request()
            .iter()
            .filter(|(name, _)| *name != key)
            .fold(Map::new(), |map, (name, value)| {
                map.with(name, value.clone())
            });
        Configuration::parse(&rest.with(key, value))
    }

    #[test]
    fn a_full_request_is_read() {
        let read = Configuration::parse(&request()).unwrap();
        assert_eq!(read.disks.image, "/dev/vdb");
        assert_eq!(read.disks.upper, "/dev/vdc");
        assert_eq!(
            read.hosts,
            [("10.0.0.1".to_owned(), vec!["gateway".to_owned()])]
        );
        assert_eq!(read.resolv_conf, None);
    }

    #[test]
    fn a_preparation_names_disks_and_files() {
        let files = |count| vec![Value::Bin(b"/bin/sh".to_vec()); count];
        let with = |warm: Vec<Value>| Preparation::parse(&request().with("warm", warm));
        assert_eq!(with(files(2)).unwrap().warm, [b"/bin/sh", b"/bin/sh"]);
        assert_eq!(with(files(0)).unwrap().disks.image, "/dev/vdb");
        assert!(with(files(65)).is_err());
        assert!(with(vec![Value::from("/bin/sh")]).is_err());
        assert!(Preparation::parse(&request()).is_err());
    }

    #[test]
    fn what_could_write_another_line_or_path_is_refused() {
        assert!(replaced("hostname", "a\n127.0.0.1 evil").is_err());
        assert!(replaced("hostname", "").is_err());
        assert!(replaced("hostname", "a".repeat(64).as_str()).is_err());
        assert!(replaced("machine_id", "xyz").is_err());
        assert!(replaced("entropy", Value::Bin(vec![0; 31])).is_err());
        let disk = Map::new().with("device", "/dev/vdb").with("fstype", "vfat");
        assert!(replaced("image", disk).is_err());
        let lines = |name: &str| {
            vec![Value::Array(vec![
                Value::from("10.0.0.1"),
                Value::Array(vec![Value::from(name)]),
            ])]
        };
        assert!(replaced("hosts", lines("a b")).is_err());
        assert!(replaced("hosts", lines("a\nb")).is_err());
    }
}
