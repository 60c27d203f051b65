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

/// How many files may still be opened when `reserve` of them are left for other uses, but not more than half of all.
pub(crate) fn files_left(reserve: usize) -> usize {
    let Some(limit) = getrlimit(Resource::Nofile).current else {
        return usize::MAX;
    };
    // Where the system doesn't say what is open, the standard streams and a few more.
    let open = std::fs::read_dir("/proc/self/fd").map_or(16, Iterator::count);
    left_of(usize::try_from(limit).unwrap_or(usize::MAX), open, reserve)
}

fn left_of(limit: usize, open: usize, reserve: usize) -> usize {
    limit.saturating_sub(open).saturating_sub(reserve.min(limit / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_reserve_leaves_some_for_connections() {
        assert_eq!(left_of(4096, 20, 1280), 2796);
        assert_eq!(left_of(1024, 20, 1280), 492);
        assert_eq!(left_of(128, 20, usize::MAX), 44);
        assert_eq!(left_of(128, 64, 64), 0);
    }
}
