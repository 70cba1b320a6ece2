//! The commands besides the agent.

pub mod plan;
pub mod wipe;
