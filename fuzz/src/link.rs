//! What clients and servers of files say to each other.

use gabion_base::codec::DecodeError;

use gabion_link::join::{Admission, Application};
use gabion_link::message::{Hello, Refusal, RefusalReason, ToClient, ToServer, Welcome};
use gabion_link::wire::{Header, WireError};

use super::inputs::Target;
use super::samples;

/// What an input is taken for: its first byte.
const HEADER: u8 = 0;
const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSAL: u8 = 3;
const TO_SERVER: u8 = 4;
const TO_CLIENT: u8 = 5;
const APPLICATION: u8 = 6;
const ADMISSION: u8 = 7;

/// All targets of the link.
pub fn targets() -> Vec<Target> {
    let mut samples = Vec::new();
    let mut add = |kind: u8, bytes: &[u8]| samples.push([&[kind], bytes].concat());
    samples::headers().iter().for_each(|value| add(HEADER, &value.encode()));
    samples::hellos().iter().for_each(|value| add(HELLO, &value.encode()));
    samples::welcomes().iter().for_each(|value| add(WELCOME, &value.encode()));
    samples::refusals().iter().for_each(|value| add(REFUSAL, &value.encode()));
    samples::to_server().iter().for_each(|value| add(TO_SERVER, &value.encode()));
    samples::to_client().iter().for_each(|value| add(TO_CLIENT, &value.encode()));
    samples::applications().iter().for_each(|value| add(APPLICATION, &value.encode()));
    samples::admissions().iter().for_each(|value| add(ADMISSION, &value.encode()));
    vec![Target { name: "link", run: link, samples }]
}

/// A header, or a payload of any kind. What is understood is said in the same bytes.
pub fn link(bytes: &[u8]) -> Result<(), DecodeError> {
    let (kind, bytes) = bytes.split_first().ok_or(DecodeError::Short)?;
    let again = match *kind {
        HEADER => {
            let header = bytes.try_into().map_err(|_| DecodeError::Short)?;
            Header::decode(header).map_err(reason)?.encode().to_vec()
        }
        HELLO => Hello::decode(bytes).map_err(reason)?.encode(),
        WELCOME => Welcome::decode(bytes).map_err(reason)?.encode(),
        REFUSAL => {
            let refusal = Refusal::decode(bytes)?;
            if refusal.reason == RefusalReason::Other {
                // The reasons of later versions have lost their numbers.
                return Ok(());
            }
            refusal.encode()
        }
        TO_SERVER => ToServer::decode(bytes)?.encode(),
        TO_CLIENT => ToClient::decode(bytes)?.encode(),
        APPLICATION => Application::decode(bytes).map_err(reason)?.encode(),
        ADMISSION => Admission::decode(bytes).map_err(reason)?.encode(),
        _ => return Err(DecodeError::Invalid("the kind of an input")),
    };
    assert_eq!(again, bytes);
    Ok(())
}

fn reason(error: WireError) -> DecodeError {
    match error {
        WireError::Decode(error) => error,
        _ => DecodeError::Invalid("a frame, a hello or a welcome"),
    }
}
