//! What a client may do with the export that it names, before it is let in.
//!
//! ```text
//!   name without parameters      name with a claim
//!   raw: as it is offered        raw: refused
//!   medium without epoch:        medium, epoch is the highest and nobody else's: may write
//!     as it is offered           medium, otherwise: refused
//!   medium with epoch: may read
//! ```

use std::sync::Arc;

use gabion_base::event::TargetEvent;

use super::export::{Export, Exports, Permission};
use crate::medium::{ClaimError, Grant, Medium};
use crate::wire::name::{self, Claim};
use crate::wire::option::reply;

/// A client's way into an export.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) export: Arc<Export>,
    pub(super) permission: Permission,
    /// What its writes are worth.
    pub(super) grant: Grant,
}

/// Whether an export is only to be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Intent {
    Look,
    Use,
}

/// Why a client is not let in, as a reply to an option.
pub(super) struct NoEntry {
    pub(super) reply: u32,
    pub(super) reason: String,
}

fn refused<T>(reply: u32, reason: impl Into<String>) -> Result<T, NoEntry> {
    Err(NoEntry { reply, reason: reason.into() })
}

/// Finds the export of a name and what the client may do with it. To use a medium by an epoch that
/// is new to it takes two writes to its disk, and waits for those of others.
pub(super) fn enter(
    exports: &Exports,
    text: &str,
    intent: Intent,
    client: &str,
) -> Result<Entry, NoEntry> {
    let (name, parameters) = name::split(text);
    let Some(export) = exports.find(name) else {
        return refused(reply::ERR_UNKNOWN, "there is no such export");
    };
    let claim = match parameters.map(Claim::decode).transpose() {
        Ok(claim) => claim,
        Err(reason) => return refused(reply::ERR_INVALID, reason),
    };
    export.remeasure();
    let entry = Entry {
        export: Arc::clone(export),
        permission: export.permission,
        grant: Grant::default(),
    };
    match (&export.medium, claim) {
        (None, None) => Ok(entry),
        (None, Some(_)) => {
            refused(reply::ERR_POLICY, "the export has no header that could keep an epoch")
        }
        (Some(medium), None) => match medium.epoch() {
            (0, _) => Ok(entry),
            _ => Ok(Entry { permission: Permission::ReadOnly, ..entry }),
        },
        (Some(_), Some(_)) if export.permission == Permission::ReadOnly => {
            refused(reply::ERR_POLICY, "the export is read-only, nobody can take an epoch")
        }
        (Some(medium), Some(claim)) => match grant(export, medium, &claim, intent) {
            Ok(grant) => Ok(Entry { grant, ..entry }),
            Err(error @ ClaimError::Fenced(_)) => {
                let (epoch, newest) = (claim.epoch, medium.epoch().0);
                if epoch < newest {
                    let client = client.to_owned();
                    export.tell(TargetEvent::ClientFenced { client, epoch, newest });
                }
                refused(reply::ERR_POLICY, error.to_string())
            }
            Err(ref error @ ClaimError::Disk(ref source)) => {
                export.tell_failure(source);
                refused(reply::ERR_PLATFORM, error.to_string())
            }
        },
    }
}

fn grant(
    export: &Export,
    medium: &Medium,
    claim: &Claim,
    intent: Intent,
) -> Result<Grant, ClaimError> {
    if intent == Intent::Look {
        return medium.check(claim).map(|()| Grant::default());
    }
    let (before, _) = medium.epoch();
    let granted = medium.claim(claim)?;
    if before < claim.epoch {
        let (epoch, holder) = (claim.epoch, claim.holder.clone());
        export.tell(TargetEvent::EpochTaken { epoch, holder, before });
    }
    Ok(granted)
}

impl Entry {
    /// The standard's words for people, which programs of ours read, too.
    pub(super) fn description(&self) -> Option<String> {
        let medium = self.export.medium.as_ref()?;
        let (epoch, holder) = medium.epoch();
        Some(name::Medium { uuid: medium.uuid(), epoch, holder }.to_string())
    }
}
