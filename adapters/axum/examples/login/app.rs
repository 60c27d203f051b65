//! The application's own HTTP: a login that gives a cookie, and a middleware that knows who comes with one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Form, Request, State};
use axum::http::header::{COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::post;
use entity_sync_axum::Secret;

/// Who has logged in, by session.
type Sessions = Arc<Mutex<HashMap<String, Secret>>>;

#[derive(serde::Deserialize)]
struct Login {
    name: String,
}

/// `POST /login`, and what is for those who did.
pub(crate) fn app(private: Router) -> Router {
    let sessions = Sessions::default();
    private
        .layer(from_fn_with_state(sessions.clone(), only_known))
        .route("/login", post(log_in).with_state(sessions))
}

async fn log_in(State(sessions): State<Sessions>, Form(Login { name }): Form<Login>) -> Result<Response, StatusCode> {
    // Yours would ask for a password too, and end sessions some day.
    let random = || getrandom::u64().map_err(|_| StatusCode::SERVICE_UNAVAILABLE);
    let session = format!("{:016x}{:016x}", random()?, random()?);
    let cookie = format!("session={session}; Path=/; HttpOnly; SameSite=Strict");
    let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
    sessions.insert(session, Secret::new(name));
    Ok((AppendHeaders([(SET_COOKIE, cookie)]), "welcome\n").into_response())
}

/// Refuses who has not logged in, and tells Entity Sync who the others are.
async fn only_known(
    State(sessions): State<Sessions>,
    mut request: Request,
    next: Next,
) -> Result<Response, StatusCode> {
    let secret = {
        let sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        session_of(request.headers()).and_then(|it| sessions.get(it).cloned())
    };
    request.extensions_mut().insert(secret.ok_or(StatusCode::UNAUTHORIZED)?);
    Ok(next.run(request).await)
}

fn session_of(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|it| it.to_str().ok());
    let mut cookies = cookies.flat_map(|it| it.split(';')).map(str::trim);
    cookies.find_map(|it| it.strip_prefix("session="))
}
