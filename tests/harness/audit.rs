//! The API server's audit log: who asked for what.

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

/// One finished request, as the API server recorded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    pub user: String,
    pub verb: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    pub code: i64,
    pub user_agent: String,
    /// When the API server got it.
    pub received: Timestamp,
}

/// The requests that a log records as finished. It may do so after their answers.
pub fn read(log: &Path) -> Vec<AuditEntry> {
    let text = fs::read(log).unwrap_or_default();
    // The last line may be half written.
    String::from_utf8_lossy(&text)
        .lines()
        .filter_map(|line| AuditEntry::parse(&serde_json::from_str(line).ok()?))
        .collect()
}

impl AuditEntry {
    /// A finished request out of one line of the log.
    fn parse(event: &Value) -> Option<Self> {
        let text = |pointer| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        (text("/stage") == "ResponseComplete").then(|| Self {
            user: text("/user/username"),
            verb: text("/verb"),
            resource: text("/objectRef/resource"),
            subresource: text("/objectRef/subresource"),
            name: text("/objectRef/name"),
            code: event.pointer("/responseStatus/code").and_then(Value::as_i64).unwrap_or_default(),
            user_agent: text("/userAgent"),
            received: text("/requestReceivedTimestamp").parse().unwrap_or_default(),
        })
    }
}
