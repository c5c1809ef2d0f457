//! Formic: an encrypted overlay network for containers that needs no kernel module.
//!
//! Every host runs one static binary. It gives each container (a Linux network namespace) a TUN device, carries
//! packets between hosts in IPsec ESP done in userspace, learns who is where by an encrypted gossip, and takes its
//! keys from the managers of the swarm. This page is the architecture: read it first. How to use Formic stands in
//! the README.
//!
//! # Two processes
//!
//! ```text
//!   docker, formic ----- unix socket -----.
//!                                         v
//!   .------------------- network process ---------------------.   verbs    .----- helper -----.
//!   | no capability, few system calls                         |----------->| privileged, small |
//!   |  api    agent ---- keys, gossip, tasks                  |<- TUN fds -| namespaces, TUNs, |
//!   |  manager -- cluster     dataplane (worker threads)      |<- exits ---| tasks, images     |
//!   '--|2377/tcp-----------|7946/udp----------|4500/udp-------'            '------|------------'
//!      |mTLS               |gossip            |ESP in UDP                         | fork, exec
//!      v                   v                  v                                   v
//!    managers            nodes              nodes                        tasks in namespaces,
//!                                                                        each with its TUN devices
//! ```
//!
//! The daemon forks [`helper`] before it has threads and then drops every capability
//! ([`sys::privileges::become_network_process`]) and all system calls that it does not need ([`sys::confine`]): the
//! process that reads the network can neither enter namespaces nor mount, nor start a program. Lives end downwards: a killed daemon takes the helper and all tasks
//! along; what lies on disk is removed at the next start, and the managers place the tasks anew.
//!
//! # The four flows
//!
//! ```text
//! out   TUN read (up to 64 KiB) -> overlay.classify -> local endpoint: written to its TUN as it is
//!                                    -> peer: offload::Split -> OutboundSa.seal in place -> trains -> sendmmsg
//! in    recvmmsg (trains) -> wire::esp -> SA by SPI -> replay check -> open in place -> replay mark
//!                -> overlay.accept -> offload::Run -> TUN writev
//! key   manager: ring::plan -> log -> every node that needs it gets the whole ring -> installs receiving,
//!                reports ready -> activation (signed, also by gossip) -> each pair confirms -> sending switches
//!                -> the old epoch is erased
//! command  docker -> unix socket -> any manager -> leader -> log (durable at a majority) -> cluster.apply
//!                -> push of the desired state
//!                -> agent reconciles -> reports back
//! ```
//!
//! Out and in run in the data plane's workers (`daemon --data-workers`), each with SAs, sockets and device queues of its
//! own: a packet is read and sent by one thread, and no two threads share a counter, a window or a table.
//!
//! There is no plaintext path to fall back to: a packet without an SA is dropped and counted. Every drop has a
//! reason ([`overlay::DropReason`], [`gossip::GossipDrop`]), every table, queue and loop a bound.
//!
//! # Modules
//!
//! Pure modules take time and randomness as arguments and open nothing; the same code runs in the daemon and in
//! [`sim`]. Arrows point from shells to pure modules to [`types`] and [`wire`]; `tools/arrows` checks them.
//!
//! | module | what it is | |
//! |---|---|---|
//! | [`types`] | identifiers and plain values | pure |
//! | [`crypto`] | HKDF, X25519, Ed25519, AES-GCM for control data, over libraries | pure |
//! | [`wire`] | bytes to values: ESP, gossip, records, control messages, tokens | pure |
//! | [`esp`] | key schedule, SAs, replay windows, the SA database | pure |
//! | [`offload`] | super-packets: cutting, joining, checksums, the vnet header | pure |
//! | [`overlay`] | who owns which address; what may pass | pure |
//! | [`path`] | how long a packet the way to each peer carries | pure |
//! | [`gossip`] | membership, and signed records spread without a manager | pure |
//! | [`keys`] | a node's side of the key life: which SAs exist, which epoch a pair sends with | pure |
//! | [`cluster`] | the replicated state: commands, addresses, scheduling, the key ring | pure |
//! | [`raft`] | consensus: the order of the commands, who leads | pure |
//! | [`sys`] | every `unsafe` and raw system call | |
//! | [`tls`] | TLS 1.3 between nodes and managers | shell |
//! | [`helper`] | the privileged process and the launcher of tasks | shell |
//! | [`dataplane`] | worker threads between TUN devices and UDP sockets | shell |
//! | [`manager`] | storage, certificates, the control port, the loops around `cluster` and `raft` | shell |
//! | [`agent`] | the node: membership, session, one loop around keys, gossip and tasks | shell |
//! | [`api`] | the Docker Engine API on a unix socket, and its client | shell |
//! | [`daemon`] | options; the start and the stop of everything | shell |
//! | [`doctor`] | judges what `formic doctor` found on the machine and at the peers | shell |
//! | [`cli`] | one file per noun; talks to `api`'s client only | shell |
//! | [`sim`] | virtual time and network, whole swarms in one process | tests |
//!
//! [`threat_model`] says who may do what with which key in hand, and which test shows it.
//!
//! # Keys in short
//!
//! The managers hold one random *master* per epoch, at most three: previous, current, next. A node is given the gossip
//! key of each epoch, and the network key only of networks that have a task on it. The key of an SA mixes the network
//! key with an X25519 secret of the two nodes, per boot and epoch: a third node with the same ring opens nothing, and a
//! thief of the ring opens no recorded traffic. What must never happen is the same (key, nonce) twice: an SA identity
//! is made once in a process, and its counter lives until the epoch is erased ([`esp::SaDatabase`]).
//!
//! # Glossary
//!
//! | term | meaning |
//! |---|---|
//! | swarm | the cluster of nodes |
//! | node | one host that runs the daemon: a manager or a worker |
//! | leader, voter, learner | the manager that the others elected; one that has a say; one that is catching up |
//! | locked | said of a manager whose files need the unlock key, which it has not been given yet |
//! | seat, member | a manager's place in the consensus: a new one each time a node becomes a manager |
//! | network | an overlay network: *encrypted* (AES-256-GCM) or plain (AES-256-GMAC: authenticated, not secret) |
//! | endpoint | one address of one task on one network |
//! | service, task | the wanted replicas; one placed replica, a container |
//! | epoch | the number of one key of the ring |
//! | boot | one start of a daemon: a new identity for keys |
//! | fork | one life of the replicated state; a restore begins a new one |
//! | generation | the age of an allocation: the newest owner of an address wins |
//! | SA, SPI | a one-way security association, and its name on the wire (RFC 4301, RFC 4303) |
//! | underlay, overlay | the hosts' network, the containers' network |
//!
//! # Dependencies
//!
//! | crate | why |
//! |---|---|
//! | `aes-gcm` | gossip and data at rest; the oracle of the data plane's cipher in tests |
//! | `anyhow` | errors of the command line and of the daemon's start, which are only printed |
//! | `arc-swap` | snapshots that the API reads without waiting for the loop that writes them |
//! | `argh` | the command line: small, one struct per verb, its comments are the help |
//! | `aws-lc-rs` | the data plane's AES-GCM and GMAC (2.7 times as fast as `aes-gcm` at 1400 octets), X25519, Ed25519; the TLS library brings it anyway |
//! | `base64` | unlock keys; what reads and writes PEM brings it anyway |
//! | `caps` | capability sets of processes without hand-made system calls |
//! | `etherparse` | headers and checksums of inner packets |
//! | `futures-rustls` | TLS streams for the smol executor |
//! | `hkdf` | the key schedule |
//! | `http-body-util` | bodies of API requests and answers |
//! | `hyper` | HTTP/1 of the API, both ends |
//! | `ipnet` | subnets, with their text and serde forms |
//! | `libc` | constants and structures of the calls that `nix` lacks (TUN, prctl, batches) |
//! | `nix` | system calls with types |
//! | `noraft` | the core of the managers' consensus: Raft without clock, randomness or I/O |
//! | `pem` | key and certificate files |
//! | `postcard` | control messages, records, the store: compact, canonical, bounded |
//! | `rand` | the seeded generator of the pure machines |
//! | `rcgen` | certificates and requests |
//! | `redb` | the managers' log and snapshot: crash-safe, pure Rust, no dependencies |
//! | `rustls` | TLS 1.3 with X25519MLKEM768 |
//! | `seccompiler` | the filter of system calls, as a program for the kernel; from a virtual machine monitor whose processes live behind it |
//! | `serde` | derived encodings |
//! | `serde_json` | the API's JSON |
//! | `sha2` | SHA-256 of SPIs, digests and the key schedule |
//! | `slab` | dense tables with stable indices on the data path |
//! | `smol` | the control plane's executor: small, no runtime threads of its own |
//! | `smol-hyper` | hyper's traits on smol's streams |
//! | `socket2` | socket options and addresses of all sockets |
//! | `thiserror` | error types of the modules |
//! | `toml` | the `--config` file |
//! | `tracing` | log events |
//! | `tracing-subscriber` | their text and JSON form |
//! | `tun-tap` | the plain TUN driver, for kernels without IFF_VNET_HDR |
//! | `x509-parser` | names and times of certificates |
//! | `zeroize` | key material is wiped when dropped |

pub mod agent;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod crypto;
pub mod daemon;
pub mod dataplane;
pub mod doctor;
pub mod esp;
#[cfg(test)]
mod fuzz;
pub mod gossip;
pub mod helper;
pub mod keys;
pub mod manager;
pub mod offload;
pub mod overlay;
pub mod path;
pub mod raft;
pub mod sim;
pub mod sys;
#[doc = include_str!("threat_model.md")]
pub mod threat_model {}
pub mod tls;
pub mod types;
pub mod wire;
