//! The unix socket: its file, who may use it, and what lay there before.

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Owner and group may connect (that needs write permission), nobody else.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon serves it.
    #[error("another daemon is listening on {0}: stop it, or give another --socket")]
    InUse(PathBuf),
    /// Something else lies at its path.
    #[error("{0} exists and is not a socket: remove it, or give another --socket")]
    NotASocket(PathBuf),
    /// The group does not exist.
    #[error("there is no group {0}: give a number or a name of /etc/group as --socket-group")]
    NoGroup(String),
    /// The system refused.
    #[error("cannot make the socket {path}: {source}")]
    System {
        /// It.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The user who connected, as the kernel saw it then (`SO_PEERCRED`).
pub(super) fn user_of(stream: &UnixStream) -> Option<u32> {
    getsockopt(stream, PeerCredentials).ok().map(|credentials| credentials.uid())
}

/// A listening socket. Its file is removed when this is dropped.
pub struct ApiSocket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl ApiSocket {
    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        // A file that is already gone is what is wanted.
        let _ = fs::remove_file(&self.path);
    }
}

/// Listens on `path` for its owner and `group` (a number or a name of `/etc/group`). A socket file that nobody
/// serves is replaced. Call it while still privileged: `group` needs CAP_CHOWN.
pub fn bind(path: &Path, group: Option<&str>) -> Result<ApiSocket, SocketError> {
    let system = |source| SocketError::System { path: path.to_owned(), source };
    let group_id = group.map(group_number).transpose()?;
    refuse_if_taken(path)?;
    // Made in a directory of its own and moved into place: nobody can connect before the mode is right.
    let nursery = nursery_path(path);
    let _ = fs::remove_dir_all(&nursery);
    fs::DirBuilder::new().mode(0o700).create(&nursery).map_err(system)?;
    let made = make(&nursery.join("s"), path, group_id).map_err(system);
    let _ = fs::remove_dir_all(&nursery);
    Ok(ApiSocket { listener: made?, path: path.to_owned() })
}

fn make(temporary: &Path, path: &Path, group_id: Option<u32>) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(temporary)?;
    if group_id.is_some() {
        std::os::unix::fs::chown(temporary, None, group_id)?;
    }
    fs::set_permissions(temporary, fs::Permissions::from_mode(SOCKET_MODE))?;
    fs::rename(temporary, path)?;
    Ok(listener)
}

fn nursery_path(path: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn refuse_if_taken(path: &Path) -> Result<(), SocketError> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) if UnixStream::connect(path).is_ok() => Err(SocketError::InUse(path.to_owned())),
        Ok(_) => Ok(()),
    }
}

/// A group's number. A static binary has no `getgrnam`: `/etc/group` is read as it is.
fn group_number(group: &str) -> Result<u32, SocketError> {
    let unknown = || SocketError::NoGroup(group.to_owned());
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let text = fs::read_to_string("/etc/group").map_err(|_| unknown())?;
    group_number_in(&text, group).ok_or_else(unknown)
}

fn group_number_in(text: &str, group: &str) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(group);
        found.then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("formic-socket-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_socket_is_for_owner_and_group_and_goes_with_its_owner() {
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("api.sock");
        let group = fs::metadata(&scratch.0).unwrap().gid().to_string();
        let socket = bind(&path, Some(&group)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1, "nothing but the socket is left");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let scratch = Scratch::new("stale");
        let path = scratch.0.join("api.sock");
        let first = UnixListener::bind(&path).unwrap();
        assert!(matches!(bind(&path, None), Err(SocketError::InUse(_))));
        drop(first);
        let socket = bind(&path, None).unwrap();
        UnixStream::connect(socket.path()).unwrap();
    }

    #[test]
    fn other_files_and_unknown_groups_are_refused() {
        let scratch = Scratch::new("other");
        let path = scratch.0.join("api.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(bind(&path, None), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let free = scratch.0.join("free.sock");
        assert!(matches!(bind(&free, Some("no-such-group-here")), Err(SocketError::NoGroup(_))));
    }

    #[test]
    fn a_group_is_found_by_its_name_only() {
        let text = "root:x:0:\nformic:x:998:alice,bob\nbad\n";
        assert_eq!(group_number_in(text, "formic"), Some(998));
        assert_eq!(group_number_in(text, "form"), None);
        assert_eq!(group_number_in(text, "bad"), None);
    }
}
