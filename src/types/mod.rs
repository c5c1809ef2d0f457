//! The vocabulary: newtypes and plain values that every other module speaks. No logic beyond
//! parsing, printing and ordering; no input, output, clock or randomness.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod id;
mod key;
mod spec;
mod time;

pub use id::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Id, IdError, NetworkId, NodeId, ServiceId, Spi, TaskId,
    Transform,
};
pub use key::{Key32, PublicKey, VerifyingKeyId, carried_key};
pub use spec::{
    Attachment, Availability, ClusterSpec, ContainerSpec, EpochPhase, HostResources, NetworkSpec, NodeAddresses, Role,
    ServiceSpec, TaskAssignment, TaskState, TaskStatus,
};
pub use time::{Time, UnixTime};
