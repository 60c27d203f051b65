//! [`zmq_keys`]: the whole of `entity-sync zmq-keys`.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use entity_sync_zmq::{CurveKeyPair, ZmqError};

/// Writes a new secret key of CURVE to this file, which only its owner may read, and its public key to one with `.pub` after
/// its name and to `out`.
///
/// # Errors
/// [`KeysError`]: no file is left behind.
pub fn zmq_keys(path: &Path, out: &mut impl Write) -> Result<(), KeysError> {
    let keys = CurveKeyPair::generate().map_err(KeysError::Zmq)?;
    let public = keys.public.to_z85() + "\n";
    let beside = PathBuf::from(
        [path.as_os_str(), ".pub".as_ref()]
            .into_iter()
            .collect::<std::ffi::OsString>(),
    );
    write_new(&beside, 0o644, &public)?;
    if let Err(error) = write_new(path, 0o600, &(keys.secret.to_z85() + "\n")) {
        let _ = std::fs::remove_file(&beside);
        return Err(error);
    }
    match out.write_all(public.as_bytes()).and_then(|()| out.flush()) {
        // As with `head`: the reader has enough.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(KeysError::Output(error)),
        _ => Ok(()),
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), KeysError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeysError::Exists { path: path.to_owned() },
        _ => KeysError::Write {
            path: path.to_owned(),
            source: error,
        },
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(|error| {
        let _ = std::fs::remove_file(path);
        failed(error)
    })
}

/// Why there are no new keys.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeysError {
    /// A file is there already, and is not written over.
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file can't be written.
    Write {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// Standard output can't be written. The files are.
    Output(io::Error),
    /// libzmq has no keys.
    Zmq(ZmqError),
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exists { path } => write!(
                f,
                "{} is there already, and keys are not written over: name another file, or remove it",
                path.display()
            ),
            Self::Write { path, source } => write!(f, "{} can't be written: {source}", path.display()),
            Self::Output(error) => write!(f, "standard output can't be written: {error}"),
            Self::Zmq(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for KeysError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Exists { .. } => None,
            Self::Write { source, .. } | Self::Output(source) => Some(source),
            Self::Zmq(error) => Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use entity_sync_zmq::CurveSecretKey;

    use super::*;

    #[test]
    fn a_new_pair_is_for_its_owner_and_never_written_over() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("node.key");
        let public = folder.path().join("node.key.pub");
        let mut out = Vec::new();
        match zmq_keys(&path, &mut out) {
            Err(KeysError::Zmq(ZmqError::NoCurve)) => return,
            other => other.expect("new keys"),
        }
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&public) & 0o700), (0o600, 0o600));
        let secret = fs::read(&path).expect("read");
        let keys = CurveKeyPair::from(CurveSecretKey::try_from(&secret[..]).expect("a key"));
        let told = keys.public.to_z85() + "\n";
        assert_eq!(String::from_utf8(out).expect("text"), told);
        assert_eq!(fs::read_to_string(&public).expect("read"), told);

        let again = |there: &Path| {
            let error = zmq_keys(&path, &mut Vec::new()).expect_err("refused").to_string();
            let said = format!("{} is there already, and keys are not written over", there.display());
            assert!(error.starts_with(&said), "{error}");
        };
        again(&public);
        fs::remove_file(&public).expect("removed");
        again(&path);
        assert_eq!((fs::read(&path).expect("read"), public.exists()), (secret, false));
        let error = zmq_keys(&folder.path().join("no/folder"), &mut Vec::new()).expect_err("refused");
        assert!(error.to_string().contains("can't be written: No such file"), "{error}");
    }
}
