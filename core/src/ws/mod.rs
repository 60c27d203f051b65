//! The server side of WebSocket (RFC 6455) without I/O: requests and bytes in, responses, messages and frames out.
//!
//! It answers as gorilla/websocket 1.4.0 does, which the original used, except where that was wrong: a frame length with
//! its highest bit set and text that is not UTF-8 are violations here.

mod close;
mod decoder;
mod frame_header;
mod hosts;
mod refusal;
mod upgrade;
mod violation;

pub(crate) use close::{close_frame, may_be_sent};
pub(crate) use decoder::{Decoder, Flow, Limits, Received, Stop};
pub(crate) use frame_header::{OpCode, control_frame, data_frame, encode_header};
pub use hosts::{Hosts, Origins};
pub use refusal::Refusal;
pub use upgrade::{HeaderFields, UpgradeRules, asks_for_snapshots};
pub(crate) use upgrade::{Upgrade, has_field, upgrade, with_field};
