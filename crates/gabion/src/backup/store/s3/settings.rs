//! Where the store is and who we are, as for other programs: `AWS_ACCESS_KEY_ID`,
//! `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`,
//! `AWS_MAX_ATTEMPTS`, and what machines and containers of Amazon's are told by it.

use std::env;
use std::fs;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::SCHEME;
use crate::failure::{Exit, Failure, Result};

/// How often a request is sent at most, if it is not said.
const ATTEMPTS: usize = 10;
/// How long it is tried.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// How long one attempt may take: the longest part needs 110 KiB/s.
const ATTEMPT_PATIENCE: Duration = Duration::from_secs(300);
/// How long an answer may stop in the middle.
const SILENCE: Duration = Duration::from_secs(60);
/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// The first pause before a request is sent again, and the longest.
pub const PAUSE: Duration = Duration::from_millis(100);
pub const PAUSE_MAX: Duration = Duration::from_secs(15);

/// A bucket with the settings of the environment, and what tells its store from others.
pub fn open(bucket: &str, attempts: usize) -> Result<(AmazonS3, String)> {
    let mut builder = AmazonS3Builder::from_env();
    let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
        .iter()
        .find_map(|key| builder.get_config_value(key));
    if builder.get_config_value(&AmazonS3ConfigKey::AccessKeyId).is_none() && !is_given_keys() {
        return Err(Failure::new(format!("there are no keys for {SCHEME}{bucket}"))
            .next("Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."));
    }
    let is_plain = endpoint.as_ref().is_some_and(|url| url.starts_with("http://"));
    let options = ClientOptions::new()
        .with_allow_http(is_plain)
        .with_timeout(ATTEMPT_PATIENCE)
        .with_read_timeout(SILENCE)
        .with_connect_timeout(CONNECT_PATIENCE);
    let retry = RetryConfig {
        max_retries: attempts - 1,
        retry_timeout: PATIENCE,
        backoff: BackoffConfig { init_backoff: PAUSE, max_backoff: PAUSE_MAX, base: 2.0 },
    };
    builder = builder.with_bucket_name(bucket).with_client_options(options).with_retry(retry);
    let built = builder.build();
    let store =
        built.map_err(|error| Failure::of(format!("cannot use {SCHEME}{bucket}"), &error))?;
    Ok((store, endpoint.unwrap_or_default()))
}

/// How often a request is sent at most.
pub fn attempts() -> Result<usize> {
    let Some(value) = env::var_os("AWS_MAX_ATTEMPTS") else { return Ok(ATTEMPTS) };
    let number = value.to_str().and_then(|text| text.parse().ok()).filter(|number| *number > 0);
    number
        .ok_or_else(|| Failure::new("AWS_MAX_ATTEMPTS is no number of attempts").exit(Exit::Usage))
}

/// Whether whoever started us gives keys on request. Where nobody does, asking takes minutes.
fn is_given_keys() -> bool {
    const GIVERS: [&str; 3] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let says = |file: &str, text: &str| {
        fs::read_to_string(format!("/sys/class/dmi/id/{file}"))
            .is_ok_and(|found| found.starts_with(text))
    };
    let is_skipped = env::var_os("AWS_SKIP_SIGNATURE").is_some();
    GIVERS.iter().any(|name| env::var_os(name).is_some())
        || env::var_os("AWS_METADATA_ENDPOINT").is_some()
        || says("sys_vendor", "Amazon EC2")
        || is_skipped
}
