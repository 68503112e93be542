//! Streams in memory: what is written is read, what is damaged is told, what is cut off goes on.

mod damage;
mod decoders;
mod forward;
mod golden;
mod resuming;
mod roundtrip;
mod world;
