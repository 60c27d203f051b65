//! The limit on open files: connections are admitted only as far as there are files for them, and some are left for the
//! rest of the process.

use std::io;

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises this process's soft limit on open files to the hard one, and says what it is now. Most systems start
/// processes with a soft limit of 1,024, which is also the most connections then.
///
/// # Errors
/// When the system refuses; the limit stays as it was.
pub fn raise_file_limit() -> io::Result<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    Ok(limit.current.unwrap_or(u64::MAX))
}

/// How many files may still be opened when `reserve` of them are left for other uses.
pub(crate) fn files_left(reserve: usize) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return usize::MAX;
    };
    // Where the system doesn't say what is open, the standard streams and a few more.
    let open = std::fs::read_dir("/proc/self/fd").map_or(16, Iterator::count);
    usize::try_from(limit)
        .unwrap_or(usize::MAX)
        .saturating_sub(open)
        .saturating_sub(reserve)
}
