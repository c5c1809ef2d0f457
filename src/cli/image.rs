//! `formic image`.

use super::session::{Failure, Outcome, Session};
use super::table;
use crate::api::client::Target;
use crate::api::time;
use crate::api::types::{ImageImport, ImageInfo};
use argh::{ArgsInfo, FromArgs};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Manages the images of this host. Each host that runs a task needs its image.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "image")]
pub(super) struct Image {
    #[argh(subcommand)]
    verb: Verb,
}

#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand)]
enum Verb {
    Import(Import),
    Ls(Ls),
    Rm(Rm),
}

impl Image {
    pub(super) fn run(self, session: &mut Session) -> Outcome {
        match self.verb {
            Verb::Import(verb) => verb.run(session),
            Verb::Ls(verb) => verb.run(session),
            Verb::Rm(verb) => verb.run(session),
        }
    }
}

/// Copies a root directory into this host's image store.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "import")]
struct Import {
    /// name of the image
    #[argh(positional)]
    name: String,
    /// root directory
    #[argh(positional)]
    directory: String,
}

impl Import {
    fn run(self, session: &mut Session) -> Outcome {
        // The daemon's working directory is another one.
        let directory = Path::new(&self.directory)
            .canonicalize()
            .map_err(|error| Failure::new(format!("cannot import {}: {error}", self.directory)))?;
        let directory = directory.into_os_string().into_string();
        let directory = directory.map_err(|path| Failure::new(format!("{path:?} is not UTF-8")))?;
        let request = ImageImport { name: self.name, directory };
        let image: ImageInfo = session.post(&Target::new(&["formic", "images", "import"]), &request)?;
        session.print(image.name)
    }
}

/// Lists the images of this host.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "ls")]
struct Ls {
    /// show names only
    #[argh(switch, short = 'q')]
    quiet: bool,
}

impl Ls {
    fn run(self, session: &mut Session) -> Outcome {
        let images: Vec<ImageInfo> = session.get(&Target::new(&["formic", "images"]))?;
        if self.quiet {
            return images.iter().try_for_each(|image| session.print(&image.name));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs());
        let rows: Vec<[String; 4]> = images.iter().map(|image| row(image, now)).collect();
        session.print(table::render(["REPOSITORY", "TAG", "CREATED", "SIZE"], &rows))
    }
}

fn row(image: &ImageInfo, now: u64) -> [String; 4] {
    let (repository, tag) = image.name.rsplit_once(':').unwrap_or((&image.name, "latest"));
    let age = time::human_duration(now.saturating_sub(image.created_at)).to_lowercase();
    [repository.into(), tag.into(), format!("{age} ago"), image.size_bytes.map(human_size).unwrap_or_default()]
}

/// Bytes as Docker shows them: three digits, powers of 1000.
pub(super) fn human_size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut size = bytes as f64;
    let mut unit = units.iter();
    let mut name = unit.next().copied().unwrap_or_default();
    for next in unit {
        if size < 999.5 {
            break;
        }
        size /= 1000.0;
        name = next;
    }
    let digits = if name == "B" || size >= 99.95 {
        0
    } else if size >= 9.995 {
        1
    } else {
        2
    };
    format!("{size:.digits$}{name}")
}

/// Removes images from this host.
#[derive(FromArgs, ArgsInfo, Debug)]
#[argh(subcommand, name = "rm")]
struct Rm {
    /// names
    #[argh(positional)]
    images: Vec<String>,
}

impl Rm {
    fn run(self, session: &mut Session) -> Outcome {
        if self.images.is_empty() {
            return Err(Failure::new("give the name of an image"));
        }
        session.for_each(&self.images, |session, image| {
            let segments: Vec<&str> = ["formic", "images"].into_iter().chain(image.split('/')).collect();
            session.delete(&Target::new(&segments))?;
            Ok(Some(format!("Untagged: {image}")))
        })
    }
}
