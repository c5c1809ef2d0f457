//! Docker's own structures, with Docker's field names: the Engine API reference says what they mean.
#![expect(missing_docs, reason = "each field is the one of the Docker Engine API reference with its name")]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

macro_rules! docker_type {
    ($($(#[$attribute:meta])* struct $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty),* $(,)? })+) => {$(
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        $(#[$attribute])*
        pub struct $name { $($(#[$field_attribute])* pub $field: $type),* }
    )+};
}

type Map = BTreeMap<String, String>;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

docker_type! {
    struct IdUpper { #[serde(rename = "ID")] id: String }
    struct ObjectVersion { index: u64 }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ErrorMessage {
    pub message: String,
}

// Networks.
docker_type! {
    struct NetworkCreate {
        name: String,
        driver: String,
        scope: String,
        #[serde(rename = "IPAM")] ipam: Ipam,
        options: Map,
        labels: Map,
        attachable: bool,
        internal: bool,
    }
    struct NetworkCreated { id: String, warning: String }
    struct Ipam {
        driver: String,
        options: Option<Map>,
        config: Vec<IpamConfig>,
    }
    struct IpamConfig {
        subnet: String,
        gateway: String,
        #[serde(rename = "IPRange", skip_serializing_if = "String::is_empty")] ip_range: String,
        #[serde(skip_serializing_if = "Map::is_empty")] auxiliary_addresses: Map,
    }
    struct NetworkResource {
        name: String,
        id: String,
        created: String,
        scope: String,
        driver: String,
        #[serde(rename = "EnableIPv4")] enable_ipv4: bool,
        #[serde(rename = "EnableIPv6")] enable_ipv6: bool,
        #[serde(rename = "IPAM")] ipam: Ipam,
        internal: bool,
        attachable: bool,
        ingress: bool,
        config_from: NetworkReference,
        config_only: bool,
        containers: BTreeMap<String, NetworkContainer>,
        options: Map,
        labels: Map,
    }
    struct NetworkReference { network: String }
    struct NetworkContainer {
        name: String,
        #[serde(rename = "EndpointID")] endpoint_id: String,
        mac_address: String,
        #[serde(rename = "IPv4Address")] ipv4_address: String,
        #[serde(rename = "IPv6Address")] ipv6_address: String,
    }
    struct NetworkConnect { container: String }
}

// Services and tasks.
docker_type! {
    struct ServiceSpec {
        name: String,
        #[serde(skip_serializing_if = "Map::is_empty")] labels: Map,
        task_template: TaskSpec,
        mode: ServiceMode,
        #[serde(skip_serializing_if = "Option::is_none")] update_config: Option<UpdateConfig>,
        #[serde(skip_serializing_if = "Option::is_none")] rollback_config: Option<UpdateConfig>,
        endpoint_spec: EndpointSpec,
        #[serde(skip_serializing_if = "Vec::is_empty")] networks: Vec<NetworkAttachmentConfig>,
    }
    struct TaskSpec {
        container_spec: ContainerSpec,
        #[serde(skip_serializing_if = "is_default")] resources: ResourceRequirements,
        #[serde(skip_serializing_if = "Option::is_none")] restart_policy: Option<RestartPolicy>,
        #[serde(skip_serializing_if = "is_default")] placement: Placement,
        #[serde(skip_serializing_if = "Vec::is_empty")] networks: Vec<NetworkAttachmentConfig>,
        force_update: u64,
        #[serde(skip_serializing_if = "String::is_empty")] runtime: String,
    }
    /// Times in nanoseconds.
    struct RestartPolicy {
        #[serde(skip_serializing_if = "String::is_empty")] condition: String,
        #[serde(skip_serializing_if = "Option::is_none")] delay: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] max_attempts: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")] window: Option<u64>,
    }
    /// Times in nanoseconds.
    struct UpdateConfig {
        parallelism: u64,
        #[serde(skip_serializing_if = "is_default")] delay: u64,
        #[serde(skip_serializing_if = "String::is_empty")] failure_action: String,
        #[serde(skip_serializing_if = "is_default")] monitor: u64,
        max_failure_ratio: f64,
        #[serde(skip_serializing_if = "String::is_empty")] order: String,
    }
    struct ContainerSpec {
        image: String,
        #[serde(skip_serializing_if = "Vec::is_empty")] command: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] args: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] env: Vec<String>,
        #[serde(skip_serializing_if = "String::is_empty")] dir: String,
        #[serde(skip_serializing_if = "String::is_empty")] hostname: String,
    }
    struct ResourceRequirements { #[serde(skip_serializing_if = "is_default")] reservations: Resources }
    struct Placement {
        #[serde(skip_serializing_if = "Vec::is_empty")] constraints: Vec<String>,
        #[serde(skip_serializing_if = "Vec::is_empty")] preferences: Vec<PlacementPreference>,
        #[serde(skip_serializing_if = "is_default")] max_replicas: u64,
    }
    struct PlacementPreference { spread: SpreadOver }
    struct SpreadOver { spread_descriptor: String }
    struct NetworkAttachmentConfig {
        target: String,
        #[serde(skip_serializing_if = "Vec::is_empty")] aliases: Vec<String>,
    }
    struct ServiceMode {
        #[serde(skip_serializing_if = "Option::is_none")] replicated: Option<ReplicatedService>,
        #[serde(skip_serializing_if = "Option::is_none")] global: Option<GlobalService>,
        #[serde(skip_serializing_if = "Option::is_none")] replicated_job: Option<JobMode>,
        #[serde(skip_serializing_if = "Option::is_none")] global_job: Option<JobMode>,
    }
    struct ReplicatedService { replicas: Option<u64> }
    struct GlobalService {}
    struct JobMode {}
    struct EndpointSpec { mode: String }
    struct Service {
        #[serde(rename = "ID")] id: String,
        version: ObjectVersion,
        created_at: String,
        updated_at: String,
        spec: ServiceSpec,
        #[serde(skip_serializing_if = "Option::is_none")] previous_spec: Option<ServiceSpec>,
        endpoint: Endpoint,
        #[serde(skip_serializing_if = "Option::is_none")] update_status: Option<UpdateStatus>,
        #[serde(skip_serializing_if = "Option::is_none")] service_status: Option<ServiceStatus>,
    }
    struct UpdateStatus {
        state: String,
        started_at: String,
        #[serde(skip_serializing_if = "Option::is_none")] completed_at: Option<String>,
        message: String,
    }
    struct ServiceUpdated { warnings: Option<Vec<String>> }
    struct Endpoint { spec: EndpointSpec }
    struct ServiceStatus { running_tasks: u64, desired_tasks: u64, completed_tasks: u64 }
    struct Task {
        #[serde(rename = "ID")] id: String,
        version: ObjectVersion,
        created_at: String,
        updated_at: String,
        name: String,
        labels: Map,
        spec: TaskSpec,
        #[serde(rename = "ServiceID")] service_id: String,
        slot: u64,
        #[serde(rename = "NodeID", skip_serializing_if = "String::is_empty")] node_id: String,
        status: TaskStatus,
        desired_state: String,
        networks_attachments: Vec<NetworkAttachment>,
    }
    struct TaskStatus {
        timestamp: String,
        state: String,
        message: String,
        #[serde(skip_serializing_if = "String::is_empty")] err: String,
        #[serde(skip_serializing_if = "Option::is_none")] container_status: Option<ContainerStatus>,
        port_status: BTreeMap<String, String>,
    }
    struct ContainerStatus {
        #[serde(rename = "ContainerID")] container_id: String,
        #[serde(rename = "PID")] pid: u32,
        exit_code: i32,
    }
    struct NetworkAttachment { network: TaskNetwork, addresses: Vec<String> }
    struct TaskNetwork {
        #[serde(rename = "ID")] id: String,
        version: ObjectVersion,
        created_at: String,
        updated_at: String,
        spec: TaskNetworkSpec,
        driver_state: Driver,
        #[serde(rename = "IPAMOptions")] ipam_options: TaskIpam,
    }
    struct TaskNetworkSpec {
        name: String,
        labels: Map,
        driver_configuration: Driver,
        scope: String,
    }
    struct TaskIpam { driver: Driver, configs: Vec<IpamConfig> }
    struct Driver {
        name: String,
        #[serde(skip_serializing_if = "Map::is_empty")] options: Map,
    }
}

impl ServiceMode {
    /// So many tasks.
    pub fn replicated(replicas: u64) -> ServiceMode {
        ServiceMode { replicated: Some(ReplicatedService { replicas: Some(replicas) }), ..ServiceMode::default() }
    }

    /// One task on each node.
    pub fn global() -> ServiceMode {
        ServiceMode { global: Some(GlobalService {}), ..ServiceMode::default() }
    }
}

// The swarm and its nodes.
docker_type! {
    struct SwarmInit {
        listen_addr: String,
        advertise_addr: String,
        data_path_addr: String,
        data_path_port: u32,
        default_addr_pool: Vec<String>,
        subnet_size: u32,
        force_new_cluster: bool,
        availability: String,
        /// Docker's client sets it here, and in the specification too.
        auto_lock_managers: bool,
        spec: SwarmSpec,
    }
    struct SwarmJoin {
        listen_addr: String,
        advertise_addr: String,
        data_path_addr: String,
        remote_addrs: Vec<String>,
        join_token: String,
        availability: String,
    }
    struct SwarmSpec {
        name: String,
        labels: Map,
        orchestration: Orchestration,
        raft: RaftConfig,
        dispatcher: Dispatcher,
        #[serde(rename = "CAConfig")] ca_config: CaConfig,
        task_defaults: TaskDefaults,
        encryption_config: EncryptionConfig,
        formic: FormicSwarmSpec,
    }
    /// Not Docker's: what Formic adds. Docker's own client drops it and thus leaves it as it is.
    struct FormicSwarmSpec {
        /// Seconds between two key rotations; 0 is the default or leaves it.
        key_rotation_seconds: u64,
        /// Names of offloads that no node may use; none given leaves them.
        #[serde(skip_serializing_if = "is_default")] disabled_offloads: Option<Vec<String>>,
    }
    struct Orchestration { task_history_retention_limit: Option<i64> }
    struct RaftConfig { election_tick: u64, heartbeat_tick: u64 }
    struct Dispatcher { heartbeat_period: u64 }
    struct CaConfig {
        node_cert_expiry: u64,
        #[serde(skip_serializing_if = "is_default")] force_rotate: u64,
    }
    struct TaskDefaults {}
    /// Absent in a request: stays as it is.
    struct EncryptionConfig { auto_lock_managers: Option<bool> }
    struct UnlockKey { unlock_key: String }
    struct ClusterInfo {
        #[serde(rename = "ID")] id: String,
        version: ObjectVersion,
        created_at: String,
        updated_at: String,
        spec: SwarmSpec,
        #[serde(rename = "TLSInfo")] tls_info: TlsInfo,
        root_rotation_in_progress: bool,
        data_path_port: u16,
        default_addr_pool: Vec<String>,
        subnet_size: u8,
    }
    struct Swarm {
        #[serde(flatten)] cluster: ClusterInfo,
        join_tokens: JoinTokens,
    }
    struct JoinTokens { worker: String, manager: String }
    struct TlsInfo {
        trust_root: String,
        cert_issuer_subject: String,
        cert_issuer_public_key: String,
    }
    struct Node {
        #[serde(rename = "ID")] id: String,
        version: ObjectVersion,
        created_at: String,
        updated_at: String,
        spec: NodeSpec,
        description: NodeDescription,
        status: NodeStatus,
        #[serde(skip_serializing_if = "Option::is_none")] manager_status: Option<ManagerStatus>,
    }
    struct NodeSpec { name: String, labels: Map, role: String, availability: String }
    struct NodeDescription {
        hostname: String,
        platform: Platform,
        resources: Resources,
        engine: EngineDescription,
        #[serde(rename = "TLSInfo")] tls_info: TlsInfo,
    }
    struct Platform { architecture: String, #[serde(rename = "OS")] os: String }
    struct Resources {
        #[serde(rename = "NanoCPUs", skip_serializing_if = "is_default")] nano_cpus: u64,
        #[serde(skip_serializing_if = "is_default")] memory_bytes: u64,
    }
    struct EngineDescription { engine_version: String }
    struct NodeStatus { state: String, message: String, addr: String }
    struct ManagerStatus { leader: bool, reachability: String, addr: String }
}

// The daemon.
docker_type! {
    struct Version {
        platform: PlatformName,
        components: Vec<Component>,
        version: String,
        api_version: String,
        #[serde(rename = "MinAPIVersion")] min_api_version: String,
        git_commit: String,
        go_version: String,
        os: String,
        arch: String,
        kernel_version: String,
        build_time: String,
    }
    struct PlatformName { name: String }
    struct Component { name: String, version: String, details: Map }
    struct Info {
        #[serde(rename = "ID")] id: String,
        containers: u64,
        containers_running: u64,
        containers_paused: u64,
        containers_stopped: u64,
        images: u64,
        driver: String,
        plugins: Plugins,
        #[serde(rename = "MemoryLimit")] memory_limit: bool,
        #[serde(rename = "NCPU")] ncpu: u64,
        mem_total: u64,
        name: String,
        kernel_version: String,
        operating_system: String,
        #[serde(rename = "OSType")] os_type: String,
        architecture: String,
        docker_root_dir: String,
        server_version: String,
        system_time: String,
        security_options: Vec<String>,
        warnings: Vec<String>,
        swarm: SwarmStatus,
    }
    struct Plugins { volume: Vec<String>, network: Vec<String>, authorization: Vec<String>, log: Vec<String> }
    struct SwarmStatus {
        #[serde(rename = "NodeID")] node_id: String,
        node_addr: String,
        local_node_state: String,
        control_available: bool,
        error: String,
        remote_managers: Option<Vec<Peer>>,
        nodes: u64,
        managers: u64,
        #[serde(skip_serializing_if = "Option::is_none")] cluster: Option<ClusterInfo>,
    }
    struct Peer { #[serde(rename = "NodeID")] node_id: String, addr: String }
}

// Tasks of this node, as containers.
docker_type! {
    struct ContainerSummary {
        id: String,
        names: Vec<String>,
        image: String,
        #[serde(rename = "ImageID")] image_id: String,
        command: String,
        created: u64,
        ports: Vec<String>,
        labels: Map,
        state: String,
        status: String,
        host_config: ContainerHostConfig,
        network_settings: ContainerNetworks,
        mounts: Vec<String>,
    }
    struct ContainerHostConfig { network_mode: String }
    struct ContainerNetworks { networks: BTreeMap<String, ContainerNetwork> }
    struct ContainerNetwork {
        #[serde(rename = "NetworkID")] network_id: String,
        #[serde(rename = "EndpointID")] endpoint_id: String,
        #[serde(rename = "IPAddress")] ip_address: String,
        #[serde(rename = "IPPrefixLen")] ip_prefix_len: u8,
        aliases: Vec<String>,
    }
    struct ContainerDetails {
        id: String,
        created: String,
        path: String,
        args: Vec<String>,
        state: ContainerState,
        image: String,
        name: String,
        config: ContainerConfig,
        host_config: ContainerHostConfig,
        network_settings: ContainerNetworks,
    }
    struct ContainerState {
        status: String,
        running: bool,
        paused: bool,
        restarting: bool,
        dead: bool,
        pid: u32,
        exit_code: i32,
        error: String,
        started_at: String,
        finished_at: String,
    }
    struct ContainerConfig {
        hostname: String,
        tty: bool,
        env: Vec<String>,
        cmd: Vec<String>,
        image: String,
        working_dir: String,
        labels: Map,
    }
    struct ExecCreate {
        attach_stdin: bool,
        attach_stdout: bool,
        attach_stderr: bool,
        env: Vec<String>,
        cmd: Vec<String>,
    }
    struct Created { id: String, warnings: Vec<String> }
    struct ExecStart { detach: bool }
    struct ExecInspect {
        #[serde(rename = "ID")] id: String,
        running: bool,
        exit_code: Option<i32>,
        open_stdin: bool,
        open_stdout: bool,
        open_stderr: bool,
        #[serde(rename = "ContainerID")] container_id: String,
        pid: u32,
        process_config: ProcessConfig,
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessConfig {
    pub entrypoint: String,
    pub arguments: Vec<String>,
    pub tty: bool,
    pub privileged: bool,
}
