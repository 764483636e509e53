//! The pseudo-terminal of a program: opening it, its size, and how its input ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::channel::{Invalid, Map};
use crate::sys::{check, fd, raw};

/// Rows and columns of characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    rows: u16,
    cols: u16,
}

impl Size {
    /// Reads `rows` and `cols`, 1 to 65,535 each.
    pub fn read(message: &Map) -> Result<Size, Invalid> {
        let number = |key| match u16::try_from(message.field::<u64>(key)?) {
            Ok(number @ 1..) => Ok(number),
            _ => Err(Invalid(format!("`{key}` is not 1 to 65535"))),
        };
        Ok(Size {
            rows: number("rows")?,
            cols: number("cols")?,
        })
    }
}

/// Both sides of a pseudo-terminal.
pub struct Terminal {
    /// agentd's: what is written here has been typed, what is read here is shown. Does not block.
    pub master: OwnedFd,
    /// The program's.
    pub slave: OwnedFd,
}

impl Terminal {
    /// Makes a terminal that belongs to `uid`. `directory` is a devpts that nobody can have replaced: the
    /// workload may mount what it likes on /dev/pts.
    pub fn open(directory: &OwnedFd, size: Size, uid: u32) -> io::Result<Terminal> {
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let master = fd::open_at(directory.as_raw_fd(), c"ptmx", flags | libc::O_NONBLOCK, 0)?;
        let unlocked: libc::c_int = 0;
        // SAFETY: TIOCSPTLCK reads one int.
        check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlocked) })?;
        let peer = flags | libc::O_CLOEXEC;
        // SAFETY: TIOCGPTPEER takes flags as its argument. It finds the other side without a path.
        let slave = check(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, peer) })?;
        // SAFETY: the call succeeded, so `slave` is open and belongs to nobody else.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        // The program may open its terminal by name. The group stays the one of devpts.
        // SAFETY: takes no pointers; -1 leaves the group.
        check(unsafe { libc::fchown(slave.as_raw_fd(), uid, libc::gid_t::MAX) })?;
        let mut settings = settings(&slave)?;
        // Erasing takes whole characters.
        settings.c_iflag |= libc::IUTF8;
        // SAFETY: `settings` was filled by the kernel and outlives the call.
        check(unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &settings) })?;
        resize(&master, size)?;
        Ok(Terminal { master, slave })
    }
}

/// Sets the size. If it is another one the foreground process group gets SIGWINCH.
pub fn resize(master: impl AsFd, size: Size) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let master = master.as_fd().as_raw_fd();
    // SAFETY: TIOCSWINSZ reads `size`, which outlives the call.
    check(unsafe { libc::ioctl(master, libc::TIOCSWINSZ, &size) })?;
    Ok(())
}

/// What a user would type to end the input: the end-of-file character, and once more if a line has been
/// begun, because the first then only ends that. A program that reads single keys gets the key. Nothing
/// if the terminal's settings have no such character.
pub fn end_of_file(master: impl AsFd, line_begun: bool) -> Vec<u8> {
    let Ok(settings) = settings(master) else {
        return Vec::new();
    };
    let lines = settings.c_lflag & libc::ICANON != 0;
    match settings.c_cc[libc::VEOF] {
        libc::_POSIX_VDISABLE => Vec::new(),
        character => vec![character; 1 + usize::from(lines && line_begun)],
    }
}

fn settings(side: impl AsFd) -> io::Result<libc::termios> {
    // SAFETY: all-zero bytes are a valid termios.
    let mut settings: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: `settings` is writable.
    check(unsafe { libc::tcgetattr(side.as_fd().as_raw_fd(), &mut settings) })?;
    Ok(settings)
}

/// Makes the terminal behind `slave` the controlling one of the calling process, which leads a session.
/// The error is errno.
///
/// # Safety
///
/// Only a system call: may be called between clone and exec.
pub unsafe fn take(slave: RawFd) -> Result<(), i32> {
    // 0: from no other session.
    let arguments = [slave as usize, libc::TIOCSCTTY as usize, 0, 0, 0];
    // SAFETY: TIOCSCTTY takes no pointer.
    unsafe { raw::call(libc::SYS_ioctl, arguments) }.map(|_| ())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A failed test should say where.
    use super::*;
    use crate::sys::fd::Moved;

    fn size(rows: u64, cols: u64) -> Result<Size, Invalid> {
        Size::read(&Map::new().with("rows", rows).with("cols", cols))
    }

    fn terminal() -> Terminal {
        let directory = fd::open(c"/dev/pts", libc::O_PATH | libc::O_DIRECTORY).unwrap();
        // SAFETY: takes no pointers.
        let uid = unsafe { libc::getuid() };
        Terminal::open(&directory, size(24, 80).unwrap(), uid).unwrap()
    }

    fn read(side: &OwnedFd) -> Vec<u8> {
        let mut buffer = [0; 64];
        match fd::read(side, &mut buffer) {
            Moved::Bytes(count) => buffer[..count].to_vec(),
            other => panic!("{other:?}"),
        }
    }

    fn size_of(side: &OwnedFd) -> (u16, u16) {
        // SAFETY: all-zero bytes are a valid winsize, which TIOCGWINSZ fills.
        unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            check(libc::ioctl(side.as_raw_fd(), libc::TIOCGWINSZ, &mut size)).unwrap();
            (size.ws_row, size.ws_col)
        }
    }

    #[test]
    fn a_size_has_rows_and_columns() {
        assert!(size(1, 65_535).is_ok());
        for (rows, cols) in [(0, 80), (24, 0), (65_536, 80), (24, u64::MAX)] {
            assert!(size(rows, cols).is_err(), "{rows} {cols}");
        }
        assert!(Size::read(&Map::new().with("rows", 1u64)).is_err());
    }

    #[test]
    fn what_is_typed_arrives_by_lines_and_what_is_written_is_shown() {
        let Terminal { master, slave } = terminal();
        assert_eq!(fd::write(&master, b"hello\n"), Moved::Bytes(6));
        assert_eq!(read(&slave), b"hello\n");
        assert_eq!(read(&master), b"hello\r\n");
        assert_eq!(fd::write(&slave, b"\xff\n"), Moved::Bytes(2));
        assert_eq!(read(&master), b"\xff\r\n");
        drop(slave);
        assert_eq!(fd::read(&master, &mut [0; 8]), Moved::Gone);
    }

    #[test]
    fn both_sides_see_the_size() {
        let Terminal { master, slave } = terminal();
        assert_eq!(size_of(&slave), (24, 80));
        resize(&master, size(50, 132).unwrap()).unwrap();
        assert_eq!(size_of(&slave), (50, 132));
    }

    #[test]
    fn the_end_of_input_is_the_end_of_file_for_who_reads_lines() {
        let Terminal { master, slave } = terminal();
        let end = |begun| end_of_file(&master, begun);
        assert_eq!((end(false), end(true)), (vec![4], vec![4, 4]));
        assert_eq!(fd::write(&master, b"rest"), Moved::Bytes(4));
        assert_eq!(fd::write(&master, &end(true)), Moved::Bytes(2));
        assert_eq!(read(&slave), b"rest");
        assert_eq!(fd::read(&slave, &mut [0; 8]), Moved::Gone);
    }

    #[test]
    fn the_end_of_input_is_a_key_for_who_reads_keys() {
        let Terminal { master, slave } = terminal();
        let mut raw = settings(&slave).unwrap();
        // SAFETY: `raw` is valid and outlives both calls.
        unsafe {
            libc::cfmakeraw(&mut raw);
            check(libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw)).unwrap();
        }
        assert_eq!(end_of_file(&master, true), [4]);
        raw.c_cc[libc::VEOF] = libc::_POSIX_VDISABLE;
        // SAFETY: as above.
        check(unsafe { libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw) }).unwrap();
        assert_eq!(end_of_file(&master, false), []);
    }
}
