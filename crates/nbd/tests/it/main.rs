//! Server and client as others meet them: other people's programs, and peers that mean no good.

mod decoders;
mod epochs;
mod foreign;
mod hostile;
mod losses;
mod pipeline;
mod serving;
mod telling;
mod tls;
mod world;
