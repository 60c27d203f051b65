//! A message and its topic in one frame: half of what two frames cost.
//!
//! ```text
//! frame = topic  0  message
//! ```
//!
//! ZeroMQ matches subscriptions with the beginning of a frame. They end with the zero too, which no topic has, so that no
//! topic matches as the beginning of another one.

use entity_sync_core::cluster::MAX_TOPIC_BYTES;

/// Writes the frame of a message.
pub(crate) fn seal(frame: &mut Vec<u8>, topic: &str, message: &[u8]) {
    subscription(frame, topic);
    frame.extend_from_slice(message);
}

/// Writes what to subscribe to for a topic.
pub(crate) fn subscription(frame: &mut Vec<u8>, topic: &str) {
    frame.clear();
    frame.extend_from_slice(topic.as_bytes());
    frame.push(0);
}

/// The message of a frame; `None` if it has no topic. `usual` is the beginning of most frames: the subscription of their
/// topic.
pub(crate) fn open<'a>(frame: &'a [u8], usual: &[u8]) -> Option<&'a [u8]> {
    if let Some(message) = frame.strip_prefix(usual)
        && !usual.is_empty()
    {
        return Some(message);
    }
    let end = frame.iter().take(MAX_TOPIC_BYTES + 1).position(|&byte| byte == 0)?;
    Some(&frame[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens() {
        let mut frame = Vec::new();
        seal(&mut frame, "shop.all", b"\0message\0");
        assert_eq!(open(&frame, b"shop.all\0"), Some(&b"\0message\0"[..]));
        let longest = "x".repeat(MAX_TOPIC_BYTES);
        seal(&mut frame, &longest, b"");
        assert_eq!(open(&frame, b"shop.all\0"), Some(&b""[..]));
        seal(&mut frame, &format!("{longest}x"), b"message");
        assert_eq!(open(&frame, b"shop.all\0"), None);
        assert_eq!(open(b"", b""), None);
        assert_eq!(open(b"no topic", b""), None);
    }

    #[test]
    fn no_topic_matches_as_the_beginning_of_another_one() {
        let (mut frame, mut wanted) = (Vec::new(), Vec::new());
        seal(&mut frame, "shop.0010", b"message");
        subscription(&mut wanted, "shop.001");
        assert!(!frame.starts_with(&wanted));
        subscription(&mut wanted, "shop.0010");
        assert!(frame.starts_with(&wanted));
    }
}
