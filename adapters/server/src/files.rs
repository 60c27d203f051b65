//! How the limit on open files is shared: the API has its connections, clients have what is left.

use crate::api;

/// Files that are no connection of a client or of the API: those of a bus, of databases, of the store.
const OTHERS: usize = 192;

/// Says how many files clients leave to others when so many may be open. If that would be more than half of them, there are
/// fewer connections to the API.
pub(crate) fn share(api: &mut api::Limits, files: Option<u64>) -> usize {
    let wanted = api.max_connections.saturating_add(api.reserved_connections);
    let half = files.map_or(usize::MAX, |files| usize::try_from(files / 2).unwrap_or(usize::MAX));
    // Where there are few, others need few as well: a bus and databases, which take most, are of larger servers.
    let room = half.saturating_sub(OTHERS).max(half / 2);
    if wanted > room {
        api.reserved_connections = api.reserved_connections.min(room / 5);
        let left = room - api.reserved_connections;
        api.max_connections = api.max_connections.min(left).max(1);
    }
    let of_api = api.max_connections.saturating_add(api.reserved_connections);
    of_api.saturating_add(OTHERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the API, the regular ones and its reserve; and of all that isn't a client.
    fn shares(connections: usize, files: Option<u64>) -> (usize, usize, usize) {
        let mut api = api::Limits {
            max_connections: connections,
            ..api::Limits::default()
        };
        let reserved = share(&mut api, files);
        (api.max_connections, api.reserved_connections, reserved)
    }

    #[test]
    fn the_api_has_what_it_was_given_and_half_of_the_files_at_most() {
        assert_eq!(shares(1024, Some(1 << 20)), (1024, 64, 1280));
        assert_eq!(shares(1024, None), (1024, 64, 1280));
        assert_eq!(shares(1024, Some(2560)), (1024, 64, 1280));
        assert_eq!(shares(1024, Some(2558)), (1023, 64, 1279));
        assert_eq!(shares(1024, Some(1024)), (256, 64, 512));
        assert_eq!(shares(10, Some(1024)), (10, 64, 266));
        // The rest is for mio to see to, which leaves clients half of the files.
        assert_eq!(shares(1024, Some(128)), (26, 6, 224));
        assert_eq!(shares(1024, Some(2)).0, 1);
        assert_eq!(shares(usize::MAX, None).2, usize::MAX);
    }
}
