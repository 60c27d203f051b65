//! The server side of WebSocket (RFC 6455) without I/O.
