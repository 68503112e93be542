//! What a server says to a client, and what it had better not say.

use std::sync::Arc;

use gabion_link::message::ToClient;
use gabion_link::wire::is_failure;
use gabion_node::served;
use gabion_volume::tenure::Tenure;

use super::load::Load;
use super::pipe::Pipe;

/// Where a session's messages go.
pub(super) struct Outbox {
    pub(super) pipe: Arc<Pipe>,
    pub(super) load: Arc<Load>,
    /// Whether nobody else has taken the filesystem; nothing if nobody can.
    pub(super) tenure: Option<Arc<Tenure>>,
}

impl Outbox {
    /// Whether a message is better not sent: somebody else has the filesystem, or may have it and
    /// be the reason for a failure. The client asks that one again, or gives up at its deadline.
    fn withholds(&self, message: &ToClient) -> bool {
        let Some(tenure) = &self.tenure else { return false };
        let is_failure = match message {
            ToClient::Answer { result: Err(error), .. } | ToClient::Failed { error, .. } => {
                is_failure(error)
            }
            _ => false,
        };
        tenure.is_over() || is_failure && !tenure.explains_failures()
    }
}

impl served::Peer for Outbox {
    fn send(&self, message: ToClient) {
        if self.withholds(&message) {
            return;
        }
        match &message {
            ToClient::Answer { id, .. } => self.load.answered(*id),
            ToClient::Applied { number, .. } => self.load.applied(*number),
            _ => {}
        }
        self.pipe.send(message.encode());
    }

    fn sent(&self) -> u64 {
        self.pipe.sent()
    }

    fn arrived(&self) -> u64 {
        self.pipe.arrived()
    }

    fn cut(&self) {
        self.pipe.close();
    }
}
