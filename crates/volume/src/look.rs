//! Looking at members: all at once, as each may take its time.

use std::collections::BTreeMap;
use std::sync::Arc;

use gabion_base::disk::Disk;
use gabion_base::ids::Uuid;
use gabion_base::sync::{self, Queue};
use gabion_block::opening::{Findings, Found};
use gabion_block::record::Member;

use crate::assembly::Devices;
use crate::keeper::Keeper;
use crate::member::{self, Connector, Head, MemberError, Right};

/// What was found at the places of members.
#[derive(Default)]
pub(crate) struct Looked {
    pub(crate) findings: Findings,
    pub(crate) devices: Devices,
    /// Why some of them cannot be used.
    pub(crate) refusals: BTreeMap<Uuid, MemberError>,
}

impl Keeper {
    /// Connects to members, all at once, and reads their headers.
    pub(crate) fn look(&self, members: &[(Member, member::Patience)]) -> Looked {
        let answers = Arc::new(Queue::default());
        for (index, (member, patience)) in members.iter().enumerate() {
            let mut look = Look {
                connector: Arc::clone(&self.surroundings.connector),
                member: member.clone(),
                right: self.right(),
                patience: *patience,
                volume: self.register.record().uuid,
                index,
                answers: Some(Arc::clone(&answers)),
            };
            // Without a thread it is dropped, which is an answer, too.
            let _ = sync::spawn("volume look", move || {
                let looked = look.look();
                look.answer(looked);
            });
        }
        let mut all = Looked::default();
        for _ in members {
            let (index, looked) = answers.take();
            let member = &members[index].0;
            match looked {
                Ok((found, disk)) => {
                    all.findings.insert(member.uuid, found);
                    all.devices.insert(member.uuid, disk);
                }
                Err(error) => {
                    all.findings.insert(member.uuid, Found::Unreachable(error.to_string()));
                    all.refusals.insert(member.uuid, error);
                }
            }
        }
        all
    }
}

type LookedAt = Result<(Found, Arc<dyn Disk>), MemberError>;

/// A member that is looked at; there is one answer, whatever happens.
struct Look {
    connector: Arc<dyn Connector>,
    member: Member,
    right: Right,
    patience: member::Patience,
    volume: Uuid,
    index: usize,
    answers: Option<Arc<Queue<(usize, LookedAt)>>>,
}

impl Look {
    fn look(&self) -> LookedAt {
        let url = &self.member.url;
        let is_ours = |head: &Head| match head {
            Head::Header(header) => {
                header.volume == self.volume && header.member == self.member.uuid
            }
            Head::Blank | Head::Broken => true,
            Head::Other => false,
        };
        let (at, connector) = ((&**url, self.volume), &*self.connector);
        let taken = member::take(connector, at, &self.right, self.patience, is_ours);
        let (head, disk) = taken?;
        if disk.blocks() < self.member.blocks {
            return Err(MemberError::Unreachable(format!("{url} is smaller than it was")));
        }
        Ok((Found::from(head), disk))
    }

    fn answer(&mut self, looked: LookedAt) {
        if let Some(answers) = self.answers.take() {
            answers.put((self.index, looked));
        }
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.answer(Err(MemberError::Unreachable("connecting to it has failed".to_owned())));
    }
}
