//! Questions to etcd over HTTP, each answered by one of several endpoints within a deadline.
//!
//! etcd's JSON follows protobuf's rules: bytes are base64, 64-bit numbers are strings, and what is
//! zero or empty is left out.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::{Agent, Body};

/// The port that etcd serves clients at, if none is given.
const PORT: u16 = 2379;
/// Endpoints of one cluster.
const ENDPOINTS_MAX: usize = 16;
/// The longest answer that is read, in bytes: a list of many thousand volumes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// The pause between two rounds.
const PAUSE: Duration = Duration::from_millis(100);
/// The least time that an endpoint is given.
const TRY_MIN: Duration = Duration::from_millis(10);

/// The endpoints of a cluster.
#[derive(Debug)]
pub(super) struct Gateway {
    /// How people know it.
    pub(super) name: String,
    endpoints: Vec<String>,
    /// The endpoint that has answered last.
    first: AtomicUsize,
    agent: Agent,
}

/// What etcd says.
pub(super) struct Answer {
    pub(super) value: Value,
    /// Whether the same question may have been heard before, by a try whose answer was lost.
    pub(super) is_repeated: bool,
}

/// Why a try failed.
struct Failed {
    reason: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nobody has heard the question.
    Unheard,
    /// Somebody may have heard it.
    Unclear,
    /// It makes no sense to etcd, whoever is asked.
    Final,
}

impl Gateway {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let endpoints = text.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("more than {ENDPOINTS_MAX} endpoints"));
        }
        // Never over a proxy: what the environment names is for the web.
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .build()
            .new_agent();
        let name = format!("etcd://{text}");
        Ok(Self { name, endpoints, first: AtomicUsize::new(0), agent })
    }

    /// Asks one endpoint after the other, in rounds, until one answers or `deadline` is over.
    pub(super) fn ask(
        &self,
        path: &str,
        request: &Value,
        deadline: Instant,
    ) -> Result<Answer, String> {
        let body = request.to_string();
        let mut is_repeated = false;
        let mut reason = "no time was left to ask".to_owned();
        let count = self.endpoints.len();
        loop {
            let first = self.first.load(Ordering::Relaxed);
            for step in 0..count {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(reason);
                }
                let index = (first + step) % count;
                // One that is silent leaves time for those after it.
                let share = (left / (count - step) as u32).max(TRY_MIN);
                let failed = match self.post(index, path, &body, share).and_then(read) {
                    Ok(value) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(Answer { value, is_repeated });
                    }
                    Err(failed) => failed,
                };
                is_repeated |= failed.kind == Kind::Unclear;
                reason = format!("{}: {}", self.endpoints[index], failed.reason);
                if failed.kind == Kind::Final {
                    return Err(reason);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            thread::sleep(PAUSE.min(left));
        }
    }

    /// Waits until `key` is changed by revision `from` or a later one, or `patience` is over.
    pub(super) fn watch(&self, key: &str, from: u64, patience: Duration) -> Result<(), String> {
        let create = json!({ "key": key, "start_revision": from.to_string() });
        let body = json!({ "create_request": create }).to_string();
        let index = self.first.load(Ordering::Relaxed);
        let response = match self.post(index, "watch", &body, patience) {
            Ok(response) => response,
            Err(failed) => return Err(failed.reason),
        };
        let mut lines = BufReader::new(response.into_body().into_reader().take(ANSWER_BYTES_MAX));
        loop {
            let mut line = String::new();
            match lines.read_line(&mut line) {
                Ok(0) => return Err("the watch has ended".to_owned()),
                Ok(_) => {}
                // The patience is over, or the connection; the caller looks for itself.
                Err(error) => return Err(error.to_string()),
            }
            let value: Value = serde_json::from_str(&line).map_err(|error| error.to_string())?;
            let result = &value["result"];
            if !result["events"].is_null() {
                return Ok(());
            }
            if result["canceled"] == true || !value["error"].is_null() {
                return Err(line);
            }
        }
    }

    fn post(
        &self,
        index: usize,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<ureq::http::Response<Body>, Failed> {
        let url = format!("http://{}/v3/{path}", self.endpoints[index]);
        let request = self.agent.post(url).config().timeout_global(Some(patience)).build();
        request.content_type("application/json").send(body).map_err(|error| {
            let refused =
                |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
            let kind = match &error {
                ureq::Error::Io(error) if refused(error) => Kind::Unheard,
                ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => Kind::Unheard,
                _ => Kind::Unclear,
            };
            Failed { reason: error.to_string(), kind }
        })
    }
}

/// Reads an answer to its end.
fn read(mut response: ureq::http::Response<Body>) -> Result<Value, Failed> {
    let unclear = |reason: String| Failed { reason, kind: Kind::Unclear };
    let bytes = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_vec();
    let bytes = bytes.map_err(|error| unclear(error.to_string()))?;
    let value = serde_json::from_slice::<Value>(&bytes);
    let status = response.status();
    if status == StatusCode::OK {
        return value.map_err(|error| unclear(format!("this is not etcd: {error}")));
    }
    let said = value.ok().and_then(|value| value["error"].as_str().map(str::to_owned));
    let reason = format!("{status}: {}", said.unwrap_or_default());
    // Etcd's other errors pass: no leader, too many requests, a deadline of its own.
    let is_final = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::UNAUTHORIZED];
    let kind = if is_final.contains(&status) { Kind::Final } else { Kind::Unclear };
    Err(Failed { reason, kind })
}

/// `HOST:PORT` from a text whose port may be missing.
fn endpoint(text: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is not HOST:PORT");
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    if !text.bytes().all(allowed) {
        return Err(wrong());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (text, PORT),
    };
    let is_bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    if host.is_empty() || (host.contains([':', '[', ']']) && !is_bracketed) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

/// Text as etcd's JSON has bytes.
pub(super) fn encoded(text: &str) -> String {
    STANDARD.encode(text)
}

/// Text out of etcd's JSON.
pub(super) fn decoded(value: &Value) -> Option<String> {
    String::from_utf8(STANDARD.decode(value.as_str()?).ok()?).ok()
}

/// A number out of etcd's JSON.
pub(super) fn number(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_have_a_host_and_may_have_a_port() {
        for (text, wanted) in [
            ("a", "a:2379"),
            ("a.example:1", "a.example:1"),
            ("[::1]", "[::1]:2379"),
            ("[::1]:7", "[::1]:7"),
            ("127.0.0.1:65535", "127.0.0.1:65535"),
        ] {
            assert_eq!(endpoint(text).as_deref(), Ok(wanted));
        }
        for wrong in ["", ":1", "a:", "a:65536", "::1", "a/b", "me@a", "a b", "[]:1", "[::1"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn etcd_writes_numbers_as_text_and_bytes_as_base64() {
        assert_eq!(number(&json!("12")), Some(12));
        assert_eq!(number(&json!(12)), Some(12));
        assert_eq!(number(&json!("-1")), None);
        assert_eq!(decoded(&json!(encoded("tänk"))).as_deref(), Some("tänk"));
        assert_eq!(decoded(&json!("/w==")), None);
        assert_eq!(decoded(&json!("?")), None);
    }
}
