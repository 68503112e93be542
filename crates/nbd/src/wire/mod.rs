//! The protocol's bytes: numbers, layouts, and what may be believed of them. All fields are
//! big-endian, as on every NBD wire.
//!
//! ```text
//!   handshake     S: magic, magic, flags            C: flags
//!   haggling      C: option { magic, kind, length, data }
//!                 S: reply  { magic, option, kind, length, data } ...
//!   transmission  C: request { magic, flags, command, cookie, offset, length, data? }
//!                 S: simple reply { magic, error, cookie, data? }
//!                  | chunk { magic, flags, kind, cookie, length, payload } ...
//! ```
//!
//! Decoders give a value or a reason. No length is believed before it was compared with a limit
//! that has a name here, and nothing here allocates by a length.

pub mod error;
pub mod fields;
pub mod name;
pub mod option;
pub mod reply;
pub mod request;

/// Head of the server's greeting, "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second part of the greeting and head of every option, "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Head of every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Head of every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Head of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Head of a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The port that belongs to the protocol.
pub const PORT: u16 = 10809;

/// The longest string of the protocol, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
/// The longest data of an option that is looked at. Longer ones are read, dropped and refused.
/// Room for a name and a dozen of the longest queries.
pub const OPTION_BYTES_MAX: u32 = 64 << 10;
/// An option that claims more than this is an attack, and ends the connection.
pub const OPTION_SKIP_BYTES_MAX: u32 = 32 << 20;
/// Options in one handshake; clients send about five.
pub const OPTIONS_MAX: usize = 1024;
/// Bytes of data in one request or reply: what every implementation is prepared for.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;
/// A write that claims more than this is an attack, and ends the connection. Between the two
/// limits, the data is read, dropped and refused.
pub const PAYLOAD_SKIP_BYTES_MAX: u32 = 64 << 20;
/// The unit that is served without reading more than was asked for.
pub const PREFERRED_BYTES: u32 = 4096;
/// Zeros that end the answer to the option `EXPORT_NAME`, for old clients.
pub const EXPORT_NAME_PADDING: usize = 124;

/// Flags of the handshake; the server's and the client's have the same bits.
pub mod handshake_flag {
    /// Options are answered.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No zeros at the end of the answer to `EXPORT_NAME`.
    pub const NO_ZEROES: u16 = 2;
}

/// What an export can do.
pub mod export_flag {
    /// The field has a meaning.
    pub const HAS_FLAGS: u16 = 1;
    /// Writing is refused.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` is understood.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The flag `FUA` is understood.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` is understood.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` is understood.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The flag `DF` is understood.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers what was completed on all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` is understood.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The flag `FAST_ZERO` is understood.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Flags of a request.
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1;
    /// Zeros that take their space.
    pub const NO_HOLE: u16 = 1 << 1;
    /// The answer to a read in one piece.
    pub const DF: u16 = 1 << 2;
    /// The status of one extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zeros only if that is faster than writing them.
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// The one metadata context of the standard.
pub const BASE_ALLOCATION: &str = "base:allocation";
