//! Native half of `microsandbox_net`.

pub mod address;
pub mod authority;
pub mod client;
pub mod policy;
pub mod stack;
pub mod wire;

#[cfg(feature = "python")]
mod python;
