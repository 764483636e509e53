//! Native half of `microsandbox_fs`.

pub mod broker;
pub mod confine;
pub mod device;
pub mod handles;
pub mod nodes;
pub mod owners;
pub mod quota;
pub mod serve;
pub mod share;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod tests;

#[cfg(feature = "python")]
mod python;
