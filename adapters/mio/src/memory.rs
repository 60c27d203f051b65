//! How much memory there is, from which default limits are derived.

use std::fs;

/// The machine's memory in bytes, or what the process's control group may use of it. `None` where the system does not say.
pub fn memory_bytes() -> Option<usize> {
    let groups = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let of_group = groups
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    let of_machine = fs::read_to_string("/proc/meminfo").ok().and_then(|it| total_of(&it));
    of_group.chain(of_machine).min()
}

fn total_of(meminfo: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_how_much_there_is() {
        let text = "MemTotal:        1010 kB\nMemFree:          100 kB\n";
        assert_eq!(total_of(text), Some(1010 * 1024));
        assert_eq!(total_of("MemTotal: much"), None);
        assert_eq!(total_of(""), None);
    }
}
