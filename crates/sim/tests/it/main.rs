//! The judges are judged here: the model by Linux, the checker by filesystems that break promises.

mod canary;
mod cluster;
mod engine;
mod forest;
mod gabion;
mod host;
mod nested;
mod processor;
mod seeds;
mod toy;
mod volume;
