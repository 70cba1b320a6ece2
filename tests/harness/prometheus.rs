//! A real Prometheus that scrapes agents, reads our rules and answers queries, on loopback.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;

use super::{eventually, http, launch};

const START: Duration = Duration::from_mins(1);

/// It is killed when this is dropped, or when the process dies.
pub struct Prometheus {
    child: Child,
    address: String,
}

impl Prometheus {
    /// Starts one with its data in the directory; it scrapes each target (label `node`, address)
    /// twice a second, and evaluates the rules every second.
    pub fn start(directory: &Path, rules: &Path, targets: &[(&str, &str)]) -> Self {
        let mut config = format!(
            "global: {{scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 1s}}\n\
             rule_files: ['{}']\nscrape_configs:\n- job_name: pods\n  static_configs:\n",
            rules.display()
        );
        for (node, address) in targets {
            config += &format!("  - {{targets: ['{address}'], labels: {{node: '{node}'}}}}\n");
        }
        let file = directory.join("prometheus.yaml");
        fs::write(&file, config).expect("a file can be written");
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "prometheus", "--web.listen-address=127.0.0.1:0"]);
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", directory.join("prometheus").display()));
        command.stdin(Stdio::null());
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let child = launch::spawn(command, Arc::clone(&lines));
        let mut prometheus = Self { child, address: String::new() };
        let listens = || {
            let lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
            let line = lines.iter().find(|line| line.contains("msg=\"Listening on\"")).cloned()?;
            line.split("address=").nth(1).map(|address| address.trim().to_owned())
        };
        eventually("Prometheus", START, || listens().is_some());
        prometheus.address = listens().expect("it has said so");
        eventually("Prometheus' readiness", START, || {
            http::get(&prometheus.address, "/-/ready").is_ok_and(|(status, _)| status == 200)
        });
        prometheus
    }

    /// The field `data` of an answer of its API, or what it says instead.
    pub fn api(&self, path: &str) -> Result<Value, String> {
        let (status, body) = http::get(&self.address, path).map_err(|error| error.to_string())?;
        let mut answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {status} {body}"))?;
        if status == 200 { Ok(answer["data"].take()) } else { Err(body) }
    }

    /// The series that an expression has now.
    pub fn query(&self, expression: &str) -> Result<Vec<Value>, String> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let mut data = self.api(&format!("/api/v1/query?query={escaped}"))?;
        match data["result"].take() {
            Value::Array(series) => Ok(series),
            other => Err(format!("{expression} is no list of series: {other}")),
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
