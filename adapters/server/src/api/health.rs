//! `GET /healthz` and `GET /readyz`: whether to restart the server, and whether to send it clients.
//!
//! Both say which parts of the process are in trouble. They need no token; without the right one, if there is one, they keep to
//! themselves what the trouble is, as that may name hosts and users.

use std::sync::atomic::Ordering;

use entity_sync_mio::{Severity, Trouble};
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::{Value, json};

use super::error::ApiError;
use super::{Answer, Api, blocking};
use crate::store::StoreError;

impl Api {
    pub(super) async fn health(&self, headers: &HeaderMap) -> Result<Answer, ApiError> {
        self.check(headers, Severity::Dead).await
    }

    pub(super) async fn ready(&self, headers: &HeaderMap) -> Result<Answer, ApiError> {
        if self.parts.is_stopping.load(Ordering::Relaxed) {
            return Err(ApiError::unhealthy(StoreError::Closed));
        }
        // Most buses report to the server's health why they are not.
        let is_cut_off = self.parts.cluster.as_ref().is_some_and(|it| !it.has_been_connected());
        if is_cut_off && self.parts.health.is_ready() {
            return Err(ApiError::not_connected());
        }
        self.check(headers, Severity::NotReady).await
    }

    /// 503 if a part is in a trouble that matters this much, or more.
    async fn check(&self, headers: &HeaderMap, limit: Severity) -> Result<Answer, ApiError> {
        let troubles = self.parts.health.troubles();
        let Some(worst) = troubles.first() else {
            self.ask_store().await?;
            return Ok(super::json(StatusCode::OK, r#"{"status":"ok"}"#));
        };
        let tells = self.ask_for_token(headers).is_ok();
        let mut body = json!({ "status": worst.severity.to_string(), "troubles": shown(&troubles, tells) });
        let mut status = StatusCode::OK;
        if worst.severity < limit {
            self.ask_store().await?;
        } else {
            status = StatusCode::SERVICE_UNAVAILABLE;
            body["error"] = error(worst, tells);
        }
        Ok(super::json(status, body.to_string()))
    }

    async fn ask_store(&self) -> Result<(), ApiError> {
        match self.parts.store.clone() {
            Some(store) => blocking(move || store.ping()).await.map_err(ApiError::unhealthy),
            None => Ok(()),
        }
    }
}

/// As all errors of the API.
fn error(worst: &Trouble, tells: bool) -> Value {
    let hint = match worst.severity {
        Severity::Dead => "restart the server, and report this bug",
        _ => "correct what the message says; the server goes on trying, and its log says more",
    };
    let message = match tells {
        true => worst.to_string(),
        false => "a part of the server is in trouble; send the API's token to be told which".to_owned(),
    };
    json!({ "code": worst.severity.to_string(), "message": message, "hint": hint })
}

pub(super) fn shown(troubles: &[Trouble], tells: bool) -> Value {
    let shown = troubles.iter().map(|it| {
        let mut shown = json!({
            "severity": it.severity.to_string(),
            "since_ms": u64::try_from(it.since.as_millis()).unwrap_or(u64::MAX),
        });
        if tells {
            shown["part"] = it.part.as_str().into();
            shown["message"] = it.message.as_str().into();
        }
        shown
    });
    shown.collect()
}
