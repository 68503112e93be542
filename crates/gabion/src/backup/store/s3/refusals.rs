//! What object stores answer when they do not do what was asked, in sentences.

use object_store::Error;

use super::SCHEME;
use crate::failure::{Failure, chain};

/// Whether there is no such object, in a bucket that is there.
pub fn is_no_object(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. }) && code(&chain(error)) != Some("NoSuchBucket")
}

/// Why `what` did not work, and what can be done about it.
pub fn refused(bucket: &str, what: String, error: Error) -> Failure {
    let told = chain(&error);
    let (why, next) = match code(&told) {
        Some("NoSuchBucket") => (
            format!("there is no bucket {bucket}"),
            "Make it, or look at AWS_ENDPOINT_URL and AWS_REGION.".to_owned(),
        ),
        Some("InvalidAccessKeyId" | "NotSignedUp") => (
            "the store does not know the access key".to_owned(),
            "Look at AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL.".to_owned(),
        ),
        Some("SignatureDoesNotMatch") => (
            "the secret key does not fit to the access key".to_owned(),
            "Look at AWS_SECRET_ACCESS_KEY.".to_owned(),
        ),
        Some("ExpiredToken" | "InvalidToken") => (
            "the keys are valid no more".to_owned(),
            "Get new ones: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN.".to_owned(),
        ),
        Some("RequestTimeTooSkewed" | "RequestExpired") => (
            "this machine's clock is wrong, says the store".to_owned(),
            "Set it, as with chrony or systemd-timesyncd.".to_owned(),
        ),
        Some("AccessDenied" | "AllAccessDisabled") => (
            "the store refuses".to_owned(),
            format!("Let the key list, read, write and delete in {SCHEME}{bucket}."),
        ),
        Some(
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraint",
        ) => ("the bucket is in another region".to_owned(), "Set AWS_REGION.".to_owned()),
        Some("SlowDown" | "ServiceUnavailable" | "InternalError") => {
            (format!("the store was too busy each time it was asked: {told}"), again())
        }
        _ => match error {
            Error::AlreadyExists { .. } => (
                "somebody else has stored it, so another backup goes on with the same stream"
                    .to_owned(),
                "Wait until it is done, or stop it; then run this again.".to_owned(),
            ),
            Error::NotFound { .. } => ("it is not there any more".to_owned(), again()),
            _ if told.contains("configured region") => {
                ("the bucket is in another region".to_owned(), "Set AWS_REGION.".to_owned())
            }
            _ => (told, again()),
        },
    };
    Failure::new(format!("{what}: {why}")).next(next)
}

fn again() -> String {
    "Look at the network and at AWS_ENDPOINT_URL, and try again.".to_owned()
}

/// The code in what a store has answered.
fn code(told: &str) -> Option<&str> {
    let (_, rest) = told.split_once("<Code>")?;
    rest.split_once("</Code>").map(|(code, _)| code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: &str) -> String {
        let source = format!("status 403: <Error><Code>{code}</Code></Error>").into();
        let error = Error::PermissionDenied { path: "key".to_owned(), source };
        refused("shelf", "cannot read it".to_owned(), error).to_string()
    }

    #[test]
    fn what_stores_refuse_is_told_with_what_can_be_done() {
        for (code, parts) in [
            ("NoSuchBucket", ["no bucket shelf", "AWS_ENDPOINT_URL"]),
            ("InvalidAccessKeyId", ["does not know the access key", "AWS_ACCESS_KEY_ID"]),
            ("SignatureDoesNotMatch", ["secret key", "AWS_SECRET_ACCESS_KEY"]),
            ("ExpiredToken", ["valid no more", "AWS_SESSION_TOKEN"]),
            ("RequestTimeTooSkewed", ["clock is wrong", "Set it"]),
            ("AccessDenied", ["refuses", "s3://shelf"]),
            ("PermanentRedirect", ["another region", "AWS_REGION"]),
            ("SlowDown", ["too busy", "try again"]),
            ("Other", ["<Code>Other</Code>", "try again"]),
        ] {
            let told = failure(code);
            for part in ["cannot read it: ", parts[0], parts[1]] {
                assert!(told.contains(part), "{code}: {told}");
            }
        }
    }

    #[test]
    fn an_object_is_missing_only_in_a_bucket_that_is_there() {
        let missing = |text: &str| Error::NotFound { path: "key".into(), source: text.into() };
        assert!(is_no_object(&missing("<Code>NoSuchKey</Code>")));
        assert!(is_no_object(&missing("404")));
        assert!(!is_no_object(&missing("<Code>NoSuchBucket</Code>")));
    }
}
