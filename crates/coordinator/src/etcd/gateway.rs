//! Questions to etcd over HTTP, each answered by one of several endpoints within a deadline.
//!
//! etcd's JSON follows protobuf's rules: bytes are base64, 64-bit numbers are strings, and what is
//! zero or empty is left out.
//!
//! Who has a name and a password gets a token for them, and says it with each question. Etcd
//! forgets tokens, after some minutes and when it is started: then there is another one.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gabion_base::sync::Mutex;
use serde_json::{Value, json};
use ureq::http::StatusCode;
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use super::address::{Address, Credentials};

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
    scheme: &'static str,
    credentials: Option<Credentials>,
    /// What etcd has given for them last.
    token: Mutex<Option<String>>,
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
    /// Etcd does not know the token, and has done nothing.
    Token,
}

impl Gateway {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let Address { name, endpoints, credentials, certificates } = Address::parse(text)?;
        // Never over a proxy: what the environment names is for the web.
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .https_only(certificates.is_some());
        let (config, scheme) = match &certificates {
            Some(folder) => (config.tls_config(encryption(folder)?), "https"),
            None => (config, "http"),
        };
        let agent = config.build().new_agent();
        let (first, token) = (AtomicUsize::new(0), Mutex::default());
        Ok(Self { name, endpoints, first, agent, scheme, credentials, token })
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
                let failed = match self.try_one(index, path, &body, share) {
                    Ok(value) => {
                        self.first.store(index, Ordering::Relaxed);
                        return Ok(Answer { value, is_repeated });
                    }
                    Err(failed) => failed,
                };
                is_repeated |= failed.kind == Kind::Unclear;
                reason = format!("{}: {}", self.endpoints[index], failed.reason);
                if matches!(failed.kind, Kind::Final | Kind::Token) {
                    return Err(reason);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            thread::sleep(PAUSE.min(left));
        }
    }

    /// Asks one endpoint; once more if the token was too old.
    fn try_one(
        &self,
        index: usize,
        path: &str,
        body: &str,
        patience: Duration,
    ) -> Result<Value, Failed> {
        let end = Instant::now() + patience;
        let left = || end.saturating_duration_since(Instant::now()).max(TRY_MIN);
        let Some(credentials) = &self.credentials else {
            return self.post(index, path, body, patience, None).and_then(read);
        };
        for attempt in 0..2 {
            let known = self.token.lock().clone();
            let token = match known {
                Some(token) => token,
                None => self.authenticate(index, credentials, left())?,
            };
            let answer = self.post(index, path, body, left(), Some(&token)).and_then(read);
            match answer {
                Err(Failed { kind: Kind::Token, .. }) if attempt == 0 => {
                    let mut known = self.token.lock();
                    if known.as_ref() == Some(&token) {
                        *known = None;
                    }
                }
                answer => return answer,
            }
        }
        unreachable!("the second attempt ends it")
    }

    fn authenticate(
        &self,
        index: usize,
        credentials: &Credentials,
        patience: Duration,
    ) -> Result<String, Failed> {
        let Credentials { user, password } = credentials;
        let body = json!({ "name": user, "password": password }).to_string();
        let path = "auth/authenticate";
        let answer = self.post(index, path, &body, patience, None).and_then(read);
        let unheard = |failed: Failed| match failed.kind {
            // Nothing has been asked yet.
            Kind::Unclear => Failed { kind: Kind::Unheard, ..failed },
            _ => failed,
        };
        let answer = answer.map_err(unheard)?;
        let Some(token) = answer["token"].as_str() else {
            return Err(Failed { reason: "no token came".to_owned(), kind: Kind::Final });
        };
        *self.token.lock() = Some(token.to_owned());
        Ok(token.to_owned())
    }

    /// Waits until `key` is changed by revision `from` or a later one, or `patience` is over.
    pub(super) fn watch(&self, key: &str, from: u64, patience: Duration) -> Result<(), String> {
        let create = json!({ "key": key, "start_revision": from.to_string() });
        let body = json!({ "create_request": create }).to_string();
        let index = self.first.load(Ordering::Relaxed);
        let token = self.token.lock().clone();
        let response = match self.post(index, "watch", &body, patience, token.as_deref()) {
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
        token: Option<&str>,
    ) -> Result<ureq::http::Response<Body>, Failed> {
        let url = format!("{}://{}/v3/{path}", self.scheme, self.endpoints[index]);
        let mut request = self.agent.post(url).config().timeout_global(Some(patience)).build();
        if let Some(token) = token {
            request = request.header("Authorization", token);
        }
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
    // The rights of users have changed since the token was given, or etcd was started since.
    let is_token = status == StatusCode::UNAUTHORIZED || reason.contains("auth: revision");
    // Etcd's other errors pass: no leader, too many requests, a deadline of its own.
    let is_final = [StatusCode::BAD_REQUEST, StatusCode::NOT_FOUND, StatusCode::FORBIDDEN];
    let kind = match status {
        _ if is_token => Kind::Token,
        status if is_final.contains(&status) => Kind::Final,
        _ => Kind::Unclear,
    };
    Err(Failed { reason, kind })
}

/// What encrypts, by the files in `folder`.
fn encryption(folder: &Path) -> Result<TlsConfig, String> {
    let unusable = |error: &dyn std::fmt::Display| format!("{}: {error}", folder.display());
    let certificates = |path: &Path| -> Result<Vec<Certificate<'static>>, String> {
        let found = gabion_tls::pem_certificates(path).map_err(|error| error.to_string())?;
        Ok(found.iter().map(|der| Certificate::from_der(der).to_owned()).collect())
    };
    let roots = certificates(&folder.join(gabion_tls::AUTHORITY))?;
    let certificate = folder.join(gabion_tls::CERTIFICATE);
    let own = match certificate.exists() {
        true => {
            let path = folder.join(gabion_tls::KEY);
            let key = std::fs::read(&path).map_err(|error| unusable(&error))?;
            let key = PrivateKey::from_pem(&key).map_err(|error| unusable(&error))?;
            Some(ClientCert::new_with_certs(&certificates(&certificate)?, key))
        }
        false => None,
    };
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .client_cert(own)
        .unversioned_rustls_crypto_provider(gabion_tls::provider())
        .build())
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
    fn etcd_writes_numbers_as_text_and_bytes_as_base64() {
        assert_eq!(number(&json!("12")), Some(12));
        assert_eq!(number(&json!(12)), Some(12));
        assert_eq!(number(&json!("-1")), None);
        assert_eq!(decoded(&json!(encoded("tänk"))).as_deref(), Some("tänk"));
        assert_eq!(decoded(&json!("/w==")), None);
        assert_eq!(decoded(&json!("?")), None);
    }
}
