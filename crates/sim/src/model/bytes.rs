//! Operations on the bytes of files.

use super::{Body, Effect, Model, Number};
use crate::op::{Allocation, Errno, Outcome, Target, Value, bytes};

/// What `fallocate` moves bytes by.
const BLOCK: u64 = 4096;

impl Model {
    pub(super) fn write(&mut self, file: &Target, offset: u64, length: u64, stamp: u64) -> Outcome {
        let number = self.opened(file)?;
        self.put(number, offset, &bytes(stamp, offset, length))?;
        Ok(Value::Count(length))
    }

    pub(super) fn read(&mut self, file: &Target, offset: u64, length: u64) -> Outcome {
        let content = self.content(self.opened(file)?)?;
        let from = content.len().min(offset as usize);
        let to = content.len().min((offset + length) as usize);
        Ok(Value::Bytes(content[from..to].to_vec()))
    }

    pub(super) fn set_size(&mut self, file: &Target, size: u64) -> Outcome {
        let number = self.followed(file)?;
        match &mut self.inode_mut(number).body {
            Body::Directory { .. } => return Err(Errno::EISDIR),
            Body::File(content) => content.resize(size as usize, 0),
            _ => return Err(Errno::EINVAL),
        }
        let effect = if size == 0 { Effect::Emptied(number) } else { Effect::Shape(number) };
        self.effects.push(effect);
        Ok(Value::Done)
    }

    pub(super) fn fallocate(
        &mut self,
        file: &Target,
        how: Allocation,
        offset: u64,
        length: u64,
    ) -> Outcome {
        let number = self.opened(file)?;
        let content = self.content(number)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let (size, end) = (content.len() as u64, offset + length);
        let zero = |content: &mut Vec<u8>| {
            let (from, to) = (offset.min(size) as usize, end.min(size) as usize);
            content[from..to].fill(0);
        };
        let effect = match how {
            Allocation::KeepSize => return Ok(Value::Done),
            Allocation::Extend => {
                content.resize(size.max(end) as usize, 0);
                Effect::Shape(number)
            }
            Allocation::Punch | Allocation::ZeroKeepSize => {
                zero(content);
                Effect::Bytes(number)
            }
            Allocation::Zero => {
                zero(content);
                content.resize(size.max(end) as usize, 0);
                Effect::Bytes(number)
            }
            Allocation::Collapse | Allocation::Insert if !whole_blocks(offset, length) => {
                return Err(Errno::EINVAL);
            }
            Allocation::Collapse if end >= size => return Err(Errno::EINVAL),
            Allocation::Collapse => {
                content.drain(offset as usize..end as usize);
                Effect::Shape(number)
            }
            Allocation::Insert if offset >= size => return Err(Errno::EINVAL),
            Allocation::Insert => {
                let hole = std::iter::repeat_n(0, length as usize);
                content.splice(offset as usize..offset as usize, hole);
                Effect::Shape(number)
            }
        };
        self.effects.push(effect);
        Ok(Value::Done)
    }

    pub(super) fn copy_range(
        &mut self,
        (from, from_offset): (&Target, u64),
        (to, to_offset): (&Target, u64),
        length: u64,
    ) -> Outcome {
        let (source, target) = (self.opened(from)?, self.opened(to)?);
        self.content(target)?;
        let size = self.content(source)?.len() as u64;
        let length = length.min(size.saturating_sub(from_offset));
        if source == target && to_offset + length > from_offset && to_offset < from_offset + length
        {
            return Err(Errno::EINVAL);
        }
        if length > 0 {
            let range = from_offset as usize..(from_offset + length) as usize;
            let copied = self.content(source)?[range].to_vec();
            self.put(target, to_offset, &copied)?;
        }
        Ok(Value::Count(length))
    }

    /// Takes all bytes away.
    pub(super) fn cut(&mut self, number: Number) {
        if let Body::File(content) = &mut self.inode_mut(number).body {
            content.clear();
            self.effects.push(Effect::Emptied(number));
        }
    }

    fn put(&mut self, number: Number, offset: u64, from: &[u8]) -> Result<(), Errno> {
        let content = self.content(number)?;
        if from.is_empty() {
            return Ok(());
        }
        let (start, end) = (offset as usize, offset as usize + from.len());
        content.resize(content.len().max(end), 0);
        content[start..end].copy_from_slice(from);
        self.effects.push(Effect::Bytes(number));
        Ok(())
    }

    fn content(&mut self, number: Number) -> Result<&mut Vec<u8>, Errno> {
        match &mut self.inode_mut(number).body {
            Body::File(content) => Ok(content),
            Body::Directory { .. } => Err(Errno::EISDIR),
            _ => Err(Errno::EINVAL),
        }
    }
}

fn whole_blocks(offset: u64, length: u64) -> bool {
    offset.is_multiple_of(BLOCK) && length.is_multiple_of(BLOCK)
}
