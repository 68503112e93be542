//! Page-aligned memory for messages, laid out so that one plain read leaves a WRITE's payload on a
//! page boundary without a copy.
//!
//! ```text
//!  0                    PAGE-80            PAGE                      PAGE + payload_max
//!  | unused             | header 40 | 40   | payload                 |
//!                       ^ read(2) starts   ^ fuse_in_header + fuse_write_in end here
//! ```
//!
//! Every other request is contiguous from the same start. A [`Slot`] is the one buffer of a reader
//! thread; a handler may take the payload of a WRITE out of it, and the thread then makes another.
//! Small payloads are copied instead: a megabyte of address space held for 4 KiB of bytes would let
//! a long write queue pin hundreds of times its own size.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::abi::{IN_HEADER_SIZE, WriteIn};

/// Alignment of payloads, in bytes.
pub const PAGE: usize = 4096;
/// The largest payload of one WRITE, in bytes: what the kernel sends with its default page limit.
pub const PAYLOAD_MAX: usize = 1 << 20;

const WRITE_HEAD: usize = IN_HEADER_SIZE + size_of::<WriteIn>();
const START: usize = PAGE - WRITE_HEAD;
/// Payloads up to this size are copied when taken (6 us at memcpy speed), larger ones move with
/// their buffer, so memory held is at most eight times the bytes held.
const COPY_MAX: usize = 128 << 10;

/// Page-aligned memory of which only the part that was written is ever shown.
struct Pages {
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: the memory is owned by this value alone and has no thread affinity.
unsafe impl Send for Pages {}
// SAFETY: shared access only ever reads.
unsafe impl Sync for Pages {}

impl Pages {
    fn new(size: usize) -> Self {
        let layout = Self::layout(size);
        // SAFETY: the layout has a size of at least one page.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }) else {
            handle_alloc_error(layout)
        };
        Self { start, size }
    }

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size.max(PAGE), PAGE).expect("sizes are bounded by PAYLOAD_MAX")
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout, and freed once.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.size)) }
    }
}

/// Memory of full messages that nobody uses now. New memory from the system has to be cleared page
/// by page, which costs more than a message's copy.
pub(crate) struct Spares {
    pages: Mutex<Vec<Pages>>,
    max: usize,
}

impl Spares {
    /// Keeps at most `max` pieces of memory, of 1 MiB each.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { pages: Mutex::default(), max })
    }

    fn message(self: &Arc<Self>) -> MessageBuffer {
        let pages = self.pages.lock().pop();
        let pages = pages.unwrap_or_else(|| Pages::new(PAGE + PAYLOAD_MAX));
        let memory = Memory { pages: Some(pages), home: Some(Arc::clone(self)) };
        MessageBuffer { memory, payload_max: PAYLOAD_MAX, length: 0 }
    }
}

/// Memory that goes back to where it came from.
struct Memory {
    /// Present until it is dropped.
    pages: Option<Pages>,
    home: Option<Arc<Spares>>,
}

impl Memory {
    fn new(size: usize) -> Self {
        Self { pages: Some(Pages::new(size)), home: None }
    }

    fn start(&self) -> *mut u8 {
        self.pages.as_ref().expect("present until it is dropped").start.as_ptr()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (Some(home), Some(pages)) = (&self.home, self.pages.take()) {
            let mut spares = home.pages.lock();
            if spares.len() < home.max {
                spares.push(pages);
            }
        }
    }
}

/// One message as read from the device.
pub(crate) struct MessageBuffer {
    memory: Memory,
    payload_max: usize,
    length: usize,
}

impl MessageBuffer {
    pub(crate) fn new(payload_max: usize) -> Self {
        Self { memory: Memory::new(PAGE + payload_max), payload_max, length: 0 }
    }

    /// Lets `read` fill the buffer: it is given where to write and how much room there is, and
    /// returns how many bytes it wrote.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(*mut u8, usize) -> Result<usize, E>,
    ) -> Result<(), E> {
        self.length = 0;
        let room = WRITE_HEAD + self.payload_max;
        // SAFETY: START lies inside the first page, which every allocation has.
        let length = read(unsafe { self.memory.start().add(START) }, room)?;
        assert!(length <= room, "the kernel wrote {length} bytes into {room}");
        self.length = length;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `fill` wrote `length` bytes from START on, within the allocation.
        unsafe { std::slice::from_raw_parts(self.memory.start().add(START), self.length) }
    }

    /// A copy that holds no more memory than the message needs.
    fn trimmed(&self) -> Self {
        let mut copy = Self::new(self.length.saturating_sub(WRITE_HEAD));
        let source = self.bytes();
        let filled: Result<(), std::convert::Infallible> = copy.fill(|target, room| {
            assert!(source.len() <= room, "{} bytes into {room}", source.len());
            // SAFETY: `target` has `room` bytes and belongs to another allocation than `source`.
            unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
            Ok(source.len())
        });
        let Ok(()) = filled;
        copy
    }
}

/// The buffer of a reader thread, absent after a handler took the payload with it.
#[derive(Default)]
pub(crate) struct Slot(Option<MessageBuffer>);

impl Slot {
    /// The buffer, another one if the last was taken.
    pub(crate) fn ready(&mut self, spares: &Arc<Spares>) -> &mut MessageBuffer {
        self.0.get_or_insert_with(|| spares.message())
    }

    /// The message last read; empty if it was taken.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], MessageBuffer::bytes)
    }

    /// Moves the message out, into memory of about its own size.
    pub(crate) fn take(&mut self) -> Slot {
        match self.0.take() {
            Some(buffer) if buffer.length <= WRITE_HEAD + COPY_MAX => {
                let copy = buffer.trimmed();
                self.0 = Some(buffer);
                Slot(Some(copy))
            }
            taken => Slot(taken),
        }
    }

    fn take_payload(&mut self) -> PayloadBuffer {
        match self.0.take() {
            Some(buffer) if buffer.length > WRITE_HEAD + COPY_MAX => {
                let length = buffer.length - WRITE_HEAD;
                PayloadBuffer { memory: buffer.memory, offset: PAGE, length }
            }
            kept => {
                self.0 = kept;
                PayloadBuffer::copy_of(payload(self.bytes()))
            }
        }
    }
}

fn payload(message: &[u8]) -> &[u8] {
    message.get(WRITE_HEAD..).unwrap_or_default()
}

/// The payload of one WRITE while the request is handled.
pub struct Payload<'a>(Source<'a>);

enum Source<'a> {
    Slice(&'a [u8]),
    Slot(&'a mut Slot),
}

impl<'a> Payload<'a> {
    pub(crate) fn from_message(message: &'a [u8]) -> Self {
        Self(Source::Slice(payload(message)))
    }

    pub(crate) fn from_slot(slot: &'a mut Slot) -> Self {
        Self(Source::Slot(slot))
    }

    /// Takes ownership of the bytes, on a page boundary. Above 128 KiB nothing is copied.
    pub fn take(self) -> PayloadBuffer {
        match self.0 {
            Source::Slice(bytes) => PayloadBuffer::copy_of(bytes),
            Source::Slot(slot) => slot.take_payload(),
        }
    }
}

impl Deref for Payload<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Source::Slice(bytes) => bytes,
            Source::Slot(slot) => payload(slot.bytes()),
        }
    }
}

impl std::fmt::Debug for Payload<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.len())
    }
}

/// Owned bytes that start on a page boundary.
pub struct PayloadBuffer {
    memory: Memory,
    offset: usize,
    length: usize,
}

impl PayloadBuffer {
    fn copy_of(bytes: &[u8]) -> Self {
        let memory = Memory::new(bytes.len());
        // SAFETY: the new allocation has at least `bytes.len()` bytes and is not `bytes`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory.start(), bytes.len());
        }
        Self { memory, offset: 0, length: bytes.len() }
    }
}

impl Deref for PayloadBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length` bytes from `offset` on were written before this value was made.
        unsafe { std::slice::from_raw_parts(self.memory.start().add(self.offset), self.length) }
    }
}

impl DerefMut for PayloadBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.start().add(self.offset), self.length) }
    }
}

impl AsRef<[u8]> for PayloadBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for PayloadBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PayloadBuffer({} bytes)", self.length)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn slot_with(payload: usize) -> Slot {
        let mut slot = Slot::default();
        let Ok(()) = slot.ready(&Spares::new(1)).fill(|target, room| {
            assert!(WRITE_HEAD + payload <= room);
            for index in 0..WRITE_HEAD + payload {
                // SAFETY: `target` has `room` bytes.
                unsafe { target.add(index).write(index as u8) };
            }
            Ok::<_, Infallible>(WRITE_HEAD + payload)
        });
        slot
    }

    #[test]
    fn taken_payload_is_aligned_and_unchanged_whether_it_moved_or_was_copied() {
        for size in [0, 1, COPY_MAX, COPY_MAX + 1, PAYLOAD_MAX] {
            let mut slot = slot_with(size);
            let expected = payload(slot.bytes()).to_vec();
            let before = payload(slot.bytes()).as_ptr();
            let taken = Payload::from_slot(&mut slot).take();
            assert_eq!(*taken, *expected);
            assert_eq!(taken.as_ptr() as usize % PAGE, 0);
            assert_eq!(taken.as_ptr() == before, size > COPY_MAX, "size {size}");
            assert_eq!(slot.0.is_none(), size > COPY_MAX, "size {size}");
        }
    }

    #[test]
    fn message_taken_out_of_a_slot_reads_the_same() {
        for size in [0, 5000, PAYLOAD_MAX] {
            let mut slot = slot_with(size);
            let expected = slot.bytes().to_vec();
            assert_eq!(slot.take().bytes(), expected);
        }
    }
}
