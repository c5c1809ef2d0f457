//! The vocabulary: newtypes and plain values that every other module speaks. No logic beyond
//! parsing, printing and ordering; no input, output, clock or randomness.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

mod id;
mod key;
mod offloads;
mod placement;
mod queues;
mod renewal;
mod spec;
mod time;
mod unlock;

pub use id::{
    BootId, ClusterId, EndpointKey, Epoch, Fork, Generation, Id, IdError, NetworkId, NodeId, ServiceId, Spi, TaskId,
    Transform,
};
pub use key::{Key32, PublicKey, VerifyingKeyId, carried_key};
pub use offloads::{Offload, Offloads, UnknownOffload};
pub use placement::{Attribute, Constraint, ConstraintError, Machine, Placement, Resources, ServiceMode};
pub use queues::{Queues, QueuesError};
pub use renewal::{FailureAction, Renewal, RestartCondition, RestartPolicy, Restarts, UpdatePolicy};
pub use spec::{
    AttachRequest, Attachment, Availability, ClusterSpec, ContainerSpec, EpochPhase, NetworkName, NetworkSpec,
    NodeAddresses, Role, ServiceSpec, TaskAssignment, TaskState, TaskStatus, task_name, unmanaged_text,
};
pub use time::{Time, UnixTime};
pub use unlock::{NotAnUnlockKey, UnlockKey};
