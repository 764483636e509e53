//! What a sandbox's processes may not do in their own guest: the profile `restricted`.
//!
//! The default profile is that of a machine of one's own: root in the guest mounts, loads and traces what it
//! likes, and the machine around it is the boundary. The restricted one is for programs that need none of
//! that: it keeps them from most of the guest's kernel, and from the agent. What it consists of, and why,
//! is in docs/security.md.

mod capabilities;
mod filter;
mod mounts;
mod syscalls;

use crate::channel::{Invalid, Map};
use crate::sys::raw;
use capabilities::Capabilities;
pub use mounts::Restricted;

/// The profile of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Security {
    #[default]
    Default,
    Restricted,
}

impl Security {
    /// Reads the key `security` of a request, which may be missing.
    pub fn read(request: &Map) -> Result<Security, Invalid> {
        match request.get("security") {
            None => Ok(Security::Default),
            Some(_) => match request.field("security")? {
                "default" => Ok(Security::Default),
                "restricted" => Ok(Security::Restricted),
                _ => Err(Invalid::new("`security` is neither default nor restricted")),
            },
        }
    }

    /// As `read` reads it.
    pub fn name(self) -> &'static str {
        match self {
            Security::Default => "default",
            Security::Restricted => "restricted",
        }
    }

    /// What its processes enter before they execute anything; nothing in the default profile.
    pub fn confinement(self) -> Option<Confinement> {
        (self == Security::Restricted).then(|| Confinement {
            filter: filter::program(),
        })
    }
}

/// Everything that a process gives up.
pub struct Confinement {
    filter: Vec<libc::sock_filter>,
}

impl Confinement {
    /// The half that needs privileges: what neither this process nor one that it executes can get again.
    ///
    /// # Safety
    ///
    /// Only system calls: may be called between clone and exec.
    pub unsafe fn lower_ceiling(&self) -> Result<(), i32> {
        // SAFETY: the contract of this function.
        unsafe { capabilities::drop_bounding() }
    }

    /// The rest, when the process has its user: from here on it has only what it keeps.
    ///
    /// # Safety
    ///
    /// As for `lower_ceiling`.
    pub unsafe fn enter(&self, uid: u32) -> Result<(), i32> {
        let program = libc::sock_fprog {
            len: self.filter.len() as u16,
            filter: self.filter.as_ptr().cast_mut(),
        };
        let filter = [
            libc::SECCOMP_SET_MODE_FILTER as usize,
            0,
            &raw const program as usize,
            0,
            0,
        ];
        let no_new_privileges = [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0];
        // SAFETY: the contract of this function; `program` outlives the call and describes `self.filter`.
        unsafe {
            Capabilities::kept(uid).set()?;
            raw::call(libc::SYS_prctl, no_new_privileges)?;
            raw::call(libc::SYS_seccomp, filter)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;

    #[test]
    fn the_profile_is_optional_and_known() {
        let read = |value: &str| Security::read(&Map::new().with("security", value));
        assert_eq!(Security::read(&Map::new()).unwrap(), Security::Default);
        assert_eq!(read("default").unwrap(), Security::Default);
        assert_eq!(read("restricted").unwrap(), Security::Restricted);
        assert!(read("none").is_err());
        assert!(Security::read(&Map::new().with("security", 1u64)).is_err());
        assert!(Security::Default.confinement().is_none());
    }
}
