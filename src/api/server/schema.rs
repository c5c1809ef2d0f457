//! The shape of each request: which fields are implemented.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::allow::Shape::{self, Any, List, Object, True, Words};

const ONLY_DEFAULT: &str = "only the default is";

/// `POST /networks/create`.
pub(super) const NETWORK_CREATE: Shape = Object(&[
    ("Name", Any),
    ("CheckDuplicate", Any),
    ("Driver", Any),
    ("Scope", Words(&["swarm"], "an overlay network is known in the whole swarm")),
    ("EnableIPv4", True),
    (
        "IPAM",
        Object(&[("Driver", Words(&["default"], "there is no other than default")), ("Config", List(&IPAM_CONFIG))]),
    ),
    ("Options", Any),
    ("Labels", Any),
    ("Attachable", Any),
    ("Internal", Any),
]);

const IPAM_CONFIG: Shape = Object(&[("Subnet", Any), ("Gateway", Any), ("IPRange", Any), ("AuxiliaryAddresses", Any)]);

/// `POST /services/create` and `/services/{id}/update`.
pub(super) const SERVICE: Shape = Object(&[
    ("Name", Any),
    ("Labels", Any),
    ("TaskTemplate", TASK_TEMPLATE),
    ("Mode", Object(&[("Replicated", Object(&[("Replicas", Any)])), ("Global", Any)])),
    ("UpdateConfig", UPDATE_CONFIG),
    ("RollbackConfig", UPDATE_CONFIG),
    ("Networks", NETWORK_ATTACHMENTS),
    (
        "EndpointSpec",
        Object(&[("Mode", Words(&["vip"], "there are no names of services to answer with addresses yet"))]),
    ),
]);

const TASK_TEMPLATE: Shape = Object(&[
    ("ContainerSpec", CONTAINER),
    ("Resources", Object(&[("Reservations", Object(&[("NanoCPUs", Any), ("MemoryBytes", Any)]))])),
    ("Placement", PLACEMENT),
    ("RestartPolicy", RESTART_POLICY),
    ("Networks", NETWORK_ATTACHMENTS),
    ("ForceUpdate", Any),
    ("Runtime", Words(&["container"], "tasks are containers")),
]);

const PLACEMENT: Shape = Object(&[
    ("Constraints", Any),
    ("Preferences", List(&Object(&[("Spread", Object(&[("SpreadDescriptor", Any)]))]))),
    ("MaxReplicas", Any),
]);

const CONTAINER: Shape = Object(&[
    ("Image", Any),
    ("Command", Any),
    ("Args", Any),
    ("Env", Any),
    ("Dir", Any),
    ("Hostname", Any),
    ("Isolation", Words(&["default"], ONLY_DEFAULT)),
]);

const RESTART_POLICY: Shape = Object(&[("Condition", Any), ("Delay", Any), ("MaxAttempts", Any), ("Window", Any)]);

const UPDATE_CONFIG: Shape = Object(&[
    ("Parallelism", Any),
    ("Delay", Any),
    ("FailureAction", Any),
    ("Monitor", Any),
    ("MaxFailureRatio", Any),
    ("Order", Words(&["stop-first"], "a place has one task at a time: the old one stops first")),
]);

const NETWORK_ATTACHMENTS: Shape = List(&Object(&[("Target", Any)]));

/// `POST /swarm/init`.
pub(super) const SWARM_INIT: Shape = Object(&[
    ("ListenAddr", Any),
    ("AdvertiseAddr", Any),
    ("DataPathAddr", Any),
    ("DataPathPort", Any),
    ("DefaultAddrPool", Any),
    ("SubnetSize", Any),
    ("ForceNewCluster", Any),
    ("Availability", Any),
    ("AutoLockManagers", Any),
    ("Spec", SWARM_SPEC),
]);

const SWARM_SPEC: Shape = Object(&[
    ("Name", Words(&["default"], "a swarm is always named default")),
    ("Orchestration", Object(&[("TaskHistoryRetentionLimit", Any)])),
    ("Dispatcher", Object(&[("HeartbeatPeriod", Any)])),
    ("CAConfig", Object(&[("NodeCertExpiry", Any)])),
    ("EncryptionConfig", Object(&[("AutoLockManagers", Any)])),
    ("Formic", Object(&[("KeyRotationSeconds", Any), ("DisabledOffloads", Any)])),
]);

/// `POST /swarm/join`.
pub(super) const SWARM_JOIN: Shape = Object(&[
    ("ListenAddr", Any),
    ("AdvertiseAddr", Any),
    ("DataPathAddr", Any),
    ("RemoteAddrs", Any),
    ("JoinToken", Any),
    ("Availability", Any),
]);

/// `POST /swarm/unlock`.
pub(super) const SWARM_UNLOCK: Shape = Object(&[("UnlockKey", Any)]);

/// `POST /nodes/{id}/update`.
pub(super) const NODE: Shape = Object(&[("Labels", Any), ("Role", Any), ("Availability", Any)]);

/// `POST /containers/{id}/exec`. How to detach the client concerns only the client.
pub(super) const EXEC_CREATE: Shape = Object(&[
    ("AttachStdin", Any),
    ("AttachStdout", Any),
    ("AttachStderr", Any),
    ("Detach", Any),
    ("DetachKeys", Any),
    ("Env", Any),
    ("Cmd", Any),
]);

/// `POST /exec/{id}/start`.
pub(super) const EXEC_START: Shape = Object(&[("Detach", Any)]);

/// `POST /formic/attachments`.
pub(super) const ATTACH: Shape = Object(&[("netns", Any), ("network", Any), ("address", Any), ("aliases", Any)]);

/// `POST /formic/images/import`.
pub(super) const IMAGE_IMPORT: Shape = Object(&[("name", Any), ("directory", Any)]);

/// `POST /formic/debug/esp-keys`.
pub(super) const ESP_KEYS: Shape = Object(&[("network", Any), ("expose_keys", Any)]);
