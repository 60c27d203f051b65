//! Who may ask: tokens, web pages, and names that lead here.

use super::*;

#[tokio::test]
async fn web_pages_are_refused() {
    let server = Server::new();
    for (header, value, status) in [
        ("origin", "http://evil.example", 403),
        ("origin", "null", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "same-origin", 403),
        // Typed into the address bar.
        ("sec-fetch-site", "none", 202),
        ("user-agent", "curl", 202),
    ] {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/notify")
            .header(header, value)
            .body(Full::<Bytes>::from(r#"{"entity":"items","id":"1"}"#))
            .expect("a request");
        let response = server.api.answer(request).await;
        assert_eq!(response.status().as_u16(), status, "{header}: {value}");
    }
    assert_eq!(server.notified.lock().len(), 2);
}

#[tokio::test]
async fn names_that_a_web_page_may_have_lead_here_are_refused() {
    let mut server = Server::new();
    let ask = async |api: &Api, uri: &str, host: Option<&str>| {
        let mut request = Request::builder().uri(uri);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let request = request.body(Full::<Bytes>::default()).expect("a request");
        let (parts, body) = api.answer(request).await.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        (parts.status.as_u16(), String::from_utf8(body.into()).expect("text"))
    };
    for (uri, host, status) in [
        ("/healthz", None, 200),
        ("/healthz", Some("127.0.0.1:8081"), 200),
        ("/healthz", Some("localhost:8081"), 200),
        ("/healthz", Some("[::1]:8081"), 200),
        ("/healthz", Some("evil.example:8081"), 403),
        ("/metrics", Some("evil.example:8081"), 403),
        ("/entities/items/1", Some("evil.example:8081"), 403),
        ("http://evil.example/healthz", Some("localhost"), 403),
        ("http://localhost/healthz", Some("evil.example"), 200),
    ] {
        let (got, body) = ask(&server.api, uri, host).await;
        assert_eq!(got, status, "{uri} at {host:?}: {body}");
        assert_eq!(body.contains("--allowed-host"), status == 403, "{body}");
    }
    let notify: Notify = Arc::new(|_| Ok(()));
    let mut parts = Parts::new(Some(Arc::clone(&server.store)), notify.clone());
    parts.hosts = Hosts::Named(vec!["api.example".to_owned()]);
    server.api = Api::new(parts);
    assert_eq!(ask(&server.api, "/healthz", Some("API.example")).await.0, 200);
    assert_eq!(ask(&server.api, "/healthz", Some("evil.example")).await.0, 403);
    // Who has the token is no web page.
    let mut parts = Parts::new(Some(Arc::clone(&server.store)), notify);
    parts.token = Token::new("0123456789abcdef");
    server.api = Api::new(parts);
    assert_eq!(ask(&server.api, "/healthz", Some("api.example")).await.0, 200);
}

#[tokio::test]
async fn with_a_token_only_health_checks_go_without() {
    let mut server = Server::new();
    let notify: Notify = Arc::new(|_| Ok(()));
    let mut parts = Parts::new(Some(Arc::clone(&server.store)), notify);
    parts.token = Token::new("0123456789abcdef");
    parts.metrics = Arc::new(|| "numbers".to_owned());
    server.api = Api::new(parts);
    for (method, path) in [
        ("GET", "/entities/items/1"),
        ("PUT", "/entities/items/1"),
        ("POST", "/notify"),
        ("GET", "/metrics"),
    ] {
        let answer = server.send(method, path, "{}").await;
        answer.fails(
            401,
            "no_token",
            "does not carry the API's token",
            "send the header Authorization: Bearer and the line that is in the server's --api-token-file",
        );
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(server.store.get(&key("items", "1")), Ok(None));
    server.get("/healthz").await.is(200, r#"{"status":"ok"}"#);
    server.get("/readyz").await.is(200, r#"{"status":"ok"}"#);
    for (header, status) in [
        ("Bearer 0123456789abcdef", 200),
        ("bearer  0123456789abcdef", 200),
        ("Bearer 0123456789abcdeg", 401),
        ("Bearer 0123456789abcde", 401),
        ("Bearer ", 401),
        ("Basic 0123456789abcdef", 401),
        ("é", 401),
        ("", 401),
    ] {
        let request = Request::builder()
            .uri("/metrics")
            .header(
                "authorization",
                HeaderValue::from_bytes(header.as_bytes()).expect("a value"),
            )
            .body(Full::<Bytes>::default())
            .expect("a request");
        let response = server.api.answer(request).await;
        assert_eq!(response.status(), status, "{header}");
    }
}
