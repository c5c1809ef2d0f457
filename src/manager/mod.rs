//! The managers' shell around `cluster`: storage, certificates, the control port, the loops that propose what
//! `cluster::schedule` and `cluster::ring` plan.

mod handle;

pub use handle::{Manager, ManagerError};
