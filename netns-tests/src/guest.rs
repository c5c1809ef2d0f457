//! A machine of its own on the underlay, with a kernel that has what this one may lack: QEMU without hardware's help,
//! Debian's cloud kernel, busybox. It is told what to do by a shell on a port. `scripts/setup` brings what it needs.

use crate::process::{self, Background, tied};
use crate::topology::{BRIDGE, Topology};
use crate::wait::wait_until;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Its address on the underlay.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The port of its shell.
const SHELL_PORT: u16 = 7000;

/// What a boot may take: ten times what it takes on two free cores.
const BOOT_DEADLINE: Duration = Duration::from_secs(40);

/// Boots that are tried: now and then an emulated one stands still.
const BOOT_TRIES: usize = 2;

/// What a script may take.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(60);

/// The shell's own `ip` knows nothing of xfrm.
const FULL_IP: &str = "ip() { /sbin/ip \"$@\"; }\n";

/// A running guest, gone with the value.
pub struct Guest {
    _qemu: Background,
}

impl Guest {
    /// Boots one on the topology's bridge and waits for its shell. It has the address of the first host, which must not
    /// exist.
    pub fn boot(topology: &Topology) -> Guest {
        let image = topology.directory().join("guest.cpio");
        let mut command = Command::new("bash");
        command.args(["-eu", concat!(env!("CARGO_MANIFEST_DIR"), "/guest/image.sh")]);
        command.args([Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/guest")), &kernel_directory(), &image]);
        process::run(command).ok();
        for device in ["tuntap add guest0 mode tap", &format!("link set guest0 master {BRIDGE} up")] {
            let mut ip = Command::new("ip");
            ip.args(device.split(' '));
            process::run(ip).ok();
        }
        let console = topology.directory().join("guest.log");
        for _ in 0..BOOT_TRIES {
            let qemu = Background::start(machine(&image, &console));
            if answers() {
                return Guest { _qemu: qemu };
            }
            println!("the guest does not answer:\n{}", std::fs::read_to_string(&console).unwrap_or_default());
        }
        panic!("the guest did not boot {BOOT_TRIES} times");
    }

    /// Runs a script in the guest; what it printed.
    #[track_caller]
    pub fn run(&self, script: &str) -> String {
        let mut shell =
            wait_until("the guest's shell", SCRIPT_DEADLINE, || connect().map_err(|error| error.to_string()));
        shell.set_read_timeout(Some(SCRIPT_DEADLINE)).expect("set a deadline");
        shell.write_all([FULL_IP, script].concat().as_bytes()).expect("write to the guest");
        shell.shutdown(Shutdown::Write).expect("end the script");
        let mut printed = String::new();
        shell.read_to_string(&mut printed).unwrap_or_else(|error| panic!("the guest's answer to {script:?}: {error}"));
        printed
    }
}

fn answers() -> bool {
    let start = Instant::now();
    while start.elapsed() < BOOT_DEADLINE {
        if connect().is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    false
}

fn connect() -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((GUEST, SHELL_PORT)), Duration::from_secs(1))
}

/// Where `scripts/setup` unpacks the kernel package.
fn kernel_directory() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
    let directory = cache.unwrap_or_else(home).join("formic-test/kernel");
    assert!(directory.join("boot").is_dir(), "no kernel in {}: run scripts/setup", directory.display());
    directory
}

fn machine(image: &Path, console: &Path) -> Command {
    let boot = std::fs::read_dir(kernel_directory().join("boot")).expect("list the kernels");
    let kernel = boot.flatten().map(|entry| entry.path()).find(|path| path.to_string_lossy().contains("vmlinuz-"));
    let mut command = tied("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256", "-smp", "1"]);
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.arg("-kernel").arg(kernel.expect("a kernel")).arg("-initrd").arg(image);
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=unstable random.trust_cpu=1"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.args(["-netdev", "tap,id=net,ifname=guest0,script=no,downscript=no"]);
    command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}
