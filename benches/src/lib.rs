//! What the programs share: the other process, its figures, and the few bytes of WebSocket that both sides need.
#![allow(clippy::print_stdout, reason = "of programs that report")]

pub mod connect;
pub mod machine;
pub mod process;
pub mod report;
pub mod wire;
