//! The bus against a scripted nsqd over loopback.
#![allow(clippy::unwrap_used, reason = "a failure here is a failed test")]

mod node;

mod faults;
mod session;
mod several;
