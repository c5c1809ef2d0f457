//! What the daemon can be told, from three places: the command line wins over the `--config` file, which wins over
//! the defaults. The file is TOML; its keys are the long options without the dashes in front.

use crate::dataplane::Offloads;
use crate::types::Queues;
use serde::Deserialize;
use std::fmt;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where state is kept unless told otherwise.
const DEFAULT_STATE_DIR: &str = "/var/lib/formic";

/// Where the API listens unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/formic.sock";

/// UDP port of gossip unless told otherwise.
const DEFAULT_GOSSIP_PORT: u16 = 7946;

/// Bytes of a configuration file at most: a larger one is a mistake (a log, a disk image).
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Why the options make no sense.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Unreadable {
        /// It.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file says something that is not understood.
    #[error("the configuration file {path} is wrong: {reason}")]
    Malformed {
        /// It.
        path: PathBuf,
        /// What.
        reason: String,
    },
    /// A value is out of its range.
    #[error("{0}")]
    Invalid(String),
}

macro_rules! word_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<$name, String> {
                match word {
                    $($word => Ok($name::$variant),)+
                    _ => Err(format!("{word:?} is none of {}", [$($word),+].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$variant => $word),+ })
            }
        }
    };
}

word_enum! {
    /// The least severe event that is logged.
    LogLevel {
        /// Errors only.
        Error = "error",
        /// What an operator should look at.
        Warn = "warn",
        /// What an operator acts on.
        Info = "info",
        /// Peers and security associations.
        Debug = "debug",
        /// Packets.
        Trace = "trace",
    }
}

word_enum! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

word_enum! {
    /// Whether many packets are handled as one.
    Offload {
        /// What the kernel offers and what is found working.
        Auto = "auto",
        /// None: one packet at a time.
        Off = "off",
    }
}

/// What the daemon is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Where state is kept.
    pub state_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Group that may use the socket: a number or a name of `/etc/group`; `None` is the daemon's own.
    pub socket_group: Option<String>,
    /// The least severe event that is logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Whether the image `host` (this host's own files) may be run.
    pub host_image: bool,
    /// UDP port of gossip.
    pub gossip_port: u16,
    /// UDP port of ESP on this node; `None` takes the swarm's.
    pub data_path_port: Option<u16>,
    /// Offloads of task devices and of the data path.
    pub offload: Offload,
    /// Those of them that are not used.
    pub disable_offload: Offloads,
    /// Worker threads of the data plane.
    pub data_workers: Queues,
    /// Whether root may be shown the keys that protect packets (`formic debug esp-keys`).
    pub allow_key_export: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            state_dir: DEFAULT_STATE_DIR.into(),
            socket: DEFAULT_SOCKET.into(),
            socket_group: None,
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            host_image: true,
            gossip_port: DEFAULT_GOSSIP_PORT,
            data_path_port: None,
            offload: Offload::Auto,
            disable_offload: Offloads::NONE,
            data_workers: default_data_workers(),
            allow_key_export: false,
        }
    }
}

/// As many as there are cores, at most four. Two hosts on a machine of two cores (`iperf3 -C cubic`, medians of five
/// rounds in turn): four flows 11.6 Gbit/s and 1.00 s of processor time per GB with two workers each, 9.4 and 1.12 with
/// one; one flow the same, and idle the same.
fn default_data_workers() -> Queues {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Queues::try_from(cores.clamp(1, 4) as u8).unwrap_or(Queues::ONE)
}

/// What one place says; `None` leaves it to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PartialOptions {
    /// See [`Options::state_dir`].
    pub state_dir: Option<PathBuf>,
    /// See [`Options::socket`].
    pub socket: Option<PathBuf>,
    /// See [`Options::socket_group`].
    pub socket_group: Option<String>,
    /// See [`Options::log_level`].
    pub log_level: Option<LogLevel>,
    /// See [`Options::log_format`].
    pub log_format: Option<LogFormat>,
    /// The opposite of [`Options::host_image`].
    pub no_host_image: Option<bool>,
    /// See [`Options::gossip_port`].
    pub gossip_port: Option<u16>,
    /// See [`Options::data_path_port`].
    pub data_path_port: Option<u16>,
    /// See [`Options::offload`].
    pub offload: Option<Offload>,
    /// See [`Options::disable_offload`]: names with commas between them.
    pub disable_offload: Option<String>,
    /// See [`Options::data_workers`].
    pub data_workers: Option<Queues>,
    /// See [`Options::allow_key_export`].
    pub allow_key_export: Option<bool>,
}

impl PartialOptions {
    /// Reads a configuration file.
    pub fn from_file(path: &Path) -> Result<PartialOptions, OptionsError> {
        let unreadable = |source| OptionsError::Unreadable { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(unreadable)?.len();
        if size > MAX_CONFIG_BYTES {
            let reason = format!("it has {size} bytes, more than {MAX_CONFIG_BYTES}");
            return Err(OptionsError::Malformed { path: path.to_owned(), reason });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        PartialOptions::from_toml(&text).map_err(|reason| OptionsError::Malformed { path: path.to_owned(), reason })
    }

    /// Reads the text of a configuration file. The error is one line.
    pub fn from_toml(text: &str) -> Result<PartialOptions, String> {
        toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            format!("line {line}: {}", error.message().lines().collect::<Vec<_>>().join(" "))
        })
    }

    /// What this place says, and where it says nothing, what `other` says.
    pub fn or(self, other: PartialOptions) -> PartialOptions {
        PartialOptions {
            state_dir: self.state_dir.or(other.state_dir),
            socket: self.socket.or(other.socket),
            socket_group: self.socket_group.or(other.socket_group),
            log_level: self.log_level.or(other.log_level),
            log_format: self.log_format.or(other.log_format),
            no_host_image: self.no_host_image.or(other.no_host_image),
            gossip_port: self.gossip_port.or(other.gossip_port),
            data_path_port: self.data_path_port.or(other.data_path_port),
            offload: self.offload.or(other.offload),
            disable_offload: self.disable_offload.or(other.disable_offload),
            data_workers: self.data_workers.or(other.data_workers),
            allow_key_export: self.allow_key_export.or(other.allow_key_export),
        }
    }

    /// Fills in the defaults. Errors when the values cannot work together.
    pub fn resolve(self) -> Result<Options, OptionsError> {
        let default = Options::default();
        let options = Options {
            state_dir: self.state_dir.unwrap_or(default.state_dir),
            socket: self.socket.unwrap_or(default.socket),
            socket_group: self.socket_group,
            log_level: self.log_level.unwrap_or(default.log_level),
            log_format: self.log_format.unwrap_or(default.log_format),
            host_image: !self.no_host_image.unwrap_or(false),
            gossip_port: self.gossip_port.unwrap_or(default.gossip_port),
            data_path_port: self.data_path_port,
            offload: self.offload.unwrap_or(default.offload),
            disable_offload: Offloads::parse_list(&self.disable_offload.unwrap_or_default())
                .map_err(|error| OptionsError::Invalid(error.to_string()))?,
            data_workers: self.data_workers.unwrap_or(default.data_workers),
            allow_key_export: self.allow_key_export.unwrap_or(false),
        };
        options.check()?;
        Ok(options)
    }
}

impl Options {
    /// What the data plane may use.
    pub fn offloads(&self) -> Offloads {
        match self.offload {
            Offload::Off => Offloads::NONE,
            Offload::Auto => Offloads::ALL.minus(self.disable_offload),
        }
    }

    fn check(&self) -> Result<(), OptionsError> {
        let invalid = |text: String| Err(OptionsError::Invalid(text));
        if self.gossip_port == 0 || self.data_path_port == Some(0) {
            return invalid("a port must be between 1 and 65535".into());
        }
        if self.data_path_port == Some(self.gossip_port) {
            return invalid(format!(
                "port {} cannot serve both gossip and the data path: give another --data-path-port or --gossip-port",
                self.gossip_port
            ));
        }
        for (name, path) in [("state-dir", &self.state_dir), ("socket", &self.socket)] {
            if path.as_os_str().is_empty() {
                return invalid(format!("--{name} must not be empty"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_the_defaults() {
        let file =
            PartialOptions::from_toml("gossip-port = 7000\nlog-level = \"debug\"\nno-host-image = true\n").unwrap();
        let line = PartialOptions { gossip_port: Some(7001), ..PartialOptions::default() };
        let options = line.or(file).resolve().unwrap();
        assert_eq!(options.gossip_port, 7001);
        assert_eq!(options.log_level, LogLevel::Debug);
        assert!(!options.host_image);
        assert_eq!(options.state_dir, Options::default().state_dir);
    }

    #[test]
    fn a_wrong_file_is_refused_in_one_line_that_says_where() {
        for (text, expected) in [
            ("gossip-port = 7000\ngosip-port = 1\n", "line 2: unknown field `gosip-port`"),
            ("gossip-port = \"x\"", "line 1: invalid type"),
            ("gossip-port = 70000", "line 1: invalid value"),
            ("log-level = \"loud\"", "line 1: unknown variant `loud`"),
            ("data-workers = 0", "line 1: a number between 1 and 16 is wanted, not 0"),
            ("=", "line 1: "),
        ] {
            let reason = PartialOptions::from_toml(text).unwrap_err();
            assert!(reason.starts_with(expected), "{reason}");
            assert_eq!(reason.lines().count(), 1, "{reason}");
        }
    }

    #[test]
    fn ports_that_cannot_work_are_refused() {
        let same = PartialOptions { data_path_port: Some(DEFAULT_GOSSIP_PORT), ..PartialOptions::default() };
        assert!(same.resolve().is_err());
        let zero = PartialOptions { gossip_port: Some(0), ..PartialOptions::default() };
        assert!(zero.resolve().is_err());
    }
}
