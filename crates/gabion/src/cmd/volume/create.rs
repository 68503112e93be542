//! `gabion volume create`.
//!
//! What the members have is looked at by `gabion_volume::create`, which makes nothing if anything
//! is there. Here are the words: which layout is meant, and what to do if it was refused.

use gabion_base::BLOCK_SIZE;
use gabion_block::coordinator::CoordinatorError;
use gabion_block::record::{CopyState, unfit_name};
use gabion_volume::create::{self, Content, CreateError};
use gabion_volume::layout::{self, Kind};

use super::layouts::parsed;
use super::occupied;
use crate::args::volumes::VolumeCreate;
use crate::failure::{Exit, Failure, Result};
use crate::print;
use crate::size::Size;
use crate::volumes;

pub(super) fn create(args: &VolumeCreate, given: Option<&str>) -> Result<()> {
    if let Some(reason) = unfit_name(&args.name) {
        return Err(Failure::new(format!("{} is no name for a volume: {reason}", args.name))
            .exit(Exit::Usage));
    }
    let (kind, parts) = match (&args.mirror[..], &args.linear[..], &args.stripe[..]) {
        (mirror, [], []) if !mirror.is_empty() => (Kind::Mirror, mirror),
        ([], linear, []) if !linear.is_empty() => (Kind::Linear, linear),
        ([], [], stripe) if !stripe.is_empty() => (Kind::Stripe, stripe),
        _ => {
            let text = "exactly one of --mirror, --linear and --stripe is needed";
            return Err(Failure::new(text).exit(Exit::Usage));
        }
    };
    let parts = parts.iter().map(|part| parsed(part)).collect::<Result<Vec<_>>>()?;
    let content = if args.equal { Content::Equal } else { Content::Unknown };
    let layout = layout::of_parts(kind, parts);
    let surroundings = volumes::surroundings(given, "gabion volume")?;
    let record = create::create(&args.name, layout, content, occupied(args.force), &surroundings)
        .map_err(|error| not_created("make", &args.name, &error))?;
    let blocks = record.layout.blocks().unwrap_or_default();
    let size = Size(blocks.saturating_mul(BLOCK_SIZE as u64));
    let name = &args.name;
    print::line(format!("{name}: made a volume of {size}, {}", record.uuid))?;
    if args.mirror.len() == 1 {
        print::line("It has one copy of everything only. To add another one: gabion volume add")?;
    }
    let mut copies = record.layout.mirrors().into_iter().flat_map(|(_, copies)| copies);
    if copies.any(|copy| copy.state != CopyState::InSync) {
        print::line("Its copies are made equal while it is in use. Until then it is degraded.")?;
    }
    print::line(format!("To use it: gabion mkfs {name} && gabion mount {name} MOUNTPOINT"))
}

/// Why members cannot be had, for which one was asked to `act`: "make", "add to".
pub(super) fn not_created(act: &str, name: &str, error: &CreateError) -> Failure {
    let failure = Failure::of(format!("cannot {act} volume {name}"), error);
    match error {
        CreateError::Occupied { .. } => {
            failure.next("If nobody needs that any more, say --force. It is destroyed then.")
        }
        CreateError::Coordinator(CoordinatorError::Conflict { .. }) => {
            Failure::new(format!("there is a volume {name} already"))
                .next(format!("To see it: gabion volume status {name}"))
        }
        _ => failure,
    }
}
