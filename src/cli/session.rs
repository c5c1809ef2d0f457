//! What a verb works with: the daemon, standard output and standard error.

use crate::api::client::Target;
use crate::api::client::{Client, ClientError};
use crate::api::types::{Info, Node, Service};
use std::fmt::Display;
use std::io::{self, Write};
use std::path::Path;

/// Where the daemon's socket is unless told otherwise.
const DEFAULT_SOCKET: &str = "/run/formic.sock";

/// Why a verb failed, in one line, and its exit code.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) message: String,
    pub(super) code: u8,
}

impl Failure {
    pub(super) fn new(message: impl Display) -> Failure {
        Failure { message: message.to_string(), code: 1 }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::new(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::new(error)
    }
}

pub(super) type Outcome = Result<(), Failure>;

/// A verb's surroundings.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) out: Box<dyn Write>,
    pub(super) err: Box<dyn Write>,
}

impl Session {
    /// The process's own streams, and the daemon at the default socket.
    pub(super) fn on_terminal() -> Session {
        Session {
            client: Client::new(Path::new(DEFAULT_SOCKET)),
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
        }
    }

    /// Talks to another socket.
    pub(super) fn connect_to(&mut self, socket: &Path) {
        self.client = Client::new(socket);
    }

    /// A line (or several) on standard output.
    pub(super) fn print(&mut self, text: impl Display) -> Outcome {
        writeln!(self.out, "{text}").map_err(|error| Failure::new(format!("cannot write the output: {error}")))
    }

    /// A line on standard error. It is for people: when it cannot be written, nobody reads.
    pub(super) fn complain(&mut self, text: &str) {
        let _ = writeln!(self.err, "{text}");
    }

    /// Pretty JSON.
    pub(super) fn print_json(&mut self, value: &impl serde::Serialize) -> Outcome {
        let text = serde_json::to_string_pretty(value).map_err(Failure::new)?;
        self.print(text)
    }

    /// GET, waiting for the answer.
    pub(super) fn get<T: serde::de::DeserializeOwned>(&self, target: &Target) -> Result<T, Failure> {
        Ok(smol::block_on(self.client.get(target))?)
    }

    /// POST with an answer.
    pub(super) fn post<T: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
        body: &impl serde::Serialize,
    ) -> Result<T, Failure> {
        Ok(smol::block_on(self.client.post(target, body))?)
    }

    /// POST without one.
    pub(super) fn post_only(&self, target: &Target, body: &impl serde::Serialize) -> Outcome {
        Ok(smol::block_on(self.client.post_only(target, body))?)
    }

    /// DELETE.
    pub(super) fn delete(&self, target: &Target) -> Outcome {
        Ok(smol::block_on(self.client.delete(target))?)
    }

    /// `info`.
    pub(super) fn info(&self) -> Result<Info, Failure> {
        self.get(&Target::new(&["info"]))
    }

    /// `nodes`.
    pub(super) fn nodes(&self) -> Result<Vec<Node>, Failure> {
        self.get(&Target::new(&["nodes"]))
    }

    /// A service by id or name.
    pub(super) fn service(&self, name: &str) -> Result<Service, Failure> {
        self.get(&Target::new(&["services", name]))
    }

    /// Does something for each name: prints the name where it works, and goes on where it does not. The failures
    /// are one line together.
    pub(super) fn for_each(
        &mut self,
        names: &[String],
        mut act: impl FnMut(&mut Session, &str) -> Result<Option<String>, Failure>,
    ) -> Outcome {
        let mut failures = Vec::new();
        for name in names {
            match act(self, name) {
                Ok(Some(line)) => self.print(line)?,
                Ok(None) => {}
                Err(failure) => failures.push(failure.message),
            }
        }
        if failures.is_empty() { Ok(()) } else { Err(Failure::new(failures.join("; "))) }
    }

    /// `inspect`: the JSON of each name, as one list. Names that are not there are told afterwards.
    pub(super) fn inspect(&mut self, names: &[String], target: impl Fn(&str) -> Target) -> Outcome {
        let mut found: Vec<serde_json::Value> = Vec::new();
        let outcome = self.for_each(names, |session, name| {
            found.push(session.get(&target(name))?);
            Ok(None)
        });
        self.print_json(&found)?;
        outcome
    }
}

/// `KEY=VALUE` options as a map; a key alone has an empty value.
pub(super) fn pairs(options: &[String]) -> std::collections::BTreeMap<String, String> {
    let split = |option: &String| {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        (key.to_owned(), value.to_owned())
    };
    options.iter().map(split).collect()
}

/// `--filter` options (`name=web`) as the API's parameter.
pub(super) fn filters(target: Target, options: &[String]) -> Result<Target, Failure> {
    if options.is_empty() {
        return Ok(target);
    }
    let mut map: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
    for option in options {
        let (name, value) = option
            .split_once('=')
            .ok_or_else(|| Failure::new(format!("invalid filter {option:?}: it must be NAME=VALUE")))?;
        map.entry(name).or_default().push(value);
    }
    let text = serde_json::to_string(&map).map_err(Failure::new)?;
    Ok(target.with("filters", &text))
}
