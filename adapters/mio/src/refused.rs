//! [`Refused`]: what the system says when it refuses something, and what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};

/// Of Linux and the BSDs: too many files of the process, and of the whole system.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// An error of the system, shown with what to do where that is known.
///
/// ```
/// use std::io;
///
/// use entity_sync_mio::Refused;
///
/// let error = io::Error::from_raw_os_error(24);
/// assert!(Refused(&error).to_string().ends_with("; allow it more open files (ulimit -n)"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Refused<'a>(pub &'a io::Error);

impl Refused<'_> {
    /// Whether the system has none to spare of what was asked for, whatever it was asked for: files, threads or memory.
    pub fn is_shortage(&self) -> bool {
        self.hint().is_some()
    }

    fn hint(&self) -> Option<&'static str> {
        Some(match (self.0.raw_os_error(), self.0.kind()) {
            (Some(EMFILE), _) => "allow it more open files (ulimit -n)",
            (Some(ENFILE), _) => "close other programs, or allow the system more open files (sysctl fs.file-max)",
            // What the system says when it gives no thread.
            (_, ErrorKind::WouldBlock) => {
                "allow its user more threads (ulimit -u), or it more memory (ulimit -v), or its container more of both"
            }
            (_, ErrorKind::OutOfMemory) => "allow it more memory (ulimit -v), or its container",
            _ => return None,
        })
    }
}

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hint() {
            Some(hint) => write!(f, "{}; {hint}", self.0),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_do() {
        for (number, said) in [
            (
                24,
                "Too many open files (os error 24); allow it more open files (ulimit -n)",
            ),
            (
                23,
                "; close other programs, or allow the system more open files (sysctl fs.file-max)",
            ),
            (
                11,
                "Resource temporarily unavailable (os error 11); allow its user more threads (ulimit -u), or",
            ),
            (
                12,
                "Cannot allocate memory (os error 12); allow it more memory (ulimit -v)",
            ),
        ] {
            let shown = Refused(&io::Error::from_raw_os_error(number)).to_string();
            assert!(shown.contains(said), "{shown}");
            assert!(Refused(&io::Error::from_raw_os_error(number)).is_shortage());
        }
        assert!(!Refused(&io::Error::from_raw_os_error(1)).is_shortage());
        let other = Refused(&io::Error::from_raw_os_error(1)).to_string();
        assert_eq!(other, "Operation not permitted (os error 1)");
    }
}
