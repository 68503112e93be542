//! Which machines may share a filesystem, and how they know each other.
//!
//! ```text
//!   serving machine                                    machine that joins
//!   authority, made at first use                       invitation: addresses, the authority's
//!     '- invite --> invitation  --- by hand -------->    fingerprint, a secret, its end
//!   membership: the secret's digest  <-- Application --  applicant: a key of its own
//!     '- certificate, entered   ----- Admission ---->  identity: key, certificate, authority
//! ```
//!
//! - [`membership`]: who belongs to a filesystem, where it is served.
//! - [`invitation`]: the line that a machine is invited with.
//! - [`identity`]: what a machine has joined, and what it shows there.
//! - `lists`: where it is kept who that is.
//! - [`files`]: private files that are there whole or not at all.
//!
//! Each filesystem has an authority of its own: who was invited to one may mount that one only.
//! With certificates of other authorities (`--tls-ca`) whoever has one may mount, and nothing is
//! kept here.
//!
//! Absent: connections, which are `link`'s; certificates themselves, which are `gabion_tls`'s.

pub mod files;
pub mod identity;
pub mod invitation;
mod lists;
pub mod membership;

use gabion_tls::authority::Holder;
use gabion_tls::mutual::Acceptor;

use self::membership::Membership;

/// How a server knows its clients.
pub enum Trust {
    /// By certificates of its own authority.
    Members(Box<Membership>),
    /// By certificates of somebody else's.
    Others(Acceptor),
}

impl Trust {
    /// What it encrypts with; nothing as long as there is no authority.
    pub fn acceptor(&self) -> Option<Acceptor> {
        match self {
            Self::Members(membership) => membership.acceptor(),
            Self::Others(acceptor) => Some(acceptor.clone()),
        }
    }

    /// Whether a certificate that is valid gets its holder in.
    pub fn admits(&self, holder: &Holder) -> bool {
        match self {
            Self::Members(membership) => membership.has(&holder.serial),
            Self::Others(_) => true,
        }
    }
}
