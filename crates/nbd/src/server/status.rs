//! Answers to `BLOCK_STATUS`: extents of a disk, in blocks, as descriptors of what was asked, in
//! bytes.
//!
//! - The first descriptor begins where the request does, and the last one ends where it does at the
//!   latest. There may be less than what was asked for; clients ask on behind it.
//! - Descriptors side by side have different flags, unless the disk told too much in between.
//! - With the flag `REQ_ONE` there is one.
//!
//! Holes are zeros as well, so both flags come together. What is told may be different before it
//! is received, as with any answer; see [`Disk::extents`] for what is sure.

use gabion_base::BLOCK_SIZE;
use gabion_base::disk::{Content, Disk, DiskError, Extent};

use super::execute::span;
use crate::wire::command_flag;
use crate::wire::reply::Descriptor;
use crate::wire::request::Request;

/// Descriptors of one answer, of 8 bytes each. A disk may have to look for each of them.
const DESCRIPTORS_MAX: usize = 4096;

/// What is known of an admitted request's range: one descriptor at least.
pub(super) fn block_status(
    request: &Request,
    disk: &dyn Disk,
) -> Result<Vec<Descriptor>, DiskError> {
    let descriptors_max = match request.flags & command_flag::REQ_ONE {
        0 => DESCRIPTORS_MAX,
        _ => 1,
    };
    let (addr, count, _) = span(request);
    let extents = disk.extents(addr, count as u64, descriptors_max)?;
    Ok(descriptors(request, &extents, descriptors_max))
}

fn descriptors(request: &Request, extents: &[Extent], descriptors_max: usize) -> Vec<Descriptor> {
    let mut merged = Vec::new();
    for extent in extents {
        extent.append(&mut merged);
    }
    merged.truncate(descriptors_max);
    let (addr, _, _) = span(request);
    let end = request.offset + u64::from(request.length);
    let (mut from, mut block) = (request.offset, addr.0);
    let mut told = Vec::with_capacity(merged.len());
    for extent in merged {
        block += extent.count;
        let to = end.min(block * BLOCK_SIZE as u64);
        assert!(from < to, "an extent of {} blocks is behind {end}", extent.count);
        told.push(Descriptor {
            length: (to - from) as u32,
            is_hole: extent.content == Content::Hole,
        });
        from = to;
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::request::Command;

    fn told(offset: u64, length: u32, extents: &[(u64, Content)]) -> Vec<(u32, bool)> {
        let command = Command::BlockStatus.number();
        let request = Request { flags: 0, command, cookie: 1, offset, length };
        let extents: Vec<_> =
            extents.iter().map(|&(count, content)| Extent { count, content }).collect();
        let told = descriptors(&request, &extents, 3);
        told.iter().map(|descriptor| (descriptor.length, descriptor.is_hole)).collect()
    }

    #[test]
    fn descriptors_begin_and_end_where_the_request_does() {
        let extents = [(1, Content::Hole), (2, Content::Data), (1, Content::Hole)];
        assert_eq!(told(0, 16384, &extents), [(4096, true), (8192, false), (4096, true)]);
        let middle = told(4096 + 100, 4 * 4096 - 200, &extents);
        assert_eq!(middle, [(3996, true), (8192, false), (3996, true)]);
        assert_eq!(told(100, 1, &extents[1..2]), [(1, false)]);
        assert_eq!(told(0, 16384, &extents[..2]), [(4096, true), (8192, false)]);
    }

    #[test]
    fn extents_that_are_alike_are_one_descriptor_and_too_many_are_left_out() {
        let (data, hole) = (Content::Data, Content::Hole);
        let extents = [(1, data), (1, data), (1, hole), (2, hole), (1, data), (1, hole)];
        assert_eq!(told(0, 7 * 4096, &extents), [(8192, false), (12288, true), (4096, false)]);
    }
}
