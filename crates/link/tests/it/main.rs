//! The machines of the link, driven by histories, and what both sides say, as bytes.

mod decoders;
mod golden;
mod samples;
mod table;
mod wire;
