//! The HTTP pages: `/metrics`, `/ready`, `/healthz` and `/volumes`. They read what the
//! controller last showed of itself, and change nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::metrics::{Format, Metrics};
use crate::report::Status;

/// The controller shows itself at least this often; far less often, and it hangs.
const HEARTBEAT_LIMIT: Duration = Duration::from_secs(60);

/// What the controller shows of itself.
#[derive(Debug)]
pub struct View {
    /// The verdicts of the last plan.
    pub status: Status,
    /// Ready once everything was looked at, or what that waits for.
    pub readiness: Result<(), String>,
    /// When the controller's loop last came round.
    pub heartbeat: Instant,
}

impl Default for View {
    fn default() -> Self {
        Self { status: Status::default(), readiness: Err("starting".to_owned()), heartbeat: Instant::now() }
    }
}

#[derive(Clone)]
struct Pages {
    view: watch::Receiver<View>,
    metrics: Arc<Metrics>,
}

/// Opens the port. `address` is Go's form: `host:port`, or `:port` for every address.
///
/// # Errors
/// When the address can't be parsed or had.
pub async fn listen(address: &str) -> anyhow::Result<TcpListener> {
    let context = || format!("cannot listen on {address}; choose another address by --listen-address");
    match address.strip_prefix(':') {
        // All addresses of both families, or of IPv4 where there is no IPv6.
        Some(port) => match TcpListener::bind(format!("[::]:{port}")).await {
            Ok(listener) => Ok(listener),
            Err(_) => TcpListener::bind(format!("0.0.0.0:{port}")).await.with_context(context),
        },
        None => TcpListener::bind(address).await.with_context(context),
    }
}

/// Answers requests until the process ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    metrics_path: &str,
    view: watch::Receiver<View>,
    metrics: Arc<Metrics>,
) -> std::io::Result<()> {
    let pages = Router::new()
        .route(metrics_path, get(show_metrics))
        .route("/ready", get(show_readiness))
        .route("/healthz", get(show_health))
        .route("/volumes", get(show_volumes))
        .with_state(Pages { view, metrics });
    axum::serve(listener, pages).await
}

async fn show_metrics(State(pages): State<Pages>, headers: HeaderMap) -> Response {
    let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let format = Format::accepted(accepted.unwrap_or_default());
    match pages.metrics.scrape(&pages.view.borrow().status, format) {
        Ok(text) => ([(header::CONTENT_TYPE, format.content_type())], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn show_readiness(State(pages): State<Pages>) -> Response {
    match &pages.view.borrow().readiness {
        Ok(()) => "ready\n".into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for {missing}\n")).into_response(),
    }
}

async fn show_health(State(pages): State<Pages>) -> Response {
    let silent = pages.view.borrow().heartbeat.elapsed();
    if silent < HEARTBEAT_LIMIT {
        "ok\n".into_response()
    } else {
        let text = format!("the controller has not come round for {} s\n", silent.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn show_volumes(State(pages): State<Pages>) -> Response {
    Json(pages.view.borrow().status.lines().collect::<Vec<_>>()).into_response()
}
