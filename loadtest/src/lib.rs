//! Honest load for Ringfence and other PostgREST-like services: traffic
//! scripts, latency from the moment a request was due, and checks for wrong
//! answers. In reading order.
//!
//! This crate speaks HTTP, and, for its final audit, SQL to the shards'
//! primaries. It knows nothing of Ringfence's crates.

pub mod admin;
pub mod answer;
pub mod calendar;
pub mod check;
pub mod client;
pub mod engine;
pub mod environment;
pub mod error;
pub mod exposition;
pub mod gate;
pub mod journal;
pub mod lists;
pub mod live;
pub mod pacer;
pub mod population;
pub mod record;
pub mod replay;
pub mod report;
pub mod run;
pub mod scenario;
pub mod script;
pub mod series;
pub mod template;
pub mod timer;
pub mod token;
pub mod watch;
