//! The capabilities that a restricted process keeps (capabilities(7)).

use crate::sys::raw;

/// By number, for the C library has no names for them (linux/capability.h).
///
/// Of the fourteen that container runtimes leave to root, all but MKNOD (devices) and NET_RAW (packet sockets):
/// what installing packages, changing users and serving a port takes.
const KEPT: [u8; 12] = [
    0,  // CHOWN
    1,  // DAC_OVERRIDE
    3,  // FOWNER
    4,  // FSETID
    5,  // KILL
    6,  // SETGID
    7,  // SETUID
    8,  // SETPCAP: to give up more
    10, // NET_BIND_SERVICE
    18, // SYS_CHROOT
    29, // AUDIT_WRITE: PAM lets nobody in without it
    31, // SETFCAP: packages carry file capabilities; without new privileges they give nothing
];

const fn mask() -> u64 {
    let mut mask = 0;
    let mut index = 0;
    while index < KEPT.len() {
        mask |= 1 << KEPT[index];
        index += 1;
    }
    mask
}

/// A process's sets, as capset(2) takes them.
pub struct Capabilities {
    /// Permitted and effective.
    mask: u64,
}

impl Capabilities {
    /// What a process of this user keeps: of another than root nothing, as without the profile.
    pub const fn kept(uid: u32) -> Capabilities {
        match uid {
            0 => Capabilities { mask: mask() },
            _ => Capabilities { mask: 0 },
        }
    }

    /// Makes these the permitted and effective set, and empties the inheritable and the ambient one.
    ///
    /// SAFETY: only system calls; to be called where those are allowed.
    pub unsafe fn set(&self) -> Result<(), i32> {
        const VERSION_3: u32 = 0x2008_0522;
        let header = [VERSION_3, 0];
        // Effective, permitted and inheritable: the lower halves of the three, then the upper ones.
        let (low, high) = (self.mask as u32, (self.mask >> 32) as u32);
        let sets = [low, low, 0, high, high, 0];
        let pointers = [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0];
        let ambient = [
            libc::PR_CAP_AMBIENT as usize,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as usize,
            0,
            0,
            0,
        ];
        // SAFETY: both arrays have the layout and length of the structures and outlive the calls.
        unsafe {
            raw::call(libc::SYS_capset, pointers)?;
            raw::call(libc::SYS_prctl, ambient)?;
        }
        Ok(())
    }
}

/// Takes everything else out of the bounding set, whatever this kernel has.
///
/// SAFETY: as for `set`.
pub unsafe fn drop_bounding() -> Result<(), i32> {
    for capability in 0..64 {
        if mask() & (1 << capability) != 0 {
            continue;
        }
        let drop = [libc::PR_CAPBSET_DROP as usize, capability, 0, 0, 0];
        // SAFETY: takes no pointers.
        match unsafe { raw::call(libc::SYS_prctl, drop) } {
            Ok(_) => {}
            // Behind the last one that the kernel knows.
            Err(libc::EINVAL) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_keeps_what_is_listed_and_others_nothing() {
        assert_eq!(Capabilities::kept(0).mask, 0xa004_05fb);
        assert_eq!(Capabilities::kept(1000).mask, 0);
    }
}
