//! Who may connect, and whom we talk to: tokens, passwords, nkeys, credentials files, TLS.

use std::path::PathBuf;

use data_encoding::BASE64URL_NOPAD;
use entity_sync_bus::Told;
use entity_sync_nats::{ClientCertificate, NatsAuth, NatsConfig};
use entity_sync_tests::nats::Nats as Server;
use nkeys::KeyPair;

use super::{Node, to, with_auth};

#[test]
fn tokens_and_passwords() {
    let Some(mut server) = Server::prepare() else { return };
    let at_user = |user: &str| NatsConfig::new([server.url().replace("//", &format!("//{user}@"))]);
    let token = with_auth(&server, NatsAuth::Token("s3cret".to_owned()));
    let in_url = at_user("s3cret");
    let password = |password: &str| NatsAuth::UserPassword {
        user: "ann".to_owned(),
        password: password.to_owned(),
    };
    let ann = with_auth(&server, password("h@sh"));
    let not_ann = with_auth(&server, password("guess"));
    let ann_in_url = at_user("ann:h%40sh");

    server.configure("authorization { token: s3cret }");
    server.resume();
    Node::connect(&token, &["a"]);
    Node::connect(&in_url, &["a"]);
    Node::start(&to(&server), &["a"]).fails_with("authorization violation");
    let waits = Node::start(&ann, &["a"]);
    waits.fails_with("(look at the user, password, token or credentials)");

    server.kill();
    server.configure(r#"authorization { user: ann, password: "h@sh" }"#);
    server.resume();
    Node::connect(&ann_in_url, &["a"]);
    Node::start(&not_ann, &["a"]).fails_with("authorization violation");
    // The one that was refused before has gone on trying.
    assert_eq!(waits.told(), Told::Connected);
}

#[test]
fn nkeys_and_credentials_files() {
    let Some(mut server) = Server::prepare() else { return };
    let user = KeyPair::new_user();
    let config = format!("authorization {{ users: [ {{ nkey: {} }} ] }}", user.public_key());
    server.configure(&config);
    server.resume();
    let seed = |user: &KeyPair| NatsAuth::NkeySeed(user.seed().unwrap());
    Node::connect(&with_auth(&server, seed(&user)), &["a"]);
    Node::start(&with_auth(&server, seed(&KeyPair::new_user())), &["a"]).fails_with("authorization violation");

    // As nsc does: an operator vouches for an account, and that for a user.
    let (operator, account) = (KeyPair::new_operator(), KeyPair::new_account());
    let of_operator = jwt(&operator, &operator, r#""type":"operator","version":2"#);
    let limits =
        r#""limits":{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,"conn":-1,"leaf":-1}"#;
    let of_account = jwt(
        &operator,
        &account,
        &format!(r#"{limits},"type":"account","version":2"#),
    );
    let limits = r#""subs":-1,"data":-1,"payload":-1"#;
    let of_user = jwt(&account, &user, &format!(r#"{limits},"type":"user","version":2"#));
    server.kill();
    server.configure(&format!(
        "operator: {of_operator}\nresolver: MEMORY\nresolver_preload: {{ {}: {of_account} }}",
        account.public_key()
    ));
    server.resume();
    let file = |name: &str, seed: &str| {
        let path = server.folder().join(name);
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        std::fs::write(&path, text).unwrap();
        NatsAuth::CredentialsFile(path)
    };
    let right = file("right.creds", &user.seed().unwrap());
    let wrong = file("wrong.creds", &KeyPair::new_user().seed().unwrap());
    let mut node = Node::connect(&with_auth(&server, right), &["a"]);
    node.publish("a", "1").unwrap();
    assert_eq!(node.message(), "1");
    Node::start(&with_auth(&server, wrong), &["a"]).fails_with("authorization violation");
}

/// What one says of another, signed.
fn jwt(by: &KeyPair, of: &KeyPair, claims: &str) -> String {
    let encoded = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
    let header = encoded(br#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let (issuer, subject) = (by.public_key(), of.public_key());
    let body = format!(
        r#"{{"jti":"1","iat":1700000000,"iss":"{issuer}","name":"test","sub":"{subject}","nats":{{{claims}}}}}"#
    );
    let signed = format!("{header}.{}", encoded(body.as_bytes()));
    let signature = encoded(&by.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

/// Someone who vouches for others.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        Self { certificate, issuer }
    }

    /// Writes its own certificate.
    fn write(&self, server: &Server, name: &str) -> PathBuf {
        let path = server.folder().join(name);
        std::fs::write(&path, self.certificate.pem()).unwrap();
        path
    }

    /// Writes a certificate for someone, and its key.
    fn vouch(&self, server: &Server, name: &str) -> ClientCertificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |kind: &str| server.folder().join(format!("{name}.{kind}.pem"));
        std::fs::write(path("certificate"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        ClientCertificate {
            certificate_file: path("certificate"),
            key_file: path("key"),
        }
    }
}

#[test]
fn tls() {
    let Some(mut server) = Server::prepare() else { return };
    let (authority, stranger) = (Authority::new("ours"), Authority::new("another"));
    let roots = authority.write(&server, "roots.pem");
    let own = authority.vouch(&server, "server");
    let client = authority.vouch(&server, "client");
    let strange_client = stranger.vouch(&server, "stranger");
    let strange_roots = stranger.write(&server, "strange.pem");
    let config = |change: &dyn Fn(&mut NatsConfig)| {
        let mut config = to(&server);
        config.tls.roots_file = Some(roots.clone());
        change(&mut config);
        config
    };
    let plain = config(&|_| {});
    let required = config(&|it| it.tls.required = true);
    let by_url = config(&|it| it.servers[0] = it.servers[0].replace("nats://127.0.0.1", "tls://localhost"));
    let other_roots = config(&|it| it.tls.roots_file = Some(strange_roots.clone()));
    let no_roots = config(&|it| it.tls.roots_file = None);
    let with_client = config(&|it| it.tls.client = Some(client.clone()));
    let strange = config(&|it| it.tls.client = Some(strange_client.clone()));

    // A server without it.
    server.resume();
    Node::connect(&plain, &["a"]);
    Node::start(&required, &["a"]).fails_with("(perhaps the server has no TLS)");
    let waits = Node::start(&by_url, &["a"]);
    waits.fails_with("(perhaps the server has no TLS)");

    // A server that demands it.
    let files = |it: &ClientCertificate| {
        let (certificate, key) = (it.certificate_file.display(), it.key_file.display());
        format!("cert_file: {certificate:?}, key_file: {key:?}")
            .replace("\"\\\"", "\"")
            .replace("\\\"\"", "\"")
    };
    server.kill();
    server.configure(&format!("tls {{ {} }}", files(&own)));
    server.resume();
    assert_eq!(waits.told(), Told::Connected);
    let mut node = Node::connect(&plain, &["a"]);
    let large = "x".repeat(64 * 1024);
    for _ in 0..100 {
        node.publish("a", &large).unwrap();
    }
    for _ in 0..100 {
        assert_eq!(node.message(), large);
    }
    Node::connect(&required, &["a"]);
    Node::start(&other_roots, &["a"]).fails_with("(look at the file of root certificates)");
    Node::start(&no_roots, &["a"]).fails_with("certificate");

    // And wants to know who comes.
    let roots = roots.display();
    server.kill();
    server.configure(&format!(
        "tls {{ {}, ca_file: \"{roots}\", verify: true }}",
        files(&own)
    ));
    server.resume();
    Node::connect(&with_client, &["a"]);
    Node::start(&plain, &["a"]).fails_with("ertificate");
    Node::start(&strange, &["a"]).fails_with("");
}
