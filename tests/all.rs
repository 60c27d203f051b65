//! All tests from outside, in one binary.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failure here is a failed test"
)]
// The entry point of an integration test.
#![allow(missing_docs, unreachable_pub)]

mod axum_route;
mod binary;
mod cluster;
mod conformance;
mod door;
mod durability;
mod echo;
mod embedding;
mod engine;
mod flood;
mod freeze;
mod http_source;
mod milestone;
mod mio_server;
mod mock_drivers;
mod nats;
mod own_bus;
mod pages;
mod postgres;
mod proxies;
mod simulation;
mod zmq;
