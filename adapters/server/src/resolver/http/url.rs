//! [`Template`]: the URL of an entity, and what a name that a client has chosen may do to it.
//!
//! Names come from clients, and servers and proxies decode what we encode: `..%2Fadmin` may be `../admin` to them. So this is
//! decided here, and nowhere else:
//!
//! | where | names that are asked for | others |
//! | --- | --- | --- |
//! | `{id}`, `{entity}` in the path | fill one segment, or a part of it | with `/`, `\` or a control character; `.` and `..` |
//! | `{+id}` in the path | fill one segment or more, separated by `/` | with a segment that is refused above, or is empty |
//! | `{id}`, `{entity}` in the query | all | |
//!
//! An empty name is never asked for: servers take its URL for that of all entities. Whatever is no letter, digit or one of
//! `-_.~` is percent-encoded once. For a name that is not asked for there is nothing to read: [`Unaddressable`].

use std::fmt;
use std::str::FromStr;

use entity_sync_mio::EntityKey;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::Uri;

use super::super::SourceError;

/// What stays as it is in a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The URLs of entities: text with `{entity}`, and `{id}` or `{+id}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    given: String,
    /// `http://` and the host.
    origin: String,
    /// What is between the slashes of the path.
    segments: Vec<Vec<Piece>>,
    query: Option<Vec<Piece>>,
}

#[derive(Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Entity,
    Id,
    /// The id with its slashes.
    IdPath,
}

/// Why an entity has no URL, so that it isn't asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unaddressable {
    /// The entity or the id is empty.
    Empty,
    /// It would be more than one segment of the path.
    Separator,
    /// It has a control character.
    Control,
    /// `.` or `..`.
    Step,
}

impl Template {
    /// Of all its URLs: the scheme and the host.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The URL of `key`.
    pub(super) fn url(&self, key: &EntityKey) -> Result<String, Unaddressable> {
        if key.entity().is_empty() || key.id().is_empty() {
            return Err(Unaddressable::Empty);
        }
        let mut url = self.origin.clone();
        for segment in &self.segments {
            url.push('/');
            push_segment(&mut url, segment, key)?;
        }
        for (at, piece) in self.query.iter().flatten().enumerate() {
            if at == 0 {
                url.push('?');
            }
            match piece {
                Piece::Text(text) => url.push_str(text),
                Piece::Entity => push_encoded(&mut url, key.entity()),
                Piece::Id | Piece::IdPath => push_encoded(&mut url, key.id()),
            }
        }
        Ok(url)
    }
}

fn push_segment(url: &mut String, segment: &[Piece], key: &EntityKey) -> Result<(), Unaddressable> {
    // As a server sees it that decodes. What the template itself says is the operator's.
    let mut decoded = String::new();
    let mut is_fixed = true;
    for piece in segment {
        let name = match piece {
            Piece::Text(text) => {
                url.push_str(text);
                decoded.push_str(text);
                continue;
            }
            Piece::Entity => key.entity(),
            Piece::Id | Piece::IdPath => key.id(),
        };
        is_fixed = false;
        decoded.push_str(name);
        if name.contains(char::is_control) {
            return Err(Unaddressable::Control);
        }
        if name.contains('\\') || (name.contains('/') && *piece != Piece::IdPath) {
            return Err(Unaddressable::Separator);
        }
        for (at, part) in name.split('/').enumerate() {
            if part.is_empty() {
                return Err(Unaddressable::Empty);
            }
            if at > 0 {
                url.push('/');
            }
            push_encoded(url, part);
        }
    }
    if !is_fixed && decoded.split('/').any(|part| part == "." || part == "..") {
        return Err(Unaddressable::Step);
    }
    Ok(())
}

fn push_encoded(url: &mut String, name: &str) {
    url.extend(utf8_percent_encode(name, PLAIN));
}

impl FromStr for Template {
    type Err = SourceError;

    fn from_str(given: &str) -> Result<Self, SourceError> {
        let refuse = |why| Err(SourceError::BadTemplate(why));
        let Some((scheme, rest)) = given
            .split_once("://")
            .filter(|(it, _)| matches!(*it, "http" | "https"))
        else {
            return refuse("it begins with neither http:// nor https://");
        };
        let Some((host, target)) = rest.split_once('/') else {
            return refuse("there is no path");
        };
        if target.contains('#') {
            return refuse("it has a fragment, which no server is sent");
        }
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let segments: Option<Vec<_>> = path.split('/').map(pieces).collect();
        let query = query.map(pieces);
        let (Some(segments), false, false) = (segments, host.contains(['{', '}']), query == Some(None)) else {
            return refuse("there is something else in braces than {entity}, {id} and {+id}, or in the host");
        };
        let query = query.flatten();
        let mut all = segments.iter().flatten().chain(query.iter().flatten());
        if !all.any(|it| matches!(it, Piece::Id | Piece::IdPath)) {
            return refuse("its path has no {id}, so that all entities would be the same");
        }
        let template = Self {
            given: given.to_owned(),
            origin: format!("{scheme}://{host}"),
            segments,
            query,
        };
        let example = EntityKey::new("a", "1").map(|key| template.url(&key));
        match example {
            Ok(Ok(url)) if is_url(&url) => Ok(template),
            _ => refuse("it is no URL"),
        }
    }
}

fn is_url(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let Some(authority) = uri.authority().filter(|it| !it.host().is_empty()) else {
        return false;
    };
    let host = authority.as_str().rsplit(['@', ']']).next();
    authority.port_u16().is_some() || host.is_none_or(|host| !host.contains(':'))
}

/// `None` if there is something else in braces.
fn pieces(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        pieces.push(Piece::Text(before.to_owned()));
        pieces.push(match name {
            "entity" => Piece::Entity,
            "id" => Piece::Id,
            "+id" => Piece::IdPath,
            _ => return None,
        });
        rest = after;
    }
    pieces.push(Piece::Text(rest.to_owned()));
    pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
    (!rest.contains('}')).then_some(pieces)
}

impl fmt::Display for Unaddressable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "its name, or a part of it between slashes, is empty",
            Self::Separator => {
                "its name has a slash, which some servers take for the end of the name: write {+id} for ids with slashes, or \
                 {id} behind the ?"
            }
            Self::Control => "its name has a control character",
            Self::Step => "its name is . or .., which servers take for a step in the path: write {id} behind the ?",
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The user's part of a URL may be a password.
        let shown = match self.given.split_once("://").and_then(|(scheme, rest)| {
            let (host, path) = rest.split_once('/')?;
            let (_, host) = host.rsplit_once('@')?;
            Some(format!("{scheme}://…@{host}/{path}"))
        }) {
            Some(shown) => shown,
            None => self.given.clone(),
        };
        write!(f, "{shown:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(template: &str, entity: &str, id: &str) -> Result<String, Unaddressable> {
        let template: Template = template.parse().expect("good");
        template.url(&EntityKey::new(entity, id).expect("short"))
    }

    #[test]
    fn a_name_in_the_path_is_one_segment() {
        let of = |id| url("http://h/api/{entity}/v-{id}.json", "my items", id);
        assert_eq!(of("1").as_deref(), Ok("http://h/api/my%20items/v-1.json"));
        let odd = "a?b#c%2f;d&e={id}\u{e9}";
        let encoded = "http://h/api/my%20items/v-a%3Fb%23c%252f%3Bd%26e%3D%7Bid%7D%C3%A9.json";
        assert_eq!(of(odd).as_deref(), Ok(encoded));
        for (id, why) in [
            ("", Unaddressable::Empty),
            ("a/b", Unaddressable::Separator),
            ("../../admin", Unaddressable::Separator),
            ("..\\admin", Unaddressable::Separator),
            ("a\r\nb", Unaddressable::Control),
            ("1\0", Unaddressable::Control),
        ] {
            assert_eq!(of(id), Err(why), "{id:?}");
        }
        assert_eq!(of("..").as_deref(), Ok("http://h/api/my%20items/v-...json"));
        for id in [".", ".."] {
            assert_eq!(url("http://h/{entity}/{id}", "items", id), Err(Unaddressable::Step));
            assert_eq!(url("http://h/{entity}/{id}", id, "1"), Err(Unaddressable::Step));
        }
        // Of several pieces.
        assert_eq!(url("http://h/.{id}", "items", "."), Err(Unaddressable::Step));
        assert_eq!(url("http://h/{entity}{id}", ".", "."), Err(Unaddressable::Step));
        assert_eq!(url("http://h/{id}", "", "1"), Err(Unaddressable::Empty));
        // The template's own steps are the operator's.
        let own = url("http://h/a/../{id}", "items", "1");
        assert_eq!(own.as_deref(), Ok("http://h/a/../1"));
    }

    #[test]
    fn ids_with_slashes_may_be_several_segments() {
        let of = |id| url("http://h/files/{+id}?v=1", "files", id);
        assert_eq!(of("a/b c/d").as_deref(), Ok("http://h/files/a/b%20c/d?v=1"));
        for (id, why) in [
            ("/a", Unaddressable::Empty),
            ("a//b", Unaddressable::Empty),
            ("a/", Unaddressable::Empty),
            ("a/../b", Unaddressable::Step),
            ("..", Unaddressable::Step),
            ("a/.", Unaddressable::Step),
            ("a\\..\\b", Unaddressable::Separator),
        ] {
            assert_eq!(of(id), Err(why), "{id:?}");
        }
    }

    #[test]
    fn a_query_may_hold_every_name_but_an_empty_one() {
        let of = |id| url("http://h/rows?of={entity}&id={id}", "my items", id);
        for (id, encoded) in [
            (".", "."),
            ("..", ".."),
            ("../../admin", "..%2F..%2Fadmin"),
            ("1&id=2", "1%26id%3D2"),
            ("1\r\n", "1%0D%0A"),
            ("a+b", "a%2Bb"),
        ] {
            let expected = format!("http://h/rows?of=my%20items&id={encoded}");
            assert_eq!(of(id).as_deref(), Ok(&*expected), "{id:?}");
        }
        assert_eq!(of(""), Err(Unaddressable::Empty));
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for given in [
            "ftp://h/{id}",
            "http://h",
            "http://h/x",
            "http:///{id}",
            "http://{id}/x",
            "http://h/{name}/{id}",
            "http://h/{id",
            "http://h/id}",
            "http://h/{id}?{x}",
            "http://h/#{id}",
            "http://h/{id}#x",
            "http://h h/{id}",
            "http://h:x/{id}",
        ] {
            assert!(given.parse::<Template>().is_err(), "{given}");
        }
    }

    #[test]
    fn passwords_in_templates_are_not_shown() {
        let template: Template = "http://me:hidden@h/{id}".parse().expect("good");
        assert_eq!(format!("{template:?}"), "\"http://…@h/{id}\"");
    }
}
