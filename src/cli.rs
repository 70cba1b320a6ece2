//! The commands besides the agent.

pub mod check_config;
pub mod wipe;
