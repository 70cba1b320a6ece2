//! A proxy between one agent and the API server that goes wrong on demand: it cuts
//! watches, says that they have expired, loses answers, or refuses everything. It has
//! a thread and a runtime of its own, so that a test may block.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use futures::StreamExt as _;
use tokio::sync::watch;

use super::cluster::client_from;
use super::node::TestNode;

/// What goes wrong from now on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many watch requests are answered 410 Gone.
    pub expired_watches: u32,
    /// So many POSTs are carried out, but their answers are lost.
    pub lost_creates: u32,
    /// So many patches are carried out, but their answers are lost.
    pub lost_patches: u32,
    /// So many POSTs are carried out, and never answered.
    pub hung_creates: u32,
    /// So many DELETEs are carried out, but their answers are lost.
    pub lost_deletes: u32,
    /// Patches wait for as long as this is set.
    pub hold_patches: bool,
    /// So many patches have come to wait.
    pub waiting_patches: u32,
    /// DELETEs wait for as long as this is set.
    pub hold_deletes: bool,
    /// So many DELETEs have come to wait.
    pub waiting_deletes: u32,
    /// So many patches are refused, as by an authorizer that has not read all roles yet.
    pub refused_patches: u32,
}

#[derive(Clone)]
struct Shared {
    upstream: kube::Client,
    faults: Arc<Mutex<Faults>>,
    cuts: watch::Receiver<u32>,
    watches: Arc<Mutex<u32>>,
}

/// A running proxy; it ends with the process.
pub struct Proxy {
    kubeconfig: PathBuf,
    faults: Arc<Mutex<Faults>>,
    cut: watch::Sender<u32>,
    watches: Arc<Mutex<u32>>,
}

impl Proxy {
    /// Starts a proxy that speaks to the API server with the account of the node's agent.
    pub fn start(node: &TestNode) -> Self {
        Self::start_as(node, node.kubeconfig())
    }

    /// Starts a proxy that speaks to the API server with the account of that kubeconfig.
    pub fn start_as(node: &TestNode, account: &Path) -> Self {
        let (cut, cuts) = watch::channel(0);
        let faults: Arc<Mutex<Faults>> = Arc::default();
        let watches: Arc<Mutex<u32>> = Arc::default();
        let (sender, receiver) = std::sync::mpsc::channel();
        let (account, shared_faults, count) = (account.to_owned(), Arc::clone(&faults), Arc::clone(&watches));
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be had").block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                sender.send(listener.local_addr().expect("it is bound").to_string()).expect("the test waits");
                let upstream = client_from(&account).await;
                let shared = Shared { upstream, faults: shared_faults, cuts, watches: count };
                let app = Router::new().fallback(forward).with_state(shared);
                axum::serve(listener, app).await.expect("the proxy serves");
            });
        });
        let address = receiver.recv().expect("the proxy starts");
        let kubeconfig = node.dir().join("proxy.kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"http://{address}\"}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n"
        );
        fs::write(&kubeconfig, text).expect("a kubeconfig can be written");
        Self { kubeconfig, faults, cut, watches }
    }

    /// Leads through the proxy.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Sets what goes wrong from now on.
    pub fn set(&self, faults: Faults) {
        *lock(&self.faults) = faults;
    }

    /// What is still to go wrong.
    pub fn faults(&self) -> Faults {
        lock(&self.faults).clone()
    }

    /// Breaks every watch that is open.
    pub fn cut_watches(&self) {
        self.cut.send_modify(|count| *count += 1);
    }

    /// How many watches were asked for so far.
    pub fn watches(&self) -> u32 {
        *lock(&self.watches)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(count: &mut u32) -> bool {
    let left = *count > 0;
    *count = count.saturating_sub(1);
    left
}

async fn forward(State(mut shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let is_watch = parts.uri.query().is_some_and(|query| query.contains("watch=true"));
    if is_watch {
        // A cut after it was counted is one of this watch, even if its answer comes later.
        let mut watches = lock(&shared.watches);
        shared.cuts.mark_unchanged();
        *watches += 1;
        drop(watches);
        if take(&mut lock(&shared.faults).expired_watches) {
            let status = serde_json::json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410,
                "message": "too old resource version",
            });
            return (StatusCode::GONE, Json(status)).into_response();
        }
    }
    if parts.method == Method::PATCH && lock(&shared.faults).hold_patches {
        lock(&shared.faults).waiting_patches += 1;
        while lock(&shared.faults).hold_patches {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    if parts.method == Method::DELETE && lock(&shared.faults).hold_deletes {
        lock(&shared.faults).waiting_deletes += 1;
        while lock(&shared.faults).hold_deletes {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    if parts.method == Method::PATCH && take(&mut lock(&shared.faults).refused_patches) {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": "persistentvolumes \"x\" is forbidden: User \"u\" cannot patch resource \"persistentvolumes\" \
                        in API group \"\" at the cluster scope",
        });
        return (StatusCode::FORBIDDEN, Json(status)).into_response();
    }
    // A question about rights makes nothing.
    let creates = parts.method == Method::POST && !parts.uri.path().ends_with("accessreviews");
    let hang = creates && take(&mut lock(&shared.faults).hung_creates);
    let lose = {
        let mut faults = lock(&shared.faults);
        match parts.method {
            Method::POST if creates => take(&mut faults.lost_creates),
            Method::PATCH => take(&mut faults.lost_patches),
            Method::DELETE => take(&mut faults.lost_deletes),
            _ => false,
        }
    };
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("the agent sends whole requests");
    let mut upstream =
        http::Request::builder().method(parts.method).uri(parts.uri.path_and_query().map_or("/", |p| p.as_str()));
    for name in [header::CONTENT_TYPE, header::ACCEPT] {
        if let Some(value) = parts.headers.get(&name) {
            upstream = upstream.header(name, value);
        }
    }
    let request = upstream.body(kube::client::Body::from(bytes)).expect("the request is valid");
    let answer = match shared.upstream.send(request).await {
        Ok(answer) => answer,
        Err(error) => return (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    };
    if hang {
        std::future::pending::<()>().await;
    }
    let (head, body) = answer.into_parts();
    let body = Body::new(body);
    let body = if lose {
        Body::from_stream(futures::stream::iter([Err::<&[u8], _>(std::io::Error::other("the answer is lost"))]))
    } else if is_watch {
        let mut cuts = shared.cuts;
        let cut = async move { cuts.changed().await.map_or((), drop) };
        let cut = futures::stream::once(cut).map(|()| Err(axum::Error::new(std::io::Error::other("the watch is cut"))));
        let both = futures::stream::select(
            body.into_data_stream().chain(futures::stream::once(async {
                Err(axum::Error::new(std::io::Error::other("the watch has ended")))
            })),
            cut,
        );
        Body::from_stream(both)
    } else {
        body
    };
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    }
    response
}
