//! [`NoneToSpare`]: the system refuses a thread, or what a thread sleeps on, and what to do about it.

use std::fmt;
use std::io::{self, ErrorKind};

/// No more open files in this process, and none in the whole system: as all Unix systems number them.
const EMFILE: i32 = 24;
const ENFILE: i32 = 23;

/// Says why the system has refused a thread or an event queue, and what to do: for the `Display` of errors.
///
/// ```
/// use std::io;
///
/// use entity_sync_bus::NoneToSpare;
///
/// let error = io::ErrorKind::WouldBlock.into();
/// let said = NoneToSpare { whom: "NATS", error: &error }.to_string();
/// assert!(said.starts_with("the system has no thread to spare for NATS: "));
/// assert!(said.contains("ulimit -u"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NoneToSpare<'a> {
    /// For whom.
    pub whom: &'a str,
    /// What the system said.
    pub error: &'a io::Error,
}

impl fmt::Display for NoneToSpare<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { whom, error } = self;
        // A thread takes no file, and an event queue nothing else that is counted.
        let (what, advice) = match (error.raw_os_error(), error.kind()) {
            (Some(EMFILE), _) => ("event queue", "raise the limit on open files (ulimit -n)"),
            (Some(ENFILE), _) => ("event queue", "raise the system's limit on open files (fs.file-max)"),
            (_, ErrorKind::WouldBlock) => (
                "thread",
                "raise the limit on threads (ulimit -u, or the one on processes of its service or container)",
            ),
            (_, ErrorKind::OutOfMemory) => ("thread or event queue", "it is out of memory"),
            _ => (
                "thread or event queue",
                "see whether a limit on threads (ulimit -u) or open files (ulimit -n) is reached",
            ),
        };
        write!(f, "the system has no {what} to spare for {whom}: {error}; {advice}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_to_raise() {
        let said = |error: io::Error| {
            let whom = "NSQ";
            NoneToSpare { whom, error: &error }.to_string()
        };
        let files = said(io::Error::from_raw_os_error(EMFILE));
        assert!(
            files.starts_with("the system has no event queue to spare for NSQ: "),
            "{files}"
        );
        assert!(files.ends_with("(ulimit -n)"), "{files}");
        assert!(said(io::Error::from_raw_os_error(ENFILE)).contains("fs.file-max"));
        let threads = said(ErrorKind::WouldBlock.into());
        assert!(
            threads.contains("no thread to spare") && threads.contains("ulimit -u"),
            "{threads}"
        );
        assert!(said(ErrorKind::OutOfMemory.into()).contains("out of memory"));
        let other = said(io::Error::other("so"));
        assert!(other.contains(": so; ") && other.contains("ulimit -u") && other.contains("ulimit -n"));
    }
}
