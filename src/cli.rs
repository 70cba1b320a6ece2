//! The commands besides the agent.

pub mod wipe;
