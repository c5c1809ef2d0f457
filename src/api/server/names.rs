//! Names: how images are spelled, and one for a service that was given none. Which names of networks and services are
//! allowed is for the replicated state to say.
#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

use super::error::ApiError;

/// Characters of an image's name at most, as Docker's references.
const MAX_IMAGE_NAME: usize = 255;

/// Characters of a tag at most, as Docker's references.
const MAX_TAG: usize = 128;

/// Words that `docker run --network` takes for something else than a network's name.
pub(super) const RESERVED_NETWORKS: [&str; 4] = ["bridge", "host", "none", "default"];

/// Spells an image's name as the image store does: with its tag (`my-image` is `my-image:latest`), without Docker's
/// default registry. Errors on names that are no Docker reference, and on digests.
pub(super) fn normalise_image(name: &str) -> Result<String, ApiError> {
    let invalid = |why: &str| ApiError::bad_request(format!("invalid image name {name:?}: {why}"));
    if name.is_empty() {
        return Err(ApiError::bad_request("ContainerSpec: image reference must be provided"));
    }
    if name.contains('@') {
        return Err(invalid("images are not known by digest here; give a name and a tag"));
    }
    let after_slash = name.rfind('/').map_or(0, |at| at + 1);
    let colon = name.rfind(':').filter(|&at| at >= after_slash);
    let (repository, tag) = match colon {
        Some(at) => (name.get(..at).unwrap_or_default(), name.get(at + 1..).unwrap_or_default()),
        None => (name, "latest"),
    };
    let repository = repository.strip_prefix("docker.io/").unwrap_or(repository);
    let repository = repository.strip_prefix("library/").unwrap_or(repository);
    if repository.len() > MAX_IMAGE_NAME {
        return Err(invalid("it is too long"));
    }
    if !repository_fits(repository) {
        return Err(invalid("lower-case letters and digits, separated by '.', '_', '-' or '/'"));
    }
    let tag_starts = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let tag_fits = tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
    if !tag_starts || !tag_fits || tag.len() > MAX_TAG {
        return Err(invalid("its tag is none"));
    }
    Ok(format!("{repository}:{tag}"))
}

/// Whether it is a path of components as Docker's references have them; the first may be `host:port`.
fn repository_fits(repository: &str) -> bool {
    repository.split('/').enumerate().all(|(index, component)| {
        let (component, port) = match component.split_once(':') {
            Some((host, port)) if index == 0 && repository.contains('/') => (host, port),
            Some(_) => return false,
            None => (component, "0"),
        };
        let edges = [component.bytes().next(), component.bytes().next_back()];
        let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        port.bytes().all(|byte| byte.is_ascii_digit())
            && edges.iter().all(|edge| edge.is_some_and(letters))
            && component.bytes().all(|byte| letters(byte) || matches!(byte, b'.' | b'_' | b'-'))
            && !component.contains("..")
    })
}

const MOODS: [&str; 16] = [
    "amber", "brave", "busy", "calm", "clever", "eager", "gentle", "happy", "keen", "lively", "nimble", "patient",
    "quiet", "steady", "swift", "tireless",
];

const ANTS: [&str; 16] = [
    "carpenter",
    "carrier",
    "digger",
    "forager",
    "gardener",
    "gatherer",
    "guard",
    "harvester",
    "herder",
    "mason",
    "nurse",
    "pathfinder",
    "scout",
    "soldier",
    "weaver",
    "worker",
];

/// A name for a service that was given none: the first of a random walk that is free.
pub(super) fn invent(random: [u8; 2], taken: impl Fn(&str) -> bool) -> String {
    let (mood, ant) = (usize::from(random[0]) % MOODS.len(), usize::from(random[1]) % ANTS.len());
    let base = format!("{}_{}", MOODS[mood], ANTS[ant]);
    let numbered = (1u64..).map(|number| if number == 1 { base.clone() } else { format!("{base}{number}") });
    let mut free = numbered.filter(|name| !taken(name));
    free.next().unwrap_or(base)
}

/// A boolean as Go's `strconv.ParseBool` and Docker's labels spell it; empty is true (`--opt encrypted`).
pub(super) fn parse_switch(value: &str) -> Option<bool> {
    match value {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}
