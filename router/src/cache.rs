//! Stage 5: answers without the shard.
pub mod control;
pub mod entry;
pub mod key;
pub mod validity;
