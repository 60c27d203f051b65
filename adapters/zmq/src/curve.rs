//! [`Curve`]: who may connect, and how the other side proves to be whom it is taken for.

use std::fmt;
use std::str::FromStr;

use curve25519_dalek::MontgomeryPoint;

use crate::error::ZmqError;

const KEY_BYTES: usize = 32;
const Z85_CHARS: usize = 40;

/// What the Z85 encoding (ZeroMQ RFC 32) writes for 0 to 84.
const Z85: &[u8; 85] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#";

/// A public key of CURVE: 40 characters of Z85, as ZeroMQ's tools write it, or 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CurvePublicKey(pub(crate) [u8; KEY_BYTES]);

/// A secret key of CURVE: 40 characters of Z85, or 32 bytes. `Debug` doesn't show it.
#[derive(Clone, PartialEq, Eq)]
pub struct CurveSecretKey(pub(crate) [u8; KEY_BYTES]);

/// A secret key and the public key that belongs to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurveKeyPair {
    /// What others may know.
    pub public: CurvePublicKey,
    /// What proves it.
    pub secret: CurveSecretKey,
}

/// Has connections encrypted, and only allowed nodes connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Curve {
    /// This node's own keys, which it connects with.
    pub client: CurveKeyPair,
    /// What those it connects to prove to have the secret key of: the public key of [`CurveServer::keys`] of all other
    /// nodes, or of the brokers.
    pub server_key: CurvePublicKey,
    /// For a node that others connect to.
    pub server: Option<CurveServer>,
}

/// For sockets that others connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurveServer {
    /// The keys of the accepting side, the same on all nodes of a mesh.
    pub keys: CurveKeyPair,
    /// Whose [`Curve::client`] may connect. Nobody else is admitted.
    pub allowed: Vec<CurvePublicKey>,
}

/// Text or bytes that are no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadKey;

impl CurveKeyPair {
    /// A new pair.
    ///
    /// # Errors
    /// [`ZmqError::NoCurve`].
    pub fn generate() -> Result<Self, ZmqError> {
        check_curve()?;
        let pair = zmq::CurveKeyPair::new().map_err(ZmqError::Socket)?;
        Ok(Self {
            public: CurvePublicKey(pair.public_key),
            secret: CurveSecretKey(pair.secret_key),
        })
    }
}

/// With the public key that this secret key has.
impl From<CurveSecretKey> for CurveKeyPair {
    fn from(secret: CurveSecretKey) -> Self {
        let public = MontgomeryPoint::mul_base_clamped(secret.0);
        Self {
            public: CurvePublicKey(public.to_bytes()),
            secret,
        }
    }
}

impl Curve {
    /// For a node whose key all others have, too: in a mesh, or at brokers that have it.
    pub fn shared(keys: CurveKeyPair) -> Self {
        Self {
            client: keys.clone(),
            server_key: keys.public,
            server: Some(CurveServer::shared(keys)),
        }
    }
}

impl CurveServer {
    /// Admits those who have the same key.
    pub fn shared(keys: CurveKeyPair) -> Self {
        Self {
            allowed: vec![keys.public],
            keys,
        }
    }
}

impl CurvePublicKey {
    /// As 40 characters of Z85.
    pub fn to_z85(&self) -> String {
        z85_of(&self.0)
    }
}

impl CurveSecretKey {
    /// As 40 characters of Z85.
    pub fn to_z85(&self) -> String {
        z85_of(&self.0)
    }
}

/// Whether this libzmq can do CURVE.
pub(crate) fn check_curve() -> Result<(), ZmqError> {
    match zmq::has("curve") {
        Some(true) => Ok(()),
        _ => Err(ZmqError::NoCurve),
    }
}

impl From<[u8; KEY_BYTES]> for CurvePublicKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl From<[u8; KEY_BYTES]> for CurveSecretKey {
    fn from(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

/// As a file has it: 32 bytes, or Z85 with blanks around it.
impl TryFrom<&[u8]> for CurvePublicKey {
    type Error = BadKey;

    fn try_from(bytes: &[u8]) -> Result<Self, BadKey> {
        key_of(bytes).map(Self)
    }
}

/// As a file has it: 32 bytes, or Z85 with blanks around it.
impl TryFrom<&[u8]> for CurveSecretKey {
    type Error = BadKey;

    fn try_from(bytes: &[u8]) -> Result<Self, BadKey> {
        key_of(bytes).map(Self)
    }
}

impl FromStr for CurvePublicKey {
    type Err = BadKey;

    fn from_str(z85: &str) -> Result<Self, BadKey> {
        bytes_of_z85(z85.trim_ascii().as_bytes()).map(Self)
    }
}

impl FromStr for CurveSecretKey {
    type Err = BadKey;

    fn from_str(z85: &str) -> Result<Self, BadKey> {
        bytes_of_z85(z85.trim_ascii().as_bytes()).map(Self)
    }
}

fn key_of(bytes: &[u8]) -> Result<[u8; KEY_BYTES], BadKey> {
    match bytes.try_into() {
        Ok(key) => Ok(key),
        Err(_) => bytes_of_z85(bytes.trim_ascii()),
    }
}

fn bytes_of_z85(text: &[u8]) -> Result<[u8; KEY_BYTES], BadKey> {
    if text.len() != Z85_CHARS {
        return Err(BadKey);
    }
    let mut key = [0; KEY_BYTES];
    for (bytes, chars) in key.chunks_exact_mut(4).zip(text.chunks_exact(5)) {
        let value = chars.iter().try_fold(0u32, |value, char| {
            let digit = Z85.iter().position(|it| it == char)?;
            value.checked_mul(85)?.checked_add(digit as u32)
        });
        bytes.copy_from_slice(&value.ok_or(BadKey)?.to_be_bytes());
    }
    Ok(key)
}

fn z85_of(key: &[u8; KEY_BYTES]) -> String {
    let (words, _) = key.as_chunks();
    let mut text = String::with_capacity(Z85_CHARS);
    for word in words {
        let value = u32::from_be_bytes(*word);
        let digits = [85u32.pow(4), 85u32.pow(3), 85u32.pow(2), 85, 1];
        text.extend(digits.map(|power| char::from(Z85[(value / power % 85) as usize])));
    }
    text
}

impl fmt::Debug for CurvePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_z85())
    }
}

impl fmt::Display for CurvePublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_z85())
    }
}

impl fmt::Debug for CurveSecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CurveSecretKey(…)")
    }
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key of CURVE is 40 characters of Z85, such as `entity-sync zmq-keys` writes, or 32 bytes")
    }
}

impl std::error::Error for BadKey {}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client's keys in the documentation of zmq_curve(7).
    const TEXT: &str = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
    const SECRET: &str = "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs";

    #[test]
    fn a_secret_key_has_the_public_key_that_libzmq_gives_it() {
        let secret: CurveSecretKey = SECRET.parse().expect("a key");
        assert_eq!(CurveKeyPair::from(secret).public.to_z85(), TEXT);
        if check_curve().is_ok() {
            let made = CurveKeyPair::generate().expect("a pair");
            assert_eq!(CurveKeyPair::from(made.secret.clone()).public, made.public);
        }
    }

    #[test]
    fn z85_is_read_as_libzmq_reads_it_and_written_the_same() {
        let key: CurvePublicKey = TEXT.parse().expect("a key");
        assert_eq!(key.0.to_vec(), zmq::z85_decode(TEXT).expect("a key"));
        assert_eq!(key.to_z85(), TEXT);
        let of_file = CurvePublicKey::try_from(format!("{TEXT}\n").as_bytes()).expect("a key");
        assert_eq!(of_file, key);
        assert_eq!(CurvePublicKey::try_from(&key.0[..]).expect("a key"), key);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let too_large = "#".repeat(40);
        for text in ["", "short", &TEXT[1..], &too_large, &TEXT.replace('Y', "\"")] {
            assert_eq!(text.parse::<CurvePublicKey>(), Err(BadKey), "{text}");
        }
        assert!(CurveSecretKey::try_from(&[7u8; 31][..]).is_err());
    }

    #[test]
    fn secrets_are_not_shown() {
        let pair = CurveKeyPair {
            public: [7; 32].into(),
            secret: TEXT.parse().expect("a key"),
        };
        let shown = format!("{pair:?}");
        assert!(
            !shown.contains(&TEXT[..8]) && shown.contains(&pair.public.to_z85()),
            "{shown}"
        );
    }
}
