//! What the network process may ask of the helper: fixed verbs, their answers, and their bytes.
//!
//! The asking side reads packets from strangers, so this decoder takes it for hostile: every message is bounded,
//! every name is a type that only its parser makes, bytes left over are an error, and nothing here can panic.
//! Not here: what is true at the moment (does the task exist, is the image there); that is the server's.
//!
//! A request is 8 bytes of little-endian id and a postcard [`Verb`]; a message back is a postcard `Message`.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use crate::sys::tun::TunDriver;
use crate::types::{Queues, TaskId, UnixTime};
use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fmt;
use std::path::{Path, PathBuf};

/// Bytes of the longest message: Linux gives a Unix socket 208 KiB of send buffer by default, and a command line
/// with its environment rarely needs a tenth of this.
pub const MAX_MESSAGE_BYTES: usize = 128 * 1024;
/// Interfaces of one task. The queues of all together must fit one message.
pub const MAX_INTERFACES: usize = 16;
/// Arguments, and variables, of one command.
pub const MAX_STRINGS: usize = 4096;
/// Bytes of an image's name.
pub const MAX_IMAGE_NAME_BYTES: usize = 128;
/// Bytes of a network namespace's name: a task is named after it.
pub const MAX_NAMESPACE_NAME_BYTES: usize = 63;
/// Images that one node keeps: a list of them fits one message.
pub const MAX_IMAGES: usize = 512;
/// The longest grace before a task is killed: an hour.
pub const MAX_GRACE_MS: u32 = 3_600_000;
/// Interface MTU in bytes: from the least that IPv4 hosts must take (RFC 791) to the longest packet.
pub const MTU_BYTES: std::ops::RangeInclusive<u32> = 576..=65_535;

/// The prefixes that a network's subnet may have, where a namespace of somebody else is put on it.
pub const SUBNET_PREFIX: std::ops::RangeInclusive<u8> = 8..=30;

/// The name of an image on this node, `my-image:latest`: a file name without `/`, `..` or a leading dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// The name of an interface inside a task: `eth` and a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InterfaceName(String);

/// The name of a network namespace that somebody made with `ip netns add`: a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamespaceName(String);

macro_rules! checked_name {
    ($name:ident, $valid:path, $what:literal) => {
        impl TryFrom<String> for $name {
            type Error = VerbError;

            fn try_from(text: String) -> Result<$name, VerbError> {
                if $valid(&text) {
                    Ok($name(text))
                } else {
                    Err(VerbError::new(ErrorKind::Invalid, format!("not {}: {text:?}", $what)))
                }
            }
        }

        impl std::str::FromStr for $name {
            type Err = VerbError;

            fn from_str(text: &str) -> Result<$name, VerbError> {
                $name::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(ImageName, is_image_name, "an image name");
checked_name!(InterfaceName, is_interface_name, "an interface name");
checked_name!(NamespaceName, is_namespace_name, "the name of a network namespace");

fn is_image_name(text: &str) -> bool {
    text.len() <= MAX_IMAGE_NAME_BYTES
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-:".contains(&b))
        && !text.contains("..")
}

fn is_interface_name(text: &str) -> bool {
    let digits = text.strip_prefix("eth").unwrap_or("");
    (1..=3).contains(&digits.len())
        && digits.bytes().all(|b| b.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'))
}

/// What `ip netns add` takes: no path, and nothing that would be one.
fn is_namespace_name(text: &str) -> bool {
    (1..=MAX_NAMESPACE_NAME_BYTES).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/')
}

/// One interface of a task's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// `eth0`, `eth1`, ...
    pub name: InterfaceName,
    /// Its address with the prefix length of its network.
    pub address: IpNet,
    /// Its MTU in bytes, within [`MTU_BYTES`].
    pub mtu: u32,
}

/// Whose files a task sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Image {
    /// The host's, read-only.
    Host,
    /// An imported image, copy-on-write.
    Named(ImageName),
}

impl Image {
    /// Reads a normalised name: `host:latest` is the host. A name that no image can have is an unknown image.
    pub fn from_normalised(name: &str) -> Result<Image, VerbError> {
        if matches!(name, "host" | "host:latest") {
            return Ok(Image::Host);
        }
        name.parse().map(Image::Named).map_err(|_| VerbError::unknown_image(name))
    }
}

/// `NAME=value` texts. They may hold secrets, so they print as their number only.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(pub Vec<String>);

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} variables]", self.0.len())
    }
}

/// A command with what it runs in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CommandSpec {
    /// Program and arguments; the program is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// Its whole environment; `PATH`, `HOME` and `HOSTNAME` are added when missing.
    pub env: Environment,
    /// Working directory inside; empty is `/`.
    pub dir: String,
    /// Make descriptor 0, which must be a terminal, the controlling one.
    pub tty: bool,
}

/// A task to be started in the network that was made for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLaunch {
    /// The task.
    pub task: TaskId,
    /// Whose files it sees.
    pub image: Image,
    /// What it runs.
    pub command: CommandSpec,
    /// Hostname inside; empty is the task id's first 12 characters.
    pub hostname: String,
}

/// The helper's number of a command executed in a running task. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ExecId(pub u64);

/// Who gets a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignalTarget {
    /// The command of a task.
    Task(TaskId),
    /// A command executed in a task.
    Exec(ExecId),
}

/// What can be asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verb {
    /// Make a network namespace with one TUN for each interface. Answer: [`Answer::Network`] with the descriptors of
    /// the first one's queues, then of the second one's, and so on.
    CreateTaskNetwork {
        /// The task.
        task: TaskId,
        /// At most [`MAX_INTERFACES`].
        interfaces: Vec<Interface>,
        /// How packets are framed.
        driver: TunDriver,
        /// Queues of each TUN; the driver may not be able to have more than one ([`TunDriver::queues`]).
        queues: Queues,
    },
    /// Start a task. Three descriptors may come with it (standard input, output, error), or none (`/dev/null`).
    /// Answer: [`Answer::Started`]; its end is [`Event::TaskExited`].
    StartTask(TaskLaunch),
    /// SIGTERM now, SIGKILL after the grace. Answers at once; [`Event::TaskExited`] follows.
    StopTask {
        /// The task.
        task: TaskId,
        /// Milliseconds, at most [`MAX_GRACE_MS`].
        grace_ms: u32,
    },
    /// Kill the task if it runs and remove all of it. Answers when it is gone; an unknown task is gone.
    RemoveTask {
        /// The task.
        task: TaskId,
    },
    /// Execute a command in a running task. Descriptors as with [`Verb::StartTask`]. Answer: [`Answer::Exec`];
    /// its end is [`Event::ExecExited`].
    Exec {
        /// The task.
        task: TaskId,
        /// What to run.
        command: CommandSpec,
    },
    /// Send a signal. A target that has just ended is no error.
    Signal {
        /// To whom.
        target: SignalTarget,
        /// One of [`SIGNALS`].
        signal: i32,
    },
    /// Copy a directory into the images. Answer: [`Answer::Imported`].
    ImportImage {
        /// Its name; an image of this name is replaced once the copy is whole.
        name: ImageName,
        /// An absolute path.
        source: PathBuf,
    },
    /// Answer: [`Answer::Images`].
    ListImages,
    /// Remove an image that no task uses.
    RemoveImage {
        /// Its name.
        name: ImageName,
    },
    /// Make one TUN in a network namespace of `/run/netns`, under the first `eth` name that is free there. It is gone
    /// when its queues are closed. Refused where an address or a route of the namespace overlaps the subnet, and beyond
    /// [`MAX_INTERFACES`]. Answer: [`Answer::Network`] with the descriptors of its queues.
    AttachNamespace {
        /// The namespace.
        namespace: NamespaceName,
        /// The device's address with the prefix length of its network, within [`SUBNET_PREFIX`].
        address: IpNet,
        /// Its MTU in bytes, within [`MTU_BYTES`].
        mtu: u32,
        /// How packets are framed.
        driver: TunDriver,
        /// As in [`Verb::CreateTaskNetwork`].
        queues: Queues,
    },
}

/// The signals that may be sent. SIGSTOP and its like are not among them: they would stop only the task's init.
pub const SIGNALS: [i32; 9] = [1, 2, 3, 9, 10, 12, 15, 18, 28];

/// What went right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done.
    Done,
    /// The network is made; the TUN descriptors are beside the message, in the order of the interfaces and queues.
    Network,
    /// The task runs.
    Started {
        /// The id of its first process on the host.
        pid: u32,
    },
    /// The command runs.
    Exec {
        /// The number in its events.
        id: ExecId,
        /// Its process id on the host.
        pid: u32,
    },
    /// The image is there.
    Imported(ImportSummary),
    /// The images by name.
    Images(Vec<ImageInfo>),
}

/// What an import copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImportSummary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes in files.
    pub bytes: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: u64,
}

/// An image of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageInfo {
    /// Its name.
    pub name: ImageName,
    /// When it was imported.
    pub imported_at: UnixTime,
}

/// The kinds of refusal that a caller acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The message could not be read.
    Malformed,
    /// A value out of its range.
    Invalid,
    /// No such image here: the task is to be rejected.
    UnknownImage,
    /// Image `host` is forbidden on this node: the task is to be rejected.
    ForbiddenImage,
    /// No such task, or it does not run.
    UnknownTask,
    /// The task, or its network, is there already.
    Exists,
    /// A task uses it.
    InUse,
    /// A table is full.
    Limit,
    /// The system refused.
    System,
    /// The helper is gone.
    Gone,
}

/// Why a verb was not done. Nothing was changed, or it was undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct VerbError {
    /// What the caller may act on.
    pub kind: ErrorKind,
    /// For people: one line that says what to do.
    pub text: String,
}

impl VerbError {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, text: impl Into<String>) -> VerbError {
        VerbError { kind, text: text.into() }
    }

    pub(crate) fn unknown_image(name: &str) -> VerbError {
        let text = format!("no such image on this node: {name}: import it with `formic image import {name} DIR`");
        VerbError::new(ErrorKind::UnknownImage, text)
    }

    /// Whether another attempt with the same task cannot help on this node: it is to be rejected.
    pub fn is_rejection(&self) -> bool {
        matches!(self.kind, ErrorKind::UnknownImage | ErrorKind::ForbiddenImage | ErrorKind::Invalid)
    }
}

impl From<std::io::Error> for VerbError {
    fn from(error: std::io::Error) -> VerbError {
        VerbError::new(ErrorKind::System, error.to_string())
    }
}

/// What the helper says unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A task's command ended, and all its other processes with it.
    TaskExited {
        /// The task.
        task: TaskId,
        /// Its exit code; 128 + signal when killed, 127 when the command was not found, 126 when not executable.
        code: i32,
        /// What went wrong before the command ran; empty if nothing.
        error: String,
    },
    /// An executed command ended.
    ExecExited {
        /// Which.
        id: ExecId,
        /// As in [`Event::TaskExited`].
        code: i32,
        /// As in [`Event::TaskExited`].
        error: String,
    },
    /// Something that an operator should read.
    Warning(String),
    /// The helper is gone, and all tasks with it: stop (fail closed). The last event; never on the wire.
    Gone,
}

/// What the helper sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// The first one, once: ready, or why not.
    Ready(Result<(), String>),
    /// To a request.
    Reply { id: u64, result: Result<Answer, VerbError> },
    /// Unasked.
    Event(Event),
}

/// The bytes of a request.
pub(crate) fn encode_request(id: u64, verb: &Verb) -> Result<Vec<u8>, VerbError> {
    let mut bytes = id.to_le_bytes().to_vec();
    bytes.extend(encode(verb)?);
    if bytes.len() > MAX_MESSAGE_BYTES {
        let text = format!("the command and its environment exceed {MAX_MESSAGE_BYTES} bytes");
        return Err(VerbError::new(ErrorKind::Invalid, text));
    }
    Ok(bytes)
}

/// Reads a request: its id (0 when even that is missing) and the verb or why it is none.
pub(crate) fn decode_request(bytes: &[u8]) -> (u64, Result<Verb, VerbError>) {
    let Some((id, body)) = bytes.split_first_chunk::<8>() else {
        return (0, Err(VerbError::new(ErrorKind::Malformed, "a request shorter than its id")));
    };
    let verb = decode::<Verb>(body).and_then(|verb| validate(&verb).map(|()| verb));
    (u64::from_le_bytes(*id), verb)
}

pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, VerbError> {
    postcard::to_stdvec(value).map_err(|error| VerbError::new(ErrorKind::Invalid, format!("not encodable: {error}")))
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, VerbError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok(_) => Err(VerbError::new(ErrorKind::Malformed, "bytes after the message")),
        Err(error) => Err(VerbError::new(ErrorKind::Malformed, format!("unreadable message: {error}"))),
    }
}

/// The ranges that the types alone do not hold.
fn validate(verb: &Verb) -> Result<(), VerbError> {
    match verb {
        Verb::CreateTaskNetwork { interfaces, driver, queues, .. } => {
            let descriptors = interfaces.len() * usize::from(driver.queues(*queues).count());
            let text = "more devices and queues than fit one answer: start the daemon with fewer --data-workers";
            require(descriptors <= crate::sys::seqpacket::MAX_FDS, text)?;
            validate_interfaces(interfaces)
        }
        Verb::StartTask(launch) => {
            require(is_hostname(&launch.hostname), "a hostname has letters, digits, `-` and `.`, at most 63")?;
            validate_command(&launch.command)
        }
        Verb::Exec { command, .. } => validate_command(command),
        Verb::StopTask { grace_ms, .. } => require(*grace_ms <= MAX_GRACE_MS, "a grace of more than an hour"),
        Verb::Signal { signal, .. } => require(SIGNALS.contains(signal), "a signal that may not be sent"),
        Verb::ImportImage { source, .. } => {
            require(source.is_absolute() && !has_nul(source), "the directory must be an absolute path")
        }
        Verb::AttachNamespace { address, mtu, .. } => {
            // A wider one would take what the namespace sends elsewhere.
            require(
                SUBNET_PREFIX.contains(&address.prefix_len()),
                "the subnet of a namespace has a prefix of 8 to 30",
            )?;
            validate_device(*address, *mtu)
        }
        Verb::RemoveTask { .. } | Verb::ListImages | Verb::RemoveImage { .. } => Ok(()),
    }
}

fn validate_interfaces(interfaces: &[Interface]) -> Result<(), VerbError> {
    require(interfaces.len() <= MAX_INTERFACES, "too many interfaces for one task")?;
    let mut names: Vec<&str> = interfaces.iter().map(|interface| interface.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    require(names.len() == interfaces.len(), "two interfaces of the same name")?;
    interfaces.iter().try_for_each(|interface| validate_device(interface.address, interface.mtu))
}

fn validate_device(address: IpNet, mtu: u32) -> Result<(), VerbError> {
    require(MTU_BYTES.contains(&mtu), "an MTU out of 576..=65535")?;
    require(matches!(address, IpNet::V4(_)), "IPv6 inside a network comes later")?;
    let address = address.addr();
    require(!address.is_unspecified() && !address.is_loopback() && !address.is_multicast(), "not a host address")
}

fn validate_command(command: &CommandSpec) -> Result<(), VerbError> {
    require(command.argv.first().is_some_and(|program| !program.is_empty()), "no command given")?;
    require(command.argv.len() <= MAX_STRINGS && command.env.0.len() <= MAX_STRINGS, "too many arguments")?;
    let nul = command.argv.iter().chain(&command.env.0).any(|text| text.contains('\0'));
    require(!nul && !command.dir.contains('\0'), "a NUL in the command")?;
    require(command.dir.is_empty() || command.dir.starts_with('/'), "the working directory must be an absolute path")
}

fn is_hostname(text: &str) -> bool {
    text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.' || b == b'_')
}

fn has_nul(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().contains(&0)
}

fn require(holds: bool, text: &str) -> Result<(), VerbError> {
    if holds { Ok(()) } else { Err(VerbError::new(ErrorKind::Invalid, text)) }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod fuzz_tests;
