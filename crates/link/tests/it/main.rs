//! The machines of the link, driven by histories.

mod table;
