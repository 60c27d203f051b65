//! Where the `entity-sync` binary is, and addresses for it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// Builds the binary once, in the profile of the program that asks, and says where it is.
pub fn binary() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY
        .get_or_init(|| {
            let own = std::env::current_exe().unwrap();
            let folder = own.parent().unwrap();
            // Tests are in a folder beside the programs.
            let is_test = folder.ends_with("deps");
            let profile = if is_test { folder.parent().unwrap() } else { folder };
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--quiet", "--locked", "--bin", "entity-sync"]);
            // Nearly all that `cargo test --workspace` has built serves for this too, as crates have the same features.
            build.args(match is_test {
                true => &["--workspace"][..],
                false => &["-p", "entity-sync"],
            });
            // What cargo says of this package to its tests: some crates are built anew when it changes, and all above them.
            for (name, _) in std::env::vars_os() {
                let name = name.to_string_lossy();
                if name.starts_with("CARGO_MANIFEST_") || name.starts_with("CARGO_PKG_") {
                    build.env_remove(&*name);
                }
            }
            build.arg("--target-dir").arg(profile.parent().unwrap());
            if profile.ends_with("release") {
                build.arg("--release");
            }
            let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
            assert!(status.success());
            profile.join("entity-sync")
        })
        .clone()
}

/// An address of this machine that nothing else has, now or later, so that all of its ports are free, also for who comes
/// back to one: all of 127.0.0.0/8 is this machine.
pub fn own_address() -> IpAddr {
    // Others count from 1 on.
    static NEXT: AtomicU32 = AtomicU32::new(100);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < 255, "no more addresses");
    let process = std::process::id();
    IpAddr::V4(Ipv4Addr::new(127, (process >> 8) as u8, process as u8, number as u8))
}
