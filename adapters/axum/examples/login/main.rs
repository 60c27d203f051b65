//! Notes that everyone sees and signs, behind a login with a cookie: axum serves the page and decides who comes in,
//! Entity Sync's reactors serve the WebSockets.
//!
//! ```sh
//! cargo run -p entity-sync-axum --example login
//! ```
//!
//! Then open <http://127.0.0.1:8080/> in two browsers.

mod app;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::{get, put};
use entity_sync::{Audience, Entity, EntityKey, EntitySync, ReadError, Rows};
use entity_sync_axum::Upgrader;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let notes = Arc::new(Mutex::new(HashMap::<String, String>::new()));

    // No address of its own: clients come by axum's.
    let store = notes.clone();
    let read = Entity::read(move |request| {
        let notes = store.lock().unwrap_or_else(PoisonError::into_inner);
        let text = notes.get(request.key.id()).ok_or(ReadError::NotFound)?;
        let Audience::Secret(reader) = &request.audience else {
            return Err(ReadError::Denied);
        };
        Ok(Rows::one(
            serde_json::json!({ "text": text, "read by": **reader }).to_string(),
        ))
    });
    let sync = EntitySync::builder().entity("notes", read.snapshot()).start()?;

    let handle = sync.handle().clone();
    let write = put(async move |Path(id): Path<String>, text: String| {
        let key = EntityKey::new("notes", &id).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
        notes.lock().unwrap_or_else(PoisonError::into_inner).insert(id, text);
        handle
            .notify(&key)
            .map_err(|error| (StatusCode::NOT_FOUND, error.to_string()))
    });
    let private = Router::new()
        .route("/ws/entity-sync/", Upgrader::new(sync.handle()).route())
        .route("/notes/{id}", write);
    let app = app::app(private).route("/", get(async || Html(include_str!("page.html"))));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    let stopped = async {
        // Without a way to hear of it, the process ends at once.
        let _ = tokio::signal::ctrl_c().await;
    };
    axum::serve(listener, app).with_graceful_shutdown(stopped).await?;
    tokio::task::spawn_blocking(|| sync.shutdown(Duration::from_secs(5))).await??;
    Ok(())
}
