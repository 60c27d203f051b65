//! The mock drivers of core's examples, run as tests.

#[path = "../core/examples/io_uring_mock.rs"]
mod io_uring_mock;
#[path = "../core/examples/tls_mock.rs"]
mod tls_mock;
#[path = "../core/examples/two_shards.rs"]
mod two_shards;

#[test]
fn a_driver_that_takes_every_write() {
    io_uring_mock::run();
}

#[test]
fn a_driver_that_is_busy_at_times() {
    tls_mock::run();
}

#[test]
fn two_shards_on_two_threads() {
    two_shards::run();
}
