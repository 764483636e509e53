//! From an empty VM to a root on which the workload can run: the method `configure`, and `mount`,
//! which does the part of it that is the same for all sandboxes of an image.

mod files;
mod mounts;
mod options;
mod request;
mod root;
mod warm;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

pub use mounts::{create_directory, disk, image_device, upper_device};
pub use options::{absolute, naming};
pub use request::{Configuration, Disks, Preparation};
pub use root::ensure as ensure_upper;

use crate::attached::Place;
use crate::channel::Map;
use crate::confine::{Restricted, Security};
use crate::network::{self, Card, Network};
use crate::{log, sys};

/// What agentd keeps of the guest it made.
pub struct World {
    /// A directory of the upper file system, to freeze it at the end.
    pub upper: OwnedFd,
    /// agentd's own view of /proc: the workload may unmount the one it sees.
    pub proc: OwnedFd,
    /// The directory of the pseudo-terminals, for the same reason.
    pub terminals: OwnedFd,
    /// Made for whoever may be restricted, if there was time for it.
    pub restricted: Option<Restricted>,
}

/// Where `configure` failed.
#[derive(Debug)]
pub struct Failure {
    pub stage: &'static str,
    pub error: io::Error,
}

/// Runs the steps and takes their times.
struct Steps {
    timings: Map,
}

impl Steps {
    fn run<T>(
        &mut self,
        stage: &'static str,
        step: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        let value = step().map_err(|error| Failure { stage, error })?;
        let spent = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.timings = std::mem::take(&mut self.timings).with(stage, spent);
        Ok(value)
    }

    /// Mounts the disks and makes the overlay of them the root.
    fn root(&mut self, disks: &Disks) -> Result<World, Failure> {
        mounts::remember(disks);
        self.run("image", || mounts::image(&disks.image))?;
        let upper = self.run("upper", || mounts::upper(&disks.upper))?;
        self.run("overlay", mounts::overlay)?;
        let (proc, terminals) = self.run("root", mounts::enter)?;
        Ok(World {
            upper,
            proc,
            terminals,
            restricted: None,
        })
    }
}

/// Puts the root together and reads the files that most sandboxes will, for a machine that is to be
/// saved. Of the image nothing is executed.
pub fn prepare(preparation: &Preparation) -> Result<(World, Map), Failure> {
    let mut steps = Steps {
        timings: Map::new(),
    };
    steps.run("clock", || set_clock(preparation.time_ns))?;
    let mut world = steps.root(&preparation.disks)?;
    steps.run("files", files::prepare)?;
    world.restricted = Some(steps.run("restricted", Restricted::prepare)?);
    steps.run("warm", || {
        preparation.warm.iter().for_each(|path| warm::read(path));
        Ok(())
    })?;
    Ok((world, steps.timings))
}

/// Makes the guest what `configuration` says; the map has the microseconds of every step. `mounted`
/// is the root, if it was put together before; `is_copy`: of a machine that was configured before it was copied.
pub fn apply(
    configuration: &Configuration,
    mounted: Option<World>,
    card: Option<&mut Card>,
    is_copy: bool,
) -> Result<(World, Map), Failure> {
    let mut steps = Steps {
        timings: Map::new(),
    };
    // First of all: until then a VM restored from a template would repeat its siblings' numbers.
    steps.run("random", || reseed(&configuration.entropy))?;
    steps.run("clock", || set_clock(configuration.time_ns))?;
    let world = match mounted {
        Some(world) => world,
        None => steps.root(&configuration.disks)?,
    };
    steps.run("hostname", || set_hostname(&configuration.hostname))?;
    steps.run("files", || files::write(configuration))?;
    let network = configuration.network.as_ref();
    steps.run("network", || {
        network::configure(card, network, is_copy, &world.proc)
    })?;
    if !is_copy {
        furnish(&mut steps, configuration, &world)?;
    }
    Ok((world, steps.timings))
}

/// Gives a guest that was configured without a network one, or another one.
pub fn join(network: &Network, card: Option<&mut Card>) -> io::Result<()> {
    let card = card.ok_or_else(|| io::Error::other("the machine has no network card"))?;
    card.configure(network)?;
    files::name_servers(network)
}

/// What is made once. A copy has it, with what its programs have put there: a second file system in memory
/// would hide that of the first, and what is restricted cannot be put in its place twice.
fn furnish(steps: &mut Steps, configuration: &Configuration, world: &World) -> Result<(), Failure> {
    let options = &configuration.options;
    let mounts = &configuration.mounts;
    if options.has_tmpfs() || !mounts.is_empty() {
        let flags = match configuration.security {
            // As the root will be: what somebody else has made there must not be a way to the kernel.
            Security::Restricted => libc::MS_NOSUID | libc::MS_NODEV,
            Security::Default => 0,
        };
        let places = options.tmpfs_places().chain(mounts.places(flags)).collect();
        let stage = if mounts.is_empty() { "tmpfs" } else { "mounts" };
        steps.run(stage, || Place::put_all(places))?;
    }
    // It may be in one of them.
    if options.has_workdir() {
        steps.run("workdir", || options.make_workdir())?;
    }
    if options.has_scripts() {
        steps.run("scripts", || options.write_scripts())?;
    }
    if configuration.security == Security::Restricted {
        steps.run("restricted", || match &world.restricted {
            Some(restricted) => restricted.apply(),
            None => Restricted::prepare()?.apply(),
        })?;
    }
    Ok(())
}

/// Mixes the host's bytes into the kernel's pool, counts them as entropy, and makes the kernel
/// draw a new key from the pool.
fn reseed(entropy: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let length = i32::try_from(entropy.len()).map_err(io::Error::other)?;
    // struct rand_pool_info: bits, bytes, and the bytes themselves.
    let mut pool = Vec::with_capacity(8 + entropy.len());
    pool.extend_from_slice(&(length * 8).to_ne_bytes());
    pool.extend_from_slice(&length.to_ne_bytes());
    pool.extend_from_slice(entropy);
    let random = sys::fd::open(c"/dev/random", libc::O_RDWR)?;
    // SAFETY: the kernel reads the eight bytes and then as many as they say, all inside `pool`;
    // it copies them byte by byte, so alignment does not matter.
    sys::check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, pool.as_ptr()) })?;
    // SAFETY: the second call takes no argument.
    sys::check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _, 0) })?;
    Ok(())
}

fn set_clock(time_ns: u64) -> io::Result<()> {
    const SECOND: u64 = 1_000_000_000;
    let out_of_range = |_| io::Error::from_raw_os_error(libc::EINVAL);
    let time = libc::timespec {
        tv_sec: i64::try_from(time_ns / SECOND).map_err(out_of_range)?,
        tv_nsec: i64::try_from(time_ns % SECOND).map_err(out_of_range)?,
    };
    // SAFETY: `time` is valid for the call.
    sys::check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) })?;
    Ok(())
}

/// How far the clock may be from the host's before it is set again, in nanoseconds: more than a
/// message takes to get here.
const CLOCK_TOLERANCE: u64 = 20_000_000;

/// Sets the clock if it has drifted, or stood still with the host. The host says its time with
/// every heartbeat.
pub fn keep_clock(time_ns: u64) {
    if now_ns().abs_diff(time_ns) > CLOCK_TOLERANCE {
        if let Err(error) = set_clock(time_ns) {
            log::error(&format!("setting the clock: {error}"));
        }
    }
}

/// The time of day in nanoseconds since the epoch.
fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: `name` is readable for its length.
    sys::check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}
