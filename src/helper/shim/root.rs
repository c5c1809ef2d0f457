//! The files that a task sees: its root, entered by pivot_root, with its own /proc, /sys and /dev.
//!
//! Image `host` is the host's whole tree, read-only, without the paths that are hidden, with private /tmp and /run.
//! An imported image lies under a copy-on-write layer (overlayfs) in memory; where overlayfs cannot be had (old
//! kernels in user namespaces), the task gets a plain copy in its directory instead.
//!
//! Containers keep CAP_MKNOD as in Docker, and there is no device cgroup to hold it: every mount is `nodev` but
//! the few device files, which are bind mounts of the host's. They are read-only as files, so that nobody changes
//! the host's modes through them; devices can be written on such mounts all the same.

use super::{RootSpec, TaskSpec};
use crate::helper::copy;
use crate::sys::{explain, mount as tree};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// The copy-on-write layer of one task, in memory: what it writes beyond gets "no space left on device".
const LAYER_OPTIONS: &str = "mode=700,size=1g";
const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const BIND: MsFlags = MsFlags::MS_BIND.union(MsFlags::MS_REC);

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
    ("/proc/kcore", "core"),
];

/// Docker's masked paths.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/debug",
];
/// Docker's read-only paths.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Builds the task's root and makes it this process's. Runs as pid 1 of the task's namespaces.
pub(super) fn enter(spec: &TaskSpec) -> io::Result<()> {
    let root = spec.work_dir.join("root");
    match &spec.root {
        RootSpec::Host { hidden } => bind_host(&root, hidden)?,
        RootSpec::Image { dir } => mount_image(dir, &root, &spec.work_dir)?,
    }
    mount_proc(&root)?;
    mount_sys(&root)?;
    mount_dev(&root)?;
    pivot(&root)?;
    mask()?;
    match &spec.root {
        RootSpec::Host { .. } => bind_names(spec),
        RootSpec::Image { .. } => write_names(spec),
    }
}

fn do_mount(source: &str, target: &Path, kind: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(options))
        .map_err(|error| explain(format_args!("mount {kind} on {}", target.display()), error))
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    mount(Some(source), target, None::<&str>, BIND, None::<&str>)
        .map_err(|error| explain(format_args!("bind {} to {}", source.display(), target.display()), error))
}

/// A directory of the new root, made when missing. A link of that name could lead outside: it is refused.
fn directory(root: &Path, name: &str) -> io::Result<PathBuf> {
    let path = root.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_dir() => Ok(path),
        Ok(_) => Err(io::Error::other(format!("/{name} of the image is not a directory"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir(&path).map_err(|error| explain(format_args!("make /{name} in the image"), error))?;
            Ok(path)
        }
        Err(error) => Err(explain(path.display(), error)),
    }
}

fn bind_host(root: &Path, hidden: &[PathBuf]) -> io::Result<()> {
    bind(Path::new("/"), root)?;
    tree::lock_tree(root)?;
    for path in hidden {
        let inside = root.join(path.strip_prefix("/").unwrap_or(path));
        cover(&inside)?;
    }
    do_mount("tmpfs", &directory(root, "tmp")?, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777,size=1g")?;
    do_mount("tmpfs", &directory(root, "run")?, "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755,size=64m")
}

/// Hides a directory under an empty one, anything else under `/dev/null`. Nothing there is nothing to hide.
fn cover(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            do_mount("tmpfs", path, "tmpfs", QUIET | MsFlags::MS_RDONLY, "mode=755,size=4k")
        }
        Ok(_) => {
            bind(Path::new("/dev/null"), path)?;
            tree::remount(path, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
        Err(error) => Err(explain(path.display(), error)),
    }
}

fn mount_image(image: &Path, root: &Path, work_dir: &Path) -> io::Result<()> {
    if let Err(overlay) = mount_layer(image, root, work_dir) {
        // An earlier attempt may have left part of a copy.
        fs::remove_dir_all(root)?;
        copy::copy_tree(image, root).map_err(|error| {
            io::Error::new(error.kind(), format!("no overlayfs ({overlay}), and copying the image: {error}"))
        })?;
        bind(root, root)?;
        tree::remount(root, MsFlags::MS_NODEV)?;
    }
    let fresh = !root.join("tmp").exists();
    let tmp = directory(root, "tmp")?;
    if fresh {
        fs::set_permissions(tmp, Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

/// The image below, a layer in memory above. The paths go in as descriptors and relative names: the state
/// directory may have any name, and overlayfs splits its options at `:` and `,`.
fn mount_layer(image: &Path, root: &Path, work_dir: &Path) -> io::Result<()> {
    let lower = open(image, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let metadata = fs::metadata(image)?;
    let layer = work_dir.join("layer");
    fs::create_dir_all(&layer)?;
    do_mount("tmpfs", &layer, "tmpfs", MsFlags::MS_NODEV, LAYER_OPTIONS)?;
    let (upper, work) = (layer.join("upper"), layer.join("work"));
    fs::create_dir(&upper)?;
    fs::create_dir(&work)?;
    // The merged root has the upper directory's owner and mode.
    let _ = chown(&upper, Some(metadata.uid()), Some(metadata.gid()));
    fs::set_permissions(&upper, metadata.permissions())?;
    chdir(&layer)?;
    let options = format!("lowerdir=/proc/self/fd/{},upperdir=upper,workdir=work", lower.as_raw_fd());
    // `trusted` attributes are out of reach in a user namespace.
    let marks = if in_user_namespace() { ",userxattr" } else { "" };
    let mounted = do_mount("overlay", root, "overlay", MsFlags::MS_NODEV, &format!("{options}{marks}"));
    chdir("/")?;
    if mounted.is_err() {
        umount2(&layer, MntFlags::MNT_DETACH)?;
    }
    mounted
}

/// The initial user namespace maps every id to itself.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    !map.split_ascii_whitespace().eq(["0", "0", "4294967295"])
}

fn mount_proc(root: &Path) -> io::Result<()> {
    do_mount("proc", &directory(root, "proc")?, "proc", QUIET, "")
}

/// Of the task's network namespace. Where the kernel refuses (a masked /sys outside), an empty one.
fn mount_sys(root: &Path) -> io::Result<()> {
    let sys = directory(root, "sys")?;
    do_mount("sysfs", &sys, "sysfs", QUIET | MsFlags::MS_RDONLY, "")
        .or_else(|_| do_mount("tmpfs", &sys, "tmpfs", QUIET | MsFlags::MS_RDONLY, "mode=755,size=4k"))
}

fn mount_dev(root: &Path) -> io::Result<()> {
    let dev = directory(root, "dev")?;
    let no_device = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    do_mount("tmpfs", &dev, "tmpfs", no_device | MsFlags::MS_NOEXEC, "mode=755,size=64k")?;
    for name in DEVICES {
        let (host, inside) = (Path::new("/dev").join(name), dev.join(name));
        File::create(&inside)?;
        bind(&host, &inside)?;
        tree::remount(&inside, MsFlags::MS_RDONLY | MsFlags::MS_NOSUID)?;
    }
    for (target, name) in DEVICE_LINKS {
        symlink(target, dev.join(name))?;
    }
    let pts = directory(&dev, "pts")?;
    let terminals = "newinstance,ptmxmode=0666,mode=0620";
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // Group 5 (tty) does not exist in every user namespace.
    do_mount("devpts", &pts, "devpts", safe, &format!("{terminals},gid=5"))
        .or_else(|_| do_mount("devpts", &pts, "devpts", safe, terminals))?;
    do_mount("shm", &directory(&dev, "shm")?, "tmpfs", QUIET, "mode=1777,size=64m")?;
    let queues = directory(&dev, "mqueue")?;
    // A kernel without message queues needs no place for them.
    let _ = do_mount("mqueue", &queues, "mqueue", QUIET, "");
    Ok(())
}

/// Makes `root` the root of this mount namespace; the old one is gone from it.
fn pivot(root: &Path) -> io::Result<()> {
    chdir(root).map_err(|error| explain(root.display(), error))?;
    // The old root comes to lie over the new one, from where it is taken away.
    pivot_root(".", ".").map_err(|error| explain("pivot_root", error))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(|error| explain("leave the old root", error))?;
    chdir("/")?;
    Ok(())
}

fn mask() -> io::Result<()> {
    for path in MASKED {
        cover(Path::new(path))?;
    }
    for path in READ_ONLY.map(Path::new) {
        match mount(Some(path), path, None::<&str>, BIND, None::<&str>) {
            Ok(()) => tree::remount(path, QUIET | MsFlags::MS_RDONLY)?,
            Err(Errno::ENOENT) => {}
            Err(error) => return Err(explain(format_args!("make {} read-only", path.display()), error)),
        }
    }
    Ok(())
}

/// The files that name the task, for what reads them instead of asking the kernel.
fn name_files(spec: &TaskSpec) -> [(&'static str, String); 3] {
    [
        ("hostname", format!("{}\n", spec.hostname)),
        ("hosts", hosts_text(&spec.hostname, &spec.addresses)),
        ("resolv.conf", "# The overlay has no name server.\n".to_owned()),
    ]
}

pub(super) fn hosts_text(hostname: &str, addresses: &[IpNet]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for address in addresses {
        text.push_str(&format!("{}\t{hostname}\n", address.addr()));
    }
    text
}

/// The host's /etc is read-only: the files lie in the private /run and are bound over those that exist.
fn bind_names(spec: &TaskSpec) -> io::Result<()> {
    let dir = Path::new("/run/formic");
    fs::create_dir(dir)?;
    for (name, text) in name_files(spec) {
        let file = dir.join(name);
        fs::write(&file, text)?;
        let place = Path::new("/etc").join(name);
        if place.exists() {
            bind(&file, &place)?;
        }
    }
    Ok(())
}

/// An image's own /etc is the task's: the files replace what is there, links included.
fn write_names(spec: &TaskSpec) -> io::Result<()> {
    let etc = Path::new("/etc");
    if !etc.is_dir() {
        return Ok(());
    }
    for (name, text) in name_files(spec) {
        let place = etc.join(name);
        match fs::remove_file(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain(place.display(), error)),
            _ => fs::write(&place, text).map_err(|error| explain(place.display(), error))?,
        }
    }
    Ok(())
}
