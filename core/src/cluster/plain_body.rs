//! The body of a message on a plain queue.

use crate::key::EntityKey;

/// Writes a key as Go's `json.Marshal` writes the original's: entity first, `<`, `>`, `&` and two line separators escaped.
pub(super) fn write_body(body: &mut Vec<u8>, key: &EntityKey) {
    body.clear();
    body.extend(b"{\"entity\":");
    write_string(body, key.entity());
    body.extend(b",\"id\":");
    write_string(body, key.id());
    body.push(b'}');
}

fn write_string(body: &mut Vec<u8>, text: &str) {
    let mut buffer = [0; 4];
    body.push(b'"');
    for character in text.chars() {
        match character {
            '"' => body.extend(b"\\\""),
            '\\' => body.extend(b"\\\\"),
            '\n' => body.extend(b"\\n"),
            '\r' => body.extend(b"\\r"),
            '\t' => body.extend(b"\\t"),
            '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                body.extend(format!("\\u{:04x}", u32::from(character)).as_bytes());
            }
            _ => body.extend(character.encode_utf8(&mut buffer).as_bytes()),
        }
    }
    body.push(b'"');
}
