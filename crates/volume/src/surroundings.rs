//! What a volume needs of the world around it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use gabion_base::event::Sink;
use gabion_block::coordinator::Coordinator;
use gabion_block::mirror::Options;

use crate::member::{Connector, Patience};

/// Where a volume is opened.
#[derive(Clone)]
pub struct Surroundings {
    /// Reaches the members.
    pub connector: Arc<dyn Connector>,
    /// Keeps the records.
    pub coordinator: Arc<dyn Coordinator>,
    /// Takes the events.
    pub sink: Arc<dyn Sink>,
    /// Who opens the volume, for people.
    pub holder: String,
    /// Makes random numbers.
    pub random: fn() -> u64,
    /// Of mirrors.
    pub options: Options,
}

/// How long copies of a mirror may take: others can go on without one of them.
pub(crate) const COPY_PATIENCE: Patience =
    Patience { deadline: Duration::from_secs(5), lost: Duration::from_millis(1000) };
/// How long a member without copies may take.
pub(crate) const ONLY_PATIENCE: Patience =
    Patience { deadline: Duration::from_secs(30), lost: Duration::from_secs(30) };

impl Surroundings {
    /// Sixteen random bytes.
    pub(crate) fn random_uuid(&self) -> gabion_base::ids::Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(self.random)().to_le_bytes());
        bytes[8..].copy_from_slice(&(self.random)().to_le_bytes());
        gabion_base::ids::Uuid::from_random(bytes)
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as i64)
}
